"""Users by their password or a token of theirs.

Passwords are kept as argon2id, with the defaults of argon2-cffi; tokens, 32 random bytes that need
no slow hash, as SHA-256. There is no default user and no default password.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from sd_cloud.access.identity import OPERATOR, Caller
from sd_cloud.errors import BadRequest, Unauthorized

if TYPE_CHECKING:
    from argon2 import PasswordHasher

ROLES = ("admin", "user")
SHORTEST_PASSWORD = 8
TOKEN_SECONDS = 30 * 86400.0
#: A name is part of folder names and links.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
#: How long it holds whether there is a user: another process may add the first, or remove the last.
NOBODY_SECONDS = 2.0
#: A password is checked at once; more of them wait, so that guessing costs no memory.
CHECKED_AT_ONCE = 2


class _User(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def password_hash(self) -> str | None: ...
    @property
    def disabled(self) -> bool: ...


class _Table(Protocol):
    """What the store has of users (:class:`sd_cloud.store.users.UserTable`)."""

    async def any(self) -> bool: ...
    async def get(self, name: str) -> Any: ...
    async def of_token(self, digest: str) -> Any: ...
    async def add_token(self, owner: str, digest: str, label: str, expires: float | None) -> None: ...


class Users:
    """The users of a service."""

    def __init__(self, table: _Table) -> None:
        self.table = table
        self._nobody_until = 0.0
        self._somebody = False
        self._checking = asyncio.Semaphore(CHECKED_AT_ONCE)

    async def any(self) -> bool:
        if time.monotonic() > self._nobody_until:
            self._somebody = await self.table.any()
            self._nobody_until = time.monotonic() + NOBODY_SECONDS
        return self._somebody

    async def by_password(self, name: str, password: str) -> Caller | None:
        """Who that is; None for a wrong name, a wrong password and a disabled user alike."""
        found: _User | None = await self.table.get(name)
        kept = found.password_hash if found is not None else None
        async with self._checking:
            # An unknown name costs the same time as a wrong password.
            right = await asyncio.to_thread(_verified, kept or _nobodys(), password)
        return _caller(found) if right and kept is not None else None

    async def by_token(self, token: str) -> Caller | None:
        return _caller(await self.table.of_token(digest(token)))

    async def log_in(self, name: str, password: str) -> str:
        """A fresh token, good for 30 days. Raises Unauthorized."""
        if await self.by_password(name, password) is None:
            raise Unauthorized("wrong user name or password")
        return await self.make_token(name, "login", TOKEN_SECONDS)

    async def make_token(self, owner: str, label: str, seconds: float | None) -> str:
        """A token, told this once; ``seconds`` until it expires, None for never. Raises BadRequest."""
        token = secrets.token_urlsafe(32)
        expires = time.time() + seconds if seconds is not None else None
        await self.table.add_token(owner, digest(token), label, expires)
        return token


def checked_name(name: object) -> str:
    """Raises BadRequest."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == OPERATOR:
        raise BadRequest(
            f"{name!r} can't be a user's name: letters, digits and _.@- only, 64 at most, not {OPERATOR!r}",
            field="name",
        )
    return name


def checked_role(role: object) -> str:
    """Raises BadRequest."""
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{role!r} is not a role; there are {' and '.join(ROLES)}", field="role")
    return role


def hashed(password: str) -> str:
    """Takes tens of milliseconds and 64 MiB, on purpose. Raises BadRequest for a short one."""
    if len(password) < SHORTEST_PASSWORD:
        raise BadRequest(f"a password has {SHORTEST_PASSWORD} characters or more", field="password")
    return _hasher().hash(password)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _caller(user: _User | None) -> Caller | None:
    if user is None or user.disabled:
        return None
    return Caller(user.name, admin=user.role == "admin")


def _verified(kept: str, password: str) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(kept, password)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache(maxsize=1)
def _nobodys() -> str:
    """The hash of a password that nobody has."""
    return _hasher().hash(secrets.token_urlsafe(16))


@lru_cache(maxsize=1)
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()
