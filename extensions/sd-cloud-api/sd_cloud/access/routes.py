"""The routes of administration: one list, one question."""

from __future__ import annotations

#: Method and path. ``interrupt`` and ``skip`` are here because they stop whatever runs, anybody's.
ADMIN_ROUTES: tuple[tuple[str, str], ...] = (
    ("POST", "/sdapi/v1/options"),
    ("POST", "/sdapi/v1/interrupt"),
    ("POST", "/sdapi/v1/skip"),
    ("POST", "/sdapi/v1/unload-checkpoint"),
    ("POST", "/sdapi/v1/reload-checkpoint"),
    ("POST", "/sdapi/v1/refresh-checkpoints"),
    ("POST", "/sdapi/v1/refresh-vae"),
    ("POST", "/sdapi/v1/refresh-embeddings"),
    ("POST", "/sdapi/v1/refresh-loras"),
    ("POST", "/sdapi/v1/create/embedding"),
    ("POST", "/sdapi/v1/create/hypernetwork"),
    ("POST", "/sdapi/v1/train/embedding"),
    ("POST", "/sdapi/v1/train/hypernetwork"),
    ("POST", "/sdapi/v1/server-kill"),
    ("POST", "/sdapi/v1/server-restart"),
    ("POST", "/sdapi/v1/server-stop"),
    ("GET", "/sdapi/v1/cmd-flags"),
    ("GET", "/sdapi/v1/memory"),
)

_ROUTES = frozenset(ADMIN_ROUTES)


def needs_admin(method: str, path: str) -> bool:
    """``path`` as the app sees it, without the prefix a proxy or a mount added."""
    return (method, path.rstrip("/")) in _ROUTES
