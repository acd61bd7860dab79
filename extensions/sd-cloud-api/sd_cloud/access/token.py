"""The token that `--listen` makes when nobody configured one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from sd_cloud.settings import Settings

FILE_NAME = "token"


def made_token(settings: Settings) -> tuple[str | None, bool]:
    """The service's own token and whether it was made just now.

    None unless callers from other machines reach the service and no token, no user and no
    ``--no-auth`` was given. It is kept in ``<state dir>/token``, readable by the owner only, so
    that it outlives a restart. Raises OSError when the state dir can't be written.
    """
    if not settings.exposed or settings.no_auth or settings.tokens or settings.api_auth:
        return None, False
    path = settings.state_dir / FILE_NAME
    kept = _read(path)
    if kept:
        return kept, False
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = secrets.token_urlsafe(32)
    # Written beside and linked into place: another process of the same state dir that starts at
    # this moment either sees the whole token or makes the one that both then use.
    fresh = path.with_name(f".{FILE_NAME}-{os.getpid()}-{secrets.token_hex(4)}")
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.write_text(token + "\n", encoding="ascii")
    try:
        if path.exists():  # empty: a broken one
            path.unlink()
        os.link(fresh, path)
    except FileExistsError:
        return _read(path), False
    finally:
        fresh.unlink()
    return token, True


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
