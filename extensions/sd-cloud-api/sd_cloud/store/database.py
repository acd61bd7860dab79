"""One database, SQLite or PostgreSQL: where it is, how a transaction is run, who is told of what.

What the two do differently is here and in :mod:`sd_cloud.store.presence`: how a write begins,
how news travels. Every statement is the same for both.

Statements run in threads, never on the event loop. SQLite has one thread for writes, because it
has one writer, and others for reads, which its WAL lets go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from sd_cloud.errors import BadRequest, StoreUnavailable
from sd_cloud.store.mounts import why_refused
from sd_cloud.store.presence import PostgresPresence, Presence, SqlitePresence

log = logging.getLogger(__name__)

T = TypeVar("T")
Heard = Callable[[str], None]

SQLITE_READERS = 2
LOOK_SECONDS = 0.5
POSTGRES_CONNECTIONS = 8
CHANNEL = "sd_cloud"
#: PostgreSQL's word for it, and how often a transaction that met one is begun.
DEADLOCK, DEADLOCK_TRIES = "40P01", 10
FILE_NAME = "sd-cloud.sqlite"
MIGRATIONS = Path(__file__).with_name("migrations")


class DatabaseRefused(OSError):
    """The database can't be used as asked for; the message names the way out."""


class Database:
    """An open database with its tables in place. ``process`` names this process in it."""

    def __init__(self, url: URL, presence: Presence | None = None) -> None:
        self.process = uuid4().hex
        self.sqlite = url.get_backend_name() == "sqlite"
        self.private = self.sqlite and url.database in (None, "", ":memory:")
        self.engine = _sqlite(url, private=self.private) if self.sqlite else _postgres(url)
        self.presence = presence
        self._writing = ThreadPoolExecutor(
            1 if self.sqlite else POSTGRES_CONNECTIONS, thread_name_prefix="sd-cloud store"
        )
        self._reading = (
            ThreadPoolExecutor(SQLITE_READERS, thread_name_prefix="sd-cloud store reader")
            if self.sqlite and not self.private
            else self._writing
        )
        #: Why nothing could be written when that was tried last.
        self.trouble: str | None = None
        self._heard: dict[str, list[tuple[asyncio.AbstractEventLoop, Heard]]] = {}
        self._ears: threading.Thread | None = None
        self._closed = threading.Event()
        _migrate(self.engine, private=self.private)
        if presence is not None:
            presence.appear(self.process)

    # -- transactions -------------------------------------------------------------------------

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction that may write; what it announced is told afterwards.

        It may be run more than once: see :meth:`write_now`. Raises StoreUnavailable.
        """
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._writing, self.write_now, work)
        except OperationalError as error:
            self.trouble = self._said(error, "written")
            log.error("%s", self.trouble)
            raise StoreUnavailable(self.trouble) from error
        self.trouble = None
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The same for one that does not write. Raises StoreUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, self.read_now, work)
        except OperationalError as error:
            raise StoreUnavailable(self._said(error, "read")) from error

    def _said(self, error: OperationalError, what: str) -> str:
        folder = Path(str(self.engine.url.database)).parent
        where = f"in the state dir {folder}" if self.sqlite else "on the server"
        return f"the service's database {where} can't be {what}: {' '.join(str(error.orig).split())}"

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """The same from a thread (the command line, the tests).

        What PostgreSQL ended because it and another transaction waited for each other is done again.
        """
        for _ in range(DEADLOCK_TRIES - 1):
            try:
                return self._written(work)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != DEADLOCK:
                    raise
        return self._written(work)

    def _written(self, work: Callable[[Connection], T]) -> T:
        with self.engine.connect().execution_options(sd_cloud_writes=True) as connection:
            with connection.begin(), _kept_out():
                connection.info["announced"] = []
                result = work(connection)
            for topic, told in connection.info.pop("announced"):
                self._tell(topic, told)
        return result

    def read_now(self, work: Callable[[Connection], T]) -> T:
        with self.engine.connect() as connection, connection.begin(), _kept_out():
            return work(connection)

    # -- news ---------------------------------------------------------------------------------

    def announce(self, connection: Connection, topic: str, told: str = "") -> None:
        """Tell every listener of ``topic``, in all processes, once this transaction is there."""
        if self.sqlite:
            connection.info["announced"].append((topic, told))
        else:
            connection.execute(
                text("SELECT pg_notify(:channel, :payload)"),
                {"channel": CHANNEL, "payload": f"{topic} {told}"},
            )

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Call ``heard`` on this event loop whenever ``topic`` is announced, until the returned
        function is called. After a lost connection it is called once with an empty text."""
        entry = (asyncio.get_running_loop(), heard)
        self._heard.setdefault(topic, []).append(entry)
        if not self.private and self._ears is None:
            hear = self._look if self.sqlite else self._hear
            self._ears = threading.Thread(target=hear, name="sd-cloud listener", daemon=True)
            self._ears.start()

        def stop() -> None:
            if entry in self._heard.get(topic, []):
                self._heard[topic].remove(entry)

        return stop

    def _tell(self, topic: str, told: str) -> None:
        for loop, heard in list(self._heard.get(topic, ())):
            try:
                loop.call_soon_threadsafe(heard, told)
            except RuntimeError:  # that loop is closed: nobody is there to hear it
                log.debug("nobody heard %s", topic)

    def _look(self) -> None:
        """SQLite tells nobody: while another process has the file open, see whether it was written to.

        That is so while one service replaces another, or a command changes something.
        """
        assert self.presence is not None
        seen = None
        with self.engine.connect() as connection:
            while not self._closed.wait(LOOK_SECONDS):
                try:
                    # Changes with every commit that another connection made.
                    version = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
                    connection.rollback()
                    if version != seen and self.presence.others():
                        self._tell_all()
                    seen = version
                except (SQLAlchemyError, OSError) as error:
                    log.warning("looking for what other processes wrote failed (%s); trying again", error)

    def _tell_all(self) -> None:
        """Something may have been missed."""
        for topic in list(self._heard):
            self._tell(topic, "")

    def _hear(self) -> None:
        """PostgreSQL's LISTEN, on a connection of its own; opened again when it breaks."""
        import psycopg

        url = self.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while not self._closed.is_set():
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._tell_all()
                    while not self._closed.is_set():
                        for notice in connection.notifies(timeout=1.0):
                            topic, _, told = notice.payload.partition(" ")
                            self._tell(topic, told)
            except psycopg.Error as error:
                if self._closed.is_set():
                    return
                log.warning("the listening connection to PostgreSQL broke (%s); opening it again", error)
                time.sleep(1.0)

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        self._closed.set()
        self._writing.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        if self._ears is not None:
            self._ears.join(timeout=5.0)
        if self.presence is not None:
            self.presence.leave()
        self.engine.dispose()


