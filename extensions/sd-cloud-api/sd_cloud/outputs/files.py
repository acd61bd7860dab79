"""Files that appear whole under their final name, or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from sd_cloud.outputs.names import Name

#: How many taken numbers are passed over before a folder's numbering is given up.
LIMIT_NUMBER_TRIES = 10_000


def write_new(folder: Path, name: Name, data: bytes) -> Path:
    """Write a file under its name, or under the next free number of its folder. Raises OSError."""
    if not name.numbered:
        return _write_unnumbered(folder, name, data)
    number = next_number(folder, name.basename)
    for taken in range(LIMIT_NUMBER_TRIES):
        file = folder / name.with_number(number + taken)
        if write_whole(file, data, replaces=False):
            return file
    raise OSError(f"{LIMIT_NUMBER_TRIES} numbers from {number} on are taken")


def _write_unnumbered(folder: Path, name: Name, data: bytes) -> Path:
    file = folder / name.fitted(name.stem)
    count = 0
    while not write_whole(file, data, replaces=name.replaces):
        count += 1
        file = folder / name.fitted(f"{name.stem}-{count}")
    return file


def next_number(folder: Path, basename: str) -> int:
    """One more than the highest number that a file's name in the folder begins with, behind ``basename-``."""
    prefix = f"{basename}-" if basename else ""
    highest = -1
    for entry in os.scandir(folder):
        if entry.name.startswith(prefix):
            digits = Path(entry.name[len(prefix) :]).stem.partition("-")[0]
            if digits.isdecimal():
                highest = max(highest, int(digits))
    return highest + 1


def write_whole(file: Path, data: bytes, *, replaces: bool) -> bool:
    """Put a complete file in its place; False when its name is taken and ``replaces`` is not set.

    It is written under another name in the same folder, flushed to the disk (where a full disk or
    a mount that uploads on closing says so) and only then given its name.
    """
    partial = file.parent / f".{uuid.uuid4().hex}.partial"
    try:
        with partial.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if replaces:
            partial.replace(file)
            return True
        return _claim(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _claim(partial: Path, file: Path) -> bool:
    try:
        os.link(partial, file)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as a mounted bucket
        if file.exists():
            return False
        partial.replace(file)
        return True
