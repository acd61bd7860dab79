"""The standalone app: options, engine, service, native routes, pages."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from sd_cloud import __version__
from sd_cloud.access import Access, Gate
from sd_cloud.app import OPEN_PATHS, attach
from sd_cloud.dialects import sdapi, sdapi_controlnet
from sd_cloud.engines.base import Engine
from sd_cloud.engines.child import ChildEngine
from sd_cloud.engines.diffusion.catalogue import checkpoint_name, scan
from sd_cloud.host.folders import make_folders
from sd_cloud.host.options import Options, frozen_options
from sd_cloud.inputs import Inputs
from sd_cloud.outputs import Outputs
from sd_cloud.safety import Censor
from sd_cloud.service import Service
from sd_cloud.settings import Settings
from sd_cloud.store.sql import open_store

log = logging.getLogger(__name__)

ENGINE = "sd_cloud.engines.diffusion.engine:create"


def build(settings: Settings, *, engine: Engine | None = None) -> FastAPI:
    """The app, its service in ``app.state.sd_cloud``; its lifespan starts and stops both.

    Makes the data dir's folders. Without ``engine``, the embedded one in a child process.
    Raises OptionsUnreadable, DatabaseRefused, OSError.
    """
    make_folders(settings)
    options = Options(
        settings.data_dir,
        settings.options_file,
        frozen_options(settings),
        set_at_start=_chosen_checkpoint(settings),
    )
    engine = engine if engine is not None else ChildEngine(ENGINE, settings, scan=scan)
    service = Service(
        engine,
        store=open_store(settings),
        inputs=Inputs(settings),
        outputs=Outputs(settings),
        safety=Censor().check if settings.enable_nsfw_censor else None,
        options=options.snapshot,
        queue_limit=settings.queue_limit,
        max_delivery=settings.max_delivery,
        job_seconds=settings.job_seconds,
    )
    app = FastAPI(title="sd-cloud-api", version=__version__, lifespan=_lifespan(service, engine))
    # As routes of the app itself, like the webui's own: what wraps them finds them there.
    app.router.routes.extend(sdapi.router(service, options, settings).routes)
    app.router.routes.extend(sdapi_controlnet.router(service, settings).routes)
    _add_internal(app, service)
    access = Access(settings)
    native_job = sdapi.native_job(service, options, settings)
    attach(app, service, settings, access=access, native_job=native_job)
    pages: tuple[str, ...] = ()
    if not settings.nowebui:
        from sd_cloud.host import tabs
        from sd_cloud.host.page import Page

        tabs.mount(app, Page(service, options, settings, native_job))
        pages = tabs.open_paths(settings)
    app.add_middleware(Gate, access=access, open_paths=(*OPEN_PATHS, "/internal/ping", *pages))
    if settings.cors_allow_origins or settings.cors_allow_origins_regex:
        # Outside the gate: a preflight request carries no credentials.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_origin_regex=settings.cors_allow_origins_regex,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_credentials=True,
        )
    return app


def _chosen_checkpoint(settings: Settings) -> dict[str, str]:
    """``--ckpt`` is the checkpoint of requests that name none, whatever config.json says."""
    if settings.ckpt is None:
        return {}
    if not settings.ckpt.is_file():
        log.warning("--ckpt: there is no file %s; the service starts without it", settings.ckpt)
        return {}
    return {"sd_model_checkpoint": checkpoint_name(settings.ckpt, settings.folders.checkpoints)}


def _lifespan(service: Service, engine: Engine) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _begin(engine)
        service.start()
        try:
            yield
        finally:
            await service.stop()
            await asyncio.to_thread(service.store.database.close)
            if isinstance(engine, ChildEngine):
                await engine.stop()

    return lifespan


async def _begin(engine: Engine) -> None:
    if isinstance(engine, ChildEngine):
        engine.start()
    # The first look at the folders, before a request needs it on the event loop.
    await engine.refresh()


def _add_internal(app: FastAPI, service: Service) -> None:
    """The webui's own small routes that monitors of it ask."""

    async def ping() -> Response:
        return JSONResponse({})

    async def sysinfo() -> Response:
        catalogue = service.catalogue()
        return JSONResponse(
            {
                "Platform": platform.platform(),
                "Python": platform.python_version(),
                "Version": __version__,
                "Checkpoints": [one.title for one in catalogue.checkpoints],
                "Queue": await service.queue_length(),
            }
        )

    app.add_api_route("/internal/ping", ping, methods=["GET"], include_in_schema=False)
    app.add_api_route("/internal/sysinfo", sysinfo, methods=["GET"], include_in_schema=False)
