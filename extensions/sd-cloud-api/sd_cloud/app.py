"""Hang everything of ours on a FastAPI app: the webui's own, or the embedded host's."""

from __future__ import annotations

import asyncio
import base64
import logging

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response

from sd_cloud import __version__
from sd_cloud.access import Access, Users
from sd_cloud.dialects import (
    administration,
    dashscope,
    eas,
    following,
    pages,
    queue,
    tasks,
    tasks_admin,
    tasks_models,
)
from sd_cloud.dialects.asked import Seam
from sd_cloud.dialects.callbacks import Callbacks
from sd_cloud.dialects.pages import told
from sd_cloud.dialects.replay import Replay
from sd_cloud.dialects.task_flag import TaskFlag
from sd_cloud.outputs.links import Links
from sd_cloud.service import Service
from sd_cloud.settings import Settings
from sd_cloud.store.users import UserTable

log = logging.getLogger(__name__)

#: Paths of ours that need no token (they tell nothing, or carry their own signature), and those of
#: dialects that ask for the caller themselves, to refuse in their own words.
OPEN_PATHS = (
    *("/healthz", "/readyz", "/sd-cloud/v1/files/"),
    *("/txt2img", "/img2img", "/extra_images", "/tasks/", "/models", "/models/", "/login", "/options"),
    *("/restart", "/list/sdapi/", "/batch_update_sd_resource", "/del/sd/functions"),
    *("/api/v1/", "/api/predict/"),
)


def attach(
    app: FastAPI,
    service: Service,
    settings: Settings,
    *,
    access: Access,
    native_access: Access | None = None,
    native_job: eas.NativeJob = eas.plain_native_job,
) -> None:
    """Add our routes and put the EAS parameters in front of the native ones. Idempotent.

    ``access`` says who may use the routes we add; ``native_access`` the wrapped native ones, where
    another rule holds for them. ``native_job`` makes the job of a native request.
    """
    eas.wrap(app, service, native_access or access, native_job)
    if getattr(app.state, "sd_cloud", None) is not None:
        return
    app.state.sd_cloud = service
    app.state.sd_cloud_access = access
    access.users = Users(UserTable(service.store.database))
    seam = Seam(app, service, settings, access, native_job)
    service.replay = Replay(app, authorization=_webuis_own(settings))
    for dialect in (tasks, tasks_models, tasks_admin, dashscope, queue, pages, following, administration):
        # In front: one of them shares its path with Gradio.
        app.router.routes[0:0] = dialect.router(seam).routes
    service.beside.append(Callbacks(seam).run)
    # Not by add_middleware, which refuses an app that serves already, as a webui does by now; without
    # its stack it builds one again at the next request.
    app.user_middleware.insert(0, Middleware(TaskFlag, seam=seam))
    app.middleware_stack = None
    links = Links(settings)

    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def readyz() -> Response:
        reason = await why_not_ready(service)
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    async def file(token: str, name: str) -> Response:
        path = await asyncio.to_thread(links.verify, token, name)
        return FileResponse(path, filename=name, content_disposition_type="inline")

    app.add_api_route("/healthz", healthz, methods=["GET"], include_in_schema=False)
    app.add_api_route("/readyz", readyz, methods=["GET"], include_in_schema=False)
    app.add_api_route(
        "/sd-cloud/v1/files/{token}/{name}", told(file), methods=["GET", "HEAD"], include_in_schema=False
    )


def _webuis_own(settings: Settings) -> str | None:
    """What the webui's own ``--api-auth`` wants to see on a call that we replay to it."""
    if not settings.api_auth:
        return None
    user, password = settings.api_auth[0]
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


async def why_not_ready(service: Service) -> str | None:
    """What stands between this service and a picture; None when nothing does."""
    if service.closing:
        return "the service is stopping"
    if trouble := await service.store.trouble():
        return trouble
    if not getattr(service.engine, "ready", True):
        trouble = getattr(service.engine, "trouble", None)
        return f"the engine does not start: {trouble}; see the log" if trouble else "the engine is starting"
    if not (await asyncio.to_thread(service.catalogue)).checkpoints:
        return "no checkpoint is installed; put one into models/Stable-diffusion of the data dir"
    return None
