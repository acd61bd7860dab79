"""Look through, fetch, put, rename and remove files, below folders that are the caller's.

A path is ``<root>/<below it>`` with ``/`` between names: ``outputs/txt2img-images/2024-01-01/a.png``.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from sd_cloud.access import Caller
from sd_cloud.errors import BadRequest, InputRefused, NotAllowed, NotFound, SavingFailed
from sd_cloud.roots import OWNERS_FOLDER, Roots, owner_folder, resolved
from sd_cloud.settings import Settings

FIELD = "path"
OUTPUTS = "outputs"
#: Roots that only an admin sees.
ADMIN_ROOTS = ("models", "embeddings")
LONGEST_NAME_BYTES = 255
#: Left free on the disk, whatever is uploaded.
RESERVED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One name in a folder. ``size_bytes`` of a folder is 0; ``modified`` is seconds since the epoch."""

    name: str
    kind: Literal["folder", "file"]
    size_bytes: int
    modified: float


@dataclass(frozen=True)
class _Place:
    """A resolved path; ``root`` is the one it is below, and is never touched itself."""

    path: Path
    root: Path


class FileBrowser:
    """The files of one data dir. Everything here blocks on the disk; call it in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._roots = Roots.of(settings)

    def roots(self, caller: Caller) -> list[str]:
        return [OUTPUTS, *(ADMIN_ROOTS if caller.admin else ())]

    def listed(self, caller: Caller, path: str) -> list[Entry]:
        """What is in a folder, folders first; of the empty path, the caller's roots."""
        if not path.strip("/"):
            return [Entry(name, "folder", 0, 0.0) for name in self.roots(caller)]
        place = self._place(caller, path)
        if not place.path.is_dir():
            if place.path == place.root:
                return []  # the first picture makes it
            raise NotFound(f"there is no folder {path}", field=FIELD)
        found = [_entry(one) for one in os.scandir(place.path) if not one.name.startswith(".")]
        entries = [one for one in found if one is not None]
        return sorted(entries, key=lambda one: (one.kind == "file", one.name.lower()))

    def file(self, caller: Caller, path: str) -> Path:
        """The file behind a path. Raises NotFound."""
        place = self._place(caller, path)
        if not place.path.is_file():
            raise NotFound(f"there is no file {path}", field=FIELD)
        return place.path

    def make_folder(self, caller: Caller, path: str) -> None:
        place = self._free(caller, path)
        with _told(path):
            place.path.mkdir(parents=True)

    def rename(self, caller: Caller, path: str, name: str) -> None:
        """Give a file or folder another name in the folder that it is in."""
        old = self._existing(caller, path)
        new = self._free(caller, str(PurePosixPath(path).parent / checked_name(name, "name")))
        with _told(path):
            old.path.rename(new.path)

    def remove(self, caller: Caller, path: str) -> None:
        """Remove a file, or a folder that is empty."""
        place = self._existing(caller, path)
        with _told(path):
            if place.path.is_dir():
                place.path.rmdir()
            else:
                place.path.unlink()

    async def put(self, caller: Caller, path: str, content: AsyncIterable[bytes]) -> int:
        """Write a new file; its size in bytes. It is there whole or not at all.

        Raises BadRequest where there is one already, SavingFailed when the disk is full.
        """
        place = await asyncio.to_thread(self._free, caller, path)
        partial = place.path.with_name(f".{uuid.uuid4().hex}.partial")
        with _told(path):
            await asyncio.to_thread(place.path.parent.mkdir, parents=True, exist_ok=True)
            out = await asyncio.to_thread(partial.open, "xb")
        try:
            size_bytes = 0
            async for chunk in content:  # who sends it may fail too, and that is not the disk's
                with _told(path):
                    await asyncio.to_thread(_write, out, chunk, partial)
                size_bytes += len(chunk)
            with _told(path):
                await asyncio.to_thread(_flushed, out)
                await asyncio.to_thread(_claim, partial, place.path, path)
        finally:
            out.close()
            partial.unlink(missing_ok=True)
        return size_bytes

    # -- places -----------------------------------------------------------------------------------

    def _existing(self, caller: Caller, path: str) -> _Place:
        place = self._place(caller, path)
        if place.path == place.root:
            raise InputRefused("a root stays as it is", field=FIELD)
        if not place.path.exists():
            raise NotFound(f"there is no {path}", field=FIELD)
        return place

    def _free(self, caller: Caller, path: str) -> _Place:
        for name in PurePosixPath(path).parts[1:]:
            checked_name(name, FIELD)
        place = self._place(caller, path)
        if place.path == place.root or place.path.exists():
            raise BadRequest(f"{path} is there already; remove it or take another name", field=FIELD)
        return place

    def _place(self, caller: Caller, path: str) -> _Place:
        """Where a path leads, links followed. Raises InputRefused, NotAllowed, NotFound."""
        if "\0" in path:
            raise InputRefused("a path holds no zero byte", field=FIELD)
        top, _, rest = path.strip("/").partition("/")
        if top == OUTPUTS:
            return self._output(caller, rest)
        if top not in ADMIN_ROOTS:
            raise NotFound(f"no folder {top!r}; there are: {', '.join(self.roots(caller))}", field=FIELD)
        if not caller.admin:
            raise NotAllowed(f"{top} needs the admin role", field=FIELD)
        root = resolved(self._settings.data_dir / top)
        place = resolved(root / rest)
        if not place.is_relative_to(root):
            raise InputRefused(f"{path} is outside {top}", field=FIELD)
        return _Place(place, root)

    def _output(self, caller: Caller, rest: str) -> _Place:
        # An admin sees all outputs, everybody else the pictures of their own tasks.
        root = self._settings.outputs_dir
        if not caller.admin:
            root = root / OWNERS_FOLDER / owner_folder(caller.owner)
        root = resolved(root)
        place = self._roots.place(root / rest, field=FIELD)
        if not place.is_relative_to(root):
            raise InputRefused(f"{OUTPUTS}/{rest} is outside your outputs", field=FIELD)
        return _Place(place, root)


def checked_name(name: str, field: str) -> str:
    """A name that one file may be given here. Raises BadRequest."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0") or not name.isprintable():
        raise BadRequest(f"{name!r} can't be a file's name here (no dot in front, no slashes)", field=field)
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise BadRequest(f"a name has at most {LONGEST_NAME_BYTES} bytes", field=field)
    return name


def _entry(one: os.DirEntry[str]) -> Entry | None:
    try:
        found = one.stat()
        is_folder = one.is_dir()
    except OSError:  # gone meanwhile, or a link to nowhere
        return None
    return Entry(
        one.name, "folder" if is_folder else "file", 0 if is_folder else found.st_size, found.st_mtime
    )


def _write(out: BinaryIO, chunk: bytes, partial: Path) -> None:
    free = os.statvfs(partial.parent)
    if free.f_bavail * free.f_frsize - len(chunk) < RESERVED_BYTES:
        raise SavingFailed(f"less than {RESERVED_BYTES >> 20} MiB of disk would be left", field=FIELD)
    out.write(chunk)


def _flushed(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _claim(partial: Path, target: Path, path: str) -> None:
    try:
        os.link(partial, target)
    except FileExistsError:
        raise BadRequest(f"{path} is there already; remove it or take another name", field=FIELD) from None
    except OSError:  # a file system without hard links, such as a mounted bucket
        partial.replace(target)


class _told:
    """Turns what the disk says into an error of ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise SavingFailed(f"{self._path}: {error.strerror or error}", field=FIELD) from error
