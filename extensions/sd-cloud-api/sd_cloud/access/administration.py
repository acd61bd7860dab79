"""Users as an admin manages them, over HTTP and on the command line alike: what is given is checked,
passwords are hashed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from sd_cloud.access.users import Users, checked_name, checked_role, hashed
from sd_cloud.errors import BadRequest, NotFound

#: What of a user can be set.
FIELDS = ("role", "password", "disabled", "waiting_limit", "daily_pictures")
LONGEST_LABEL = 100
MOST = 10**9


class _Table(Protocol):
    async def any(self) -> bool: ...
    async def get(self, name: str) -> Any: ...
    async def of_token(self, digest: str) -> Any: ...
    async def all(self) -> list[Any]: ...
    async def add(self, name: str, *, role: str) -> None: ...
    async def change(self, name: str, **values: Any) -> None: ...
    async def remove(self, name: str) -> None: ...
    async def add_token(self, owner: str, digest: str, label: str, expires: float | None) -> None: ...
    async def tokens_of(self, owner: str) -> list[Any]: ...
    async def remove_token(self, owner: str, token_id: str) -> None: ...


class Administration:
    """Every method raises BadRequest naming the field, and NotFound for a user who is not there."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        self._users = Users(table)

    async def all(self) -> list[dict[str, Any]]:
        return [_told(one) for one in await self._table.all()]

    async def one(self, name: str) -> dict[str, Any]:
        found = await self._table.get(name)
        if found is None:
            raise NotFound(f"there is no user {name!r}", field="name")
        return _told(found)

    async def add(self, name: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        values = {"role": "user", **await _checked(fields)}
        disabled = values.pop("disabled", False)
        await self._table.add(checked_name(name), **values)
        if disabled:
            await self._table.change(name, disabled=True)
        return await self.one(name)

    async def change(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        values = await _checked(fields)
        if not values:
            raise BadRequest(f"nothing to change; there are {', '.join(FIELDS)}", field="body")
        await self._table.change(name, **values)
        return await self.one(name)

    async def remove(self, name: str) -> None:
        await self._table.remove(name)

    async def tokens(self, name: str) -> list[dict[str, Any]]:
        return [
            {"id": one.id, "label": one.label, "created": one.created, "expires": one.expires}
            for one in await self._table.tokens_of(name)
        ]

    async def make_token(self, name: str, label: Any, days: Any) -> str:
        """A token, told this once. ``days`` until it expires; None: never."""
        if not isinstance(label, str) or not 0 < len(label) <= LONGEST_LABEL:
            raise BadRequest(f"a label has 1 to {LONGEST_LABEL} characters", field="label")
        if days is not None and (isinstance(days, bool) or not isinstance(days, int | float) or not days > 0):
            raise BadRequest("expected a number of days above 0, or none for ever", field="days")
        return await self._users.make_token(name, label, None if days is None else min(days, MOST) * 86400.0)

    async def revoke_token(self, name: str, token_id: str) -> None:
        await self._table.remove_token(name, token_id)


async def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The columns' values of what was given."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise BadRequest(f"no such field; there are {', '.join(FIELDS)}", field=name)
        if name == "role":
            values[name] = checked_role(value)
        elif name == "disabled":
            if not isinstance(value, bool):
                raise BadRequest("expected true or false", field=name)
            values[name] = value
        elif name == "password":
            if value is not None and not isinstance(value, str):
                raise BadRequest("expected a string, or null for tokens only", field=name)
            values[name] = None if value is None else await asyncio.to_thread(hashed, value)
        else:
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST
            ):
                raise BadRequest(f"expected a number from 0 to {MOST}, or null for no limit", field=name)
            values[name] = value
    return values


def _told(user: Any) -> dict[str, Any]:
    return {
        "name": user.name,
        "role": user.role,
        "disabled": user.disabled,
        "password": user.password_hash is not None,
        "tokens": user.tokens,
        "waiting_limit": user.waiting_limit,
        "daily_pictures": user.daily_pictures,
    }