@contextmanager
def _kept_out() -> Iterator[None]:
    """What no database takes as a value is the request's fault: a NUL in a name, a number beyond 64 bits."""
    try:
        yield
    except (DataError, OverflowError, UnicodeEncodeError) as error:
        raise BadRequest("a name or number in this request can't be looked up or kept") from error


def in_memory() -> Database:
    """A database of this process alone, gone with it."""
    return Database(make_url("sqlite://"))


def open_database(state_dir: Path, url: str | None = None) -> Database:
    """The service's database: the one at ``url``, else SQLite in ``state_dir``.

    Raises DatabaseRefused for a state dir on a network or FUSE mount, a URL that is neither
    kind, and a server that does not answer.
    """
    if url is None:
        refused = why_refused(state_dir)
        if refused:
            raise DatabaseRefused(refused)
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = state_dir / FILE_NAME
        path.touch(mode=0o600)
        return Database(URL.create("sqlite", database=str(path)), SqlitePresence(state_dir / "processes"))
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"--database-url: {error}") from error
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise DatabaseRefused(
            f"--database-url: {parsed.drivername!r} is not served; give postgresql+psycopg://user@host/name, "
            "or none for SQLite in --state-dir"
        )
    parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        return Database(
            parsed,
            PostgresPresence(parsed.set(drivername="postgresql").render_as_string(hide_password=False)),
        )
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"--database-url: the server can't be used: {error}") from error


def _sqlite(url: URL, *, private: bool) -> Engine:
    if private:
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": 30.0})

    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, record: Any) -> None:
        # sqlite3 must not begin transactions by itself: how one begins is decided below.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        # A committed transaction survives the process at any moment; after a power cut the last
        # few may be missing, the file is whole.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16384")  # KiB

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        writes = connection.get_execution_options().get("sd_cloud_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: URL) -> Engine:
    return create_engine(url, pool_size=POSTGRES_CONNECTIONS, max_overflow=2, pool_pre_ping=True)


def _migrate(engine: Engine, *, private: bool) -> None:
    from sd_cloud.store.schema import metadata

    if private:
        metadata.create_all(engine)
        return
    if _is_current(engine):
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(sd_cloud_writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            # Processes that start at the same moment migrate one after the other.
            connection.execute(text("SELECT pg_advisory_xact_lock(7366436)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _is_current(engine: Engine) -> bool:
    """Whether nothing is to be migrated, as at nearly every start: loading alembic takes 0.1 s."""
    newest = max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    if not inspect(engine).has_table("alembic_version"):
        return False
    with engine.connect() as connection:
        return connection.scalars(text("SELECT version_num FROM alembic_version")).all() == [newest]
