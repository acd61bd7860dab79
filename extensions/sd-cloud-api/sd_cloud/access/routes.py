"""The routes of administration: one list, one question."""

from __future__ import annotations

#: Method and path; ``/*`` at its end stands for anything below it. ``interrupt`` and ``skip`` are
#: here because they stop whatever runs, anybody's.
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
    ("POST", "/options"),
    ("POST", "/restart"),
    ("POST", "/models"),
    ("PUT", "/models/*"),
    ("DELETE", "/models/*"),
    ("POST", "/batch_update_sd_resource"),
    ("POST", "/del/sd/functions"),
    ("GET", "/sd-cloud/v1/users"),
    ("POST", "/sd-cloud/v1/users"),
    ("GET", "/sd-cloud/v1/users/*"),
    ("POST", "/sd-cloud/v1/users/*"),
    ("PATCH", "/sd-cloud/v1/users/*"),
    ("DELETE", "/sd-cloud/v1/users/*"),
    ("GET", "/sd-cloud/v1/usage"),
)

#: Every other route of ours that changes something: whoever is let in may use it, for what is theirs.
#: A test holds that each route is in one of the two lists.
USER_ROUTES: tuple[tuple[str, str], ...] = (
    ("POST", "/sdapi/v1/txt2img"),
    ("POST", "/sdapi/v1/img2img"),
    ("POST", "/sdapi/v1/extra-single-image"),
    ("POST", "/sdapi/v1/extra-batch-images"),
    ("POST", "/sdapi/v1/png-info"),
    ("POST", "/sdapi/v1/interrogate"),
    ("POST", "/controlnet/detect"),
    ("POST", "/controlnet/render_openpose_json"),
    ("POST", "/txt2img"),
    ("POST", "/img2img"),
    ("POST", "/extra_images"),
    ("POST", "/tasks/{task_id}/cancellation"),
    ("POST", "/login"),
    ("POST", "/api/v1/services/aigc/text2image/image-synthesis"),
    ("POST", "/api/v1/tasks/{task_id}/cancel"),
    ("POST", "/api/predict/{path:path}"),
    ("PUT", "/api/predict/{path:path}"),
    ("DELETE", "/api/predict/{path:path}"),
    ("POST", "/sd-cloud/v1/tasks/{task_id}/cancel"),
    ("PUT", "/sd-cloud/v1/browse/file"),
    ("DELETE", "/sd-cloud/v1/browse/file"),
    ("POST", "/sd-cloud/v1/browse/folder"),
    ("POST", "/sd-cloud/v1/browse/rename"),
)

_ROUTES = frozenset(route for route in ADMIN_ROUTES if not route[1].endswith("/*"))
_BELOW = tuple((method, path[:-1]) for method, path in ADMIN_ROUTES if path.endswith("/*"))


def needs_admin(method: str, path: str) -> bool:
    """``path`` as the app sees it, without the prefix a proxy or a mount added."""
    if (method, path.rstrip("/")) in _ROUTES:
        return True
    return any(method == given and path.startswith(prefix) for given, prefix in _BELOW)
