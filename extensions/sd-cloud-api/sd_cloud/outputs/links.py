"""Links to saved pictures that need no token: signed with HMAC-SHA256, and they expire.

A link is ``<public url>/sd-cloud/v1/files/<token>/<file name>``. The token is base64url, without
padding, of one version byte, the expiry (unix seconds, 8 bytes big-endian), the MAC (32 bytes) and
then ``owner NUL path``; the MAC covers everything else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import struct
import time
from pathlib import Path
from urllib.parse import quote

from sd_cloud.errors import NotAllowed, TaskNotFound
from sd_cloud.roots import Roots, resolved
from sd_cloud.secret_file import kept_secret
from sd_cloud.settings import Settings

ROUTE = "/sd-cloud/v1/files"
_VERSION = 1
_HEAD = struct.Struct(">BQ32s")


class Links:
    """Makes and checks our links. The secret is read, or made, when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._roots = Roots.of(settings)
        self._secret: bytes | None = None

    def sign(self, path: Path, owner: str, expires: float | None = None) -> str:
        """The link to a file; ``expires`` is a unix time, by default ``link_seconds`` from now."""
        until = int(time.time() + self._settings.link_seconds if expires is None else expires)
        told = b"\0".join((owner.encode(), os.fsencode(path)))
        token = _HEAD.pack(_VERSION, until, self._mac(until, told)) + told
        text = base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")
        return f"{base_url(self._settings)}{ROUTE}/{text}/{quote(path.name)}"

    def verify(self, token: str, name: str) -> Path:
        """The file that a link of ours leads to.

        Raises NotAllowed for a link that is not ours, was changed or has expired, TaskNotFound
        when its file is no longer there.
        """
        until, told = self._opened(token)
        if until < time.time():
            raise NotAllowed("this link has expired; ask for the task's result again")
        path = Path(os.fsdecode(told.split(b"\0", 1)[1]))
        if path.name != name:
            raise NotAllowed("this link is not one of ours")
        place = resolved(path)
        if not self._roots.holds(place):
            raise NotAllowed("this link leads outside the output folders")
        if not place.is_file():
            raise TaskNotFound("the picture behind this link is no longer there")
        return place

    def _opened(self, token: str) -> tuple[int, bytes]:
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            version, until, mac = _HEAD.unpack_from(raw)
        except (ValueError, binascii.Error, struct.error) as error:
            raise NotAllowed("this link is not one of ours") from error
        told = raw[_HEAD.size :]
        if version != _VERSION or not hmac.compare_digest(mac, self._mac(until, told)):
            raise NotAllowed("this link is not one of ours")
        return int(until), told

    def _mac(self, until: int, told: bytes) -> bytes:
        if self._secret is None:
            self._secret = link_secret(self._settings.state_dir)
        return hmac.digest(self._secret, struct.pack(">BQ", _VERSION, until) + told, hashlib.sha256)


def base_url(settings: Settings) -> str:
    """What every link of ours begins with: ``--public-url``, else this host and port.

    Never the request's own Host header, which its sender chooses.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    subpath = settings.subpath.strip("/")
    scheme = "https" if settings.tls_certfile else "http"
    return f"{scheme}://{host}:{settings.port}" + (f"/{subpath}" if subpath else "")


def link_secret(state_dir: Path) -> bytes:
    """The secret that links are signed with, made once per state dir. Raises ValueError."""
    return kept_secret(state_dir / "link-secret")
