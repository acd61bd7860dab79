"""The secret that calls back are signed with."""

from __future__ import annotations

import base64
import binascii

from sd_cloud.secret_file import kept_secret
from sd_cloud.settings import Settings

FILE_NAME = "webhook-secret"
#: How Standard Webhooks writes a secret: this, and base64 of 24 to 64 bytes.
PREFIX = "whsec_"


def webhook_secret(settings: Settings) -> bytes:
    """``--webhook-secret``, else the one in the state dir. Raises ValueError, OSError."""
    if settings.webhook_secret is not None:
        return decoded(settings.webhook_secret)
    return kept_secret(settings.state_dir / FILE_NAME)


def decoded(text: str) -> bytes:
    """Raises ValueError with a sentence."""
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(PREFIX) or not 24 <= len(secret) <= 64:
        raise ValueError(f"a secret is {PREFIX} and the base64 of 24 to 64 random bytes")
    return secret


def encoded(secret: bytes) -> str:
    return PREFIX + base64.b64encode(secret).decode("ascii")
