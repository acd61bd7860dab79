"""Hashes of model files, each computed once and remembered by path, time and size.

The webui names files by three kinds of hash and infotexts carry them, so they are the same here:

* ``sha256`` of the whole file: checkpoints and VAEs (first 10 digits), embeddings (first 12);
* ``addnet``: sha256 of what follows a safetensors header, so that editing the metadata does not
  change it; LoRAs (first 12). Its origin is kohya-ss/sd-scripts, ``library/train_util.py``;
* ``legacy``: 8 digits over 64 KiB at 1 MiB, in the names of ControlNet models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

BLOCK_BYTES = 1024 * 1024
LEGACY_OFFSET_BYTES = 0x100000
LEGACY_LENGTH_BYTES = 0x10000


def legacy_hash(path: Path) -> str:
    """The webui's oldest hash, 8 digits; equal for all files shorter than 1 MiB."""
    with path.open("rb") as file:
        file.seek(LEGACY_OFFSET_BYTES)
        return hashlib.sha256(file.read(LEGACY_LENGTH_BYTES)).hexdigest()[:8]


class HashBook:
    """Remembered hashes in one JSON file, shared by the API and the engine processes.

    ``compute=False`` (``--no-hashing``) answers only from memory. Two processes that write at the
    same moment can lose an entry, which costs computing it again; they cannot break the file.
    """

    def __init__(self, path: Path, *, compute: bool = True) -> None:
        self._path = path
        self._compute = compute
        self._entries: dict[str, dict[str, Any]] = {}
        self._read_at_ns = -1

    def known(self, file: Path, kind: str = "sha256") -> str | None:
        """The remembered hash, or None when the file is gone, changed or never hashed."""
        mark = _mark(file)
        if mark is None:
            return None
        self._refresh()
        entry = self._entries.get(_key(kind, file))
        if entry is None or [entry.get("mtime_ns"), entry.get("bytes")] != list(mark):
            return None
        found = entry.get("hash")
        return found if isinstance(found, str) else None

    def sha256(self, file: Path) -> str | None:
        """Hash of the whole file: 64 digits, or None with ``--no-hashing`` and none remembered."""
        return self._hash(file, "sha256")

    def addnet(self, file: Path) -> str | None:
        """As :meth:`sha256`, for LoRAs: a ``.safetensors`` counts without its header."""
        return self._hash(file, "addnet" if file.suffix.lower() == ".safetensors" else "sha256")

    def _hash(self, file: Path, kind: str) -> str | None:
        found = self.known(file, kind)
        if found is not None or not self._compute:
            return found
        mark = _mark(file)
        if mark is None:
            return None
        with file.open("rb") as stream:
            if kind == "addnet":
                stream.seek(8 + int.from_bytes(stream.read(8), "little"))
            digest = _sha256_of_rest(stream)
        self._remember(_key(kind, file), {"mtime_ns": mark[0], "bytes": mark[1], "hash": digest})
        return digest

    def _refresh(self) -> None:
        try:
            changed_ns = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._read_at_ns:
            return
        try:
            entries = json.loads(self._path.read_text("utf-8"))
        except ValueError:
            log.warning("%s is not JSON; the hashes in it will be computed again", self._path)
            entries = {}
        self._entries = {**self._entries, **entries} if isinstance(entries, dict) else self._entries
        self._read_at_ns = changed_ns

    def _remember(self, key: str, entry: dict[str, Any]) -> None:
        self._refresh()
        self._entries[key] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".hashes-", suffix=".json")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._entries, file, indent=0)
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _key(kind: str, file: Path) -> str:
    return f"{kind}:{file}"


def _mark(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _sha256_of_rest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
