"""Days and moments as people write them, in UTC."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

from sd_cloud.errors import BadRequest


def moment(text: str, *, field: str, ends: bool = False) -> float:
    """Seconds since the epoch of ``2026-11-01`` or ``2026-11-01T08:00[+02:00]``; UTC where it says
    nothing else. ``ends``: a day is meant to its end. Raises BadRequest."""
    try:
        if len(text) == len("2026-11-01"):
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), timezone.utc)
            return (day + timedelta(days=1) if ends else day).timestamp()
        given = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (given if given.tzinfo else given.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{text[:40]!r} is neither a day (2026-11-01) nor a moment (2026-11-01T08:00)", field=field
        ) from None
