"""Which processes of a service are alive: what a dead one was running must be delivered again.

No heartbeats: a lock that ends with its holder says it at once, ``kill -9`` included. A file lock
beside SQLite, an advisory lock of the session in PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol


class Presence(Protocol):
    def appear(self, process: str) -> None:
        """From now on ``process`` is alive, for as long as this process is."""
        ...

    def dead(self, processes: Iterable[str]) -> set[str]:
        """Those of ``processes`` that are not alive."""
        ...

    def others(self) -> bool:
        """Is another process alive?"""
        ...

    def leave(self) -> None: ...


class SqlitePresence:
    """One locked file per process below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: IO[bytes] | None = None

    def appear(self, process: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / process
        while self._own is None:
            held = path.open("wb")
            fcntl.flock(held, fcntl.LOCK_EX)  # who looks whether it is alive has it for a moment
            if path.exists() and path.stat().st_ino == os.fstat(held.fileno()).st_ino:
                self._own = held
            else:
                held.close()  # it was taken for a dead one's before it was locked
        for other in self._folder.iterdir():
            if other.name != process:
                self._remove_dead(other)

    def dead(self, processes: Iterable[str]) -> set[str]:
        return {one for one in processes if self._is_dead(self._folder / one)}

    def others(self) -> bool:
        return any(not self._is_dead(one) for one in self._folder.iterdir() if not self._is_own(one))

    def _is_own(self, path: Path) -> bool:
        return self._own is not None and Path(self._own.name) == path

    def leave(self) -> None:
        if self._own is not None:
            self._own.close()
            Path(self._own.name).unlink(missing_ok=True)
            self._own = None

    def _remove_dead(self, path: Path) -> None:
        try:
            with path.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # while it is held: nobody can make it theirs meanwhile
        except (FileNotFoundError, BlockingIOError):
            pass

    def _is_dead(self, path: Path) -> bool:
        if self._is_own(path):
            return False
        try:
            with path.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True


class PostgresPresence:
    """One session-level advisory lock per process, on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None
        self._process = ""

    def appear(self, process: str) -> None:
        self._process = process
        self._connect()

    def dead(self, processes: Iterable[str]) -> set[str]:
        import psycopg

        others = [one for one in processes if one != self._process]
        if not others:
            return set()
        try:
            return {one for one in others if self._try(one)}
        except psycopg.Error:
            # The server dropped the session, and with it our own lock: take it again first.
            self._connect()
            return {one for one in others if self._try(one)}

    def others(self) -> bool:
        return True  # not asked for: PostgreSQL tells what others do

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        import psycopg

        self._connection = psycopg.connect(self._url, autocommit=True, application_name="sd-cloud presence")
        self._connection.execute("SELECT pg_advisory_lock(%s)", (_key(self._process),))

    def _try(self, process: str) -> bool:
        key = _key(process)
        (taken,) = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        if taken:
            self._connection.execute("SELECT pg_advisory_unlock(%s)", (key,))
        return bool(taken)


def _key(process: str) -> int:
    return int.from_bytes(hashlib.sha256(process.encode()).digest()[:8], "big", signed=True)
