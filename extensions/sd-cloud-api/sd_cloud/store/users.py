"""The rows of users and of their tokens. Passwords and tokens are here as hashes only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from sd_cloud.errors import BadRequest
from sd_cloud.store.database import Database, T
from sd_cloud.store.schema import tokens, users


@dataclass(frozen=True)
class UserRow:
    """``waiting_limit``: tasks that wait or run; ``daily_pictures``: per day in UTC. None: no limit."""

    name: str
    role: str
    password_hash: str | None = None
    disabled: bool = False
    waiting_limit: int | None = None
    daily_pictures: int | None = None
    tokens: int = 0


class UserTable:
    """The users of one database. Changes raise BadRequest naming the field."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def any(self) -> bool:
        return await self._read(lambda c: c.execute(select(users.c.name).limit(1)).first() is not None)

    async def get(self, name: str) -> UserRow | None:
        return await self._read(
            lambda c: _one(c.execute(_listed().where(users.c.name == name)).one_or_none())
        )

    async def all(self) -> list[UserRow]:
        return await self._read(lambda c: [_user(row) for row in c.execute(_listed().order_by(users.c.name))])

    async def of_token(self, digest: str) -> UserRow | None:
        """Whose token that is, unless it has expired."""
        now = time.time()
        wanted = (
            _listed()
            .join(tokens, tokens.c.owner == users.c.name)
            .where(tokens.c.digest == digest, func.coalesce(tokens.c.expires, now + 1) > now)
        )
        return await self._read(lambda c: _one(c.execute(wanted).one_or_none()))

    async def add(self, user: UserRow) -> None:
        def work(connection: Connection) -> None:
            if connection.execute(select(users.c.name).where(users.c.name == user.name)).first():
                raise BadRequest(f"there is a user {user.name!r} already", field="name")
            connection.execute(
                insert(users).values(
                    name=user.name,
                    role=user.role,
                    password=user.password_hash,
                    created=time.time(),
                    disabled=user.disabled,
                    waiting_limit=user.waiting_limit,
                    daily_pictures=user.daily_pictures,
                )
            )

        await self._write(work)

    async def change(self, name: str, **values: Any) -> None:
        """Set ``role``, ``password`` (its hash), ``disabled``, ``waiting_limit``, ``daily_pictures``."""

        def work(connection: Connection) -> None:
            if not connection.execute(update(users).where(users.c.name == name).values(**values)).rowcount:
                raise BadRequest(f"there is no user {name!r}", field="name")

        await self._write(work)

    async def remove(self, name: str) -> None:
        """The user and the tokens; what they made stays until it expires."""

        def work(connection: Connection) -> None:
            connection.execute(delete(tokens).where(tokens.c.owner == name))
            if not connection.execute(delete(users).where(users.c.name == name)).rowcount:
                raise BadRequest(f"there is no user {name!r}", field="name")

        await self._write(work)

    async def add_token(self, owner: str, digest: str, label: str, expires: float | None) -> None:
        def work(connection: Connection) -> None:
            if connection.execute(select(users.c.name).where(users.c.name == owner)).first() is None:
                raise BadRequest(f"there is no user {owner!r}", field="name")
            now = time.time()
            connection.execute(delete(tokens).where(tokens.c.expires < now))
            connection.execute(
                insert(tokens).values(digest=digest, owner=owner, label=label, created=now, expires=expires)
            )

        await self._write(work)

    async def remove_tokens(self, owner: str) -> int:
        return await self._write(
            lambda c: int(c.execute(delete(tokens).where(tokens.c.owner == owner)).rowcount)
        )

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(work)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        return await self._database.write(work)


def _listed() -> Select[Any]:
    own = tokens.alias("own_tokens")
    counted = select(func.count()).select_from(own).where(own.c.owner == users.c.name)
    return select(users, counted.scalar_subquery().label("tokens"))


def _one(row: Row[Any] | None) -> UserRow | None:
    return _user(row) if row is not None else None


def _user(row: Row[Any]) -> UserRow:
    return UserRow(
        row.name, row.role, row.password, row.disabled, row.waiting_limit, row.daily_pictures, row.tokens
    )
