"""The rows of users and of their tokens. Passwords and tokens are here as hashes only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, insert, select, update

from sd_cloud.errors import BadRequest, NotFound
from sd_cloud.store.database import Database, T
from sd_cloud.store.schema import tokens, users

#: The label of the tokens that a log-in gives.
LOGIN_LABEL = "login"
#: Characters of a digest by which its token is named.
TOKEN_ID = 12


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


@dataclass(frozen=True)
class TokenRow:
    """``id``: the first characters of the token's digest, which tell nothing of the token. Times in
    seconds since the epoch; ``expires`` None: never."""

    id: str
    label: str
    created: float
    expires: float | None


class UserTable:
    """The users of one database. Changes raise BadRequest naming the field, NotFound for no such user."""

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
            .where(tokens.c.digest == digest, _good(now))
        )
        return await self._read(lambda c: _one(c.execute(wanted).one_or_none()))

    async def add(
        self,
        name: str,
        *,
        role: str,
        password: str | None = None,
        waiting_limit: int | None = None,
        daily_pictures: int | None = None,
    ) -> None:
        """``password`` is its hash; without one the user has only tokens."""

        def work(connection: Connection) -> None:
            if connection.execute(select(users.c.name).where(users.c.name == name)).first():
                raise BadRequest(f"there is a user {name!r} already", field="name")
            connection.execute(
                insert(users).values(
                    name=name, role=role, password=password, created=time.time(), disabled=False,
                    waiting_limit=waiting_limit, daily_pictures=daily_pictures,
                )
            )  # fmt: skip

        await self._write(work)

    async def change(self, name: str, **values: Any) -> None:
        """Set ``role``, ``password`` (its hash), ``disabled``, ``waiting_limit``, ``daily_pictures``.

        A new password ends what the old one opened: the tokens that a log-in gave.
        """

        def work(connection: Connection) -> None:
            if values.get("role", "admin") != "admin" or values.get("disabled"):
                _keep_an_admin(connection, name)
            if not connection.execute(update(users).where(users.c.name == name).values(**values)).rowcount:
                raise _no_user(name)
            if "password" in values:
                connection.execute(
                    delete(tokens).where(tokens.c.owner == name, tokens.c.label == LOGIN_LABEL)
                )

        await self._write(work)

    async def remove(self, name: str) -> None:
        """The user and the tokens; what they made stays until it expires."""

        def work(connection: Connection) -> None:
            _keep_an_admin(connection, name)
            connection.execute(delete(tokens).where(tokens.c.owner == name))
            if not connection.execute(delete(users).where(users.c.name == name)).rowcount:
                raise _no_user(name)

        await self._write(work)

    async def add_token(self, owner: str, digest: str, label: str, expires: float | None) -> None:
        def work(connection: Connection) -> None:
            if connection.execute(select(users.c.name).where(users.c.name == owner)).first() is None:
                raise _no_user(owner)
            now = time.time()
            connection.execute(delete(tokens).where(tokens.c.expires < now))
            connection.execute(
                insert(tokens).values(digest=digest, owner=owner, label=label, created=now, expires=expires)
            )

        await self._write(work)

    async def tokens_of(self, owner: str) -> list[TokenRow]:
        """The tokens that are good at this moment, the oldest first."""
        now = time.time()

        def work(connection: Connection) -> list[TokenRow]:
            if connection.execute(select(users.c.name).where(users.c.name == owner)).first() is None:
                raise _no_user(owner)
            wanted = select(tokens).where(tokens.c.owner == owner, _good(now)).order_by(tokens.c.created)
            return [
                TokenRow(row.digest[:TOKEN_ID], row.label, row.created, row.expires)
                for row in connection.execute(wanted)
            ]

        return await self._read(work)

    async def remove_token(self, owner: str, token_id: str) -> None:
        def work(connection: Connection) -> None:
            gone = connection.execute(
                delete(tokens).where(
                    tokens.c.owner == owner, func.substr(tokens.c.digest, 1, TOKEN_ID) == token_id
                )
            ).rowcount
            if not gone:
                raise NotFound(f"{owner} has no token {token_id!r}", field="token")

        await self._write(work)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(work)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        return await self._database.write(work)


def _good(now: float) -> ColumnElement[bool]:
    return func.coalesce(tokens.c.expires, now + 1) > now


def _no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name!r}", field="name")


def _keep_an_admin(connection: Connection, name: str) -> None:
    """Whoever is the only admin among several users stays one, or nobody could manage the others."""
    found = connection.execute(select(users.c.name, users.c.role, users.c.disabled).with_for_update()).all()
    admins = {one.name for one in found if one.role == "admin" and not one.disabled}
    if admins == {name} and len(found) > 1:
        raise BadRequest(f"{name} is the only admin; make another user one first", field="role")


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
