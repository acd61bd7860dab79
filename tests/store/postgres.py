"""A real PostgreSQL server for the tests: Debian's package, or the one in the pgserver package."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

DEBIAN = Path("/usr/lib/postgresql")
WHERE_FROM = "no PostgreSQL server here: install Debian's postgresql, or pip install pgserver"


def binaries() -> Path | None:
    """The folder that has initdb and postgres."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]), reverse=True)
    if found:
        return found[0].parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    try:
        import pgserver
    except ImportError:
        return None
    return Path(pgserver.__file__).parent / "pginstall" / "bin"


@contextlib.contextmanager
def running(programs: Path, *, fsync: bool = False) -> Iterator[str]:
    """A fresh server on a free port; yields ``postgresql+psycopg://…`` of its first database."""
    folder = Path(tempfile.mkdtemp(prefix="sd-cloud-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    initdb = [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
    with socket.socket() as free:  # not before it is needed: another one may get it meanwhile
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    if not fsync:
        command.append("-F")
    with (folder / "log").open("wb") as said:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, user=user, cwd=folder)
    try:
        _wait(f"postgresql://tests@127.0.0.1:{port}/postgres", server, folder / "log")
        yield f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is wanted any more
        server.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(log.read_text())
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(url).close()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=0.1)
    raise RuntimeError("PostgreSQL did not start: " + log.read_text())


def fresh_database(server_url: str, name: str) -> str:
    """A new, empty database on that server."""
    plain = server_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server_url.rsplit("/", 1)[0] + "/" + name
