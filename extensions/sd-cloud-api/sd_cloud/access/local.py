""" "Local admin without a token": the rule, and nothing beside it.

A loopback peer alone proves little: a reverse proxy on this machine is one, and so is a browser
that a foreign page talks through (directly, or by a name that was re-bound to 127.0.0.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

FORWARDING_HEADERS = ("forwarded", "x-real-ip")
FORWARDING_PREFIX = "x-forwarded-"


def is_local(headers: Mapping[str, str], peer: str | None, origins: Iterable[str] = ()) -> bool:
    """A loopback peer with a loopback ``Host``, nothing forwarded, and no foreign ``Origin``.

    ``headers`` have lower-case names. ``origins`` are the operator's own beside the request's.
    """
    if not _is_loopback(peer or "") or not _is_loopback(_host_name(headers.get("host", ""))):
        return False
    if any(name in FORWARDING_HEADERS or name.startswith(FORWARDING_PREFIX) for name in headers):
        return False
    return is_own_origin(headers, origins)


def is_own_origin(headers: Mapping[str, str], origins: Iterable[str] = ()) -> bool:
    """No ``Origin`` at all, the one that ``Host`` names, or one of ``origins``."""
    origin = headers.get("origin")
    if origin is None:
        return True
    parts = urlsplit(origin)
    if parts.scheme in ("http", "https") and parts.netloc and parts.netloc == headers.get("host"):
        return True
    return origin.rstrip("/") in {one.rstrip("/") for one in origins}


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
