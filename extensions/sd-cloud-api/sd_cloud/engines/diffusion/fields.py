"""Typed reading of a JSON payload; every complaint names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_cloud.errors import BadRequest


class Fields:
    """The native payload. Missing and ``null`` fields give the default."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._payload = payload

    def raw(self, name: str) -> Any:
        return self._payload.get(name)

    def text(self, name: str, default: str = "") -> str:
        value = self._payload.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return value

    def whole(self, name: str, default: int, *, least: int | None = None, most: int | None = None) -> int:
        value = self._payload.get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise _wrong(name, value, "a whole number")
        return int(_within(name, int(value), least, most))

    def number(
        self, name: str, default: float | None, *, least: float | None = None, most: float | None = None
    ) -> float | None:
        """A number as a float; the default comes back as it is."""
        value = self._payload.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, value, "a number")
        return float(_within(name, float(value), least, most))

    def flag(self, name: str, default: bool | None) -> bool | None:
        value = self._payload.get(name)
        if value is None:
            return default
        if value in (0, 1):
            return bool(value)
        raise _wrong(name, value, "true or false")

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._payload.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise _wrong(name, value, "a list of strings")
        return tuple(value)


def _within(name: str, value: float, least: float | None, most: float | None) -> float:
    if least is not None and value < least:
        raise BadRequest(f"must be at least {least}, not {value}", field=name)
    if most is not None and value > most:
        raise BadRequest(f"must be at most {most}, not {value}", field=name)
    return value


def _wrong(name: str, value: Any, wanted: str) -> BadRequest:
    return BadRequest(f"must be {wanted}, not {value!r:.80}", field=name)
