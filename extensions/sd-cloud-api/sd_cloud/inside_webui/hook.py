"""Hang the service on the webui's app, with the webui's own endpoints as its engine."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

from sd_cloud.access import Access
from sd_cloud.access.token import made_token
from sd_cloud.app import attach
from sd_cloud.dialects import eas
from sd_cloud.engines import webui_forge
from sd_cloud.engines.webui import Endpoint, WebuiEngine
from sd_cloud.inputs import Inputs
from sd_cloud.inside_webui.native_job import native_job
from sd_cloud.job import Kind
from sd_cloud.outputs import Outputs
from sd_cloud.request_log import RequestLog
from sd_cloud.service import Service
from sd_cloud.settings import Settings
from sd_cloud.settings_from_flags import settings_of
from sd_cloud.store.sql import open_store

log = logging.getLogger(__name__)

EXTRAS_PATH = "/sdapi/v1/extra-single-image"


@dataclass
class _Hooked:
    app: FastAPI
    service: Service
    engine: WebuiEngine
    loop: asyncio.AbstractEventLoop | None = None


#: What the app that serves now is hooked with. The webui has one app at a time.
_hooked: _Hooked | None = None


def hook(app: FastAPI) -> None:
    """Attach to the app. Idempotent; nothing to do without ``--api``."""
    global _hooked
    settings = webuis_settings()
    native = eas.native_routes(app)
    if not native:
        log.warning("sd-cloud-api: this webui serves no API; start it with --api (or --nowebui)")
        return
    if any(eas.is_wrapped(route) for route in native):
        return  # this app has us already
    unhook()
    if webui_forge.is_forge():
        webui_forge.models_follow_options()
    engine = WebuiEngine(_endpoints(app))
    service = _service(settings, engine)
    attach(
        app,
        service,
        settings,
        access=Access(settings),
        native_access=_native_access(settings),
        native_job=native_job,
    )
    _log_requests(app, settings)
    _tell_token(settings)
    _hooked = _Hooked(app, service, engine)
    # Reached where the app is not serving yet (--nowebui); in the page's mode the service starts
    # with the first request that needs it.
    app.router.on_startup.append(service.start)
    app.router.on_shutdown.append(service.stop)


def unhook() -> None:
    """Let go of the app that was hooked last: its server has ended, and its event loop with it."""
    global _hooked
    if _hooked is None:
        return
    gone, _hooked = _hooked, None
    gone.engine.close()
    gone.service.store.database.close()


def webuis_settings() -> Settings:
    """Our settings from the webui's own command line, for the data dir that it works in."""
    from modules import shared
    from modules.paths import data_path

    return settings_of({**vars(shared.cmd_opts), "data_dir": data_path})


def _service(settings: Settings, engine: WebuiEngine) -> Service:
    return Service(
        engine,
        store=open_store(settings),
        inputs=Inputs(settings),
        outputs=Outputs(settings),
        options=_options,
        queue_limit=settings.queue_limit,
        max_delivery=settings.max_delivery,
        job_seconds=settings.job_seconds,
    )


def _options() -> dict[str, Any]:
    from modules.shared import opts

    return dict(opts.data)


def _endpoints(app: FastAPI) -> dict[Kind, Endpoint]:
    kinds: dict[str, Kind] = {**eas.ROUTES, EXTRAS_PATH: "extras"}
    routes = [r for r in app.router.routes if isinstance(r, APIRoute) and r.path in kinds]
    return {kinds[route.path]: Endpoint(route.endpoint, _model(route)) for route in routes}


def _model(route: APIRoute) -> Any:
    """The pydantic model that the route takes as its body."""
    body = route.body_field
    if body is None:
        raise RuntimeError(f"{route.path} of this webui takes no body")
    return getattr(body, "type_", None) or body.field_info.annotation


def _native_access(settings: Settings) -> Access:
    """Who may use the native routes is the webui's to say, unless ``--token`` says more.

    The wrapped route keeps its ``--api-auth`` dependency in front of us.
    """
    if settings.tokens:
        return Access(settings)
    return Access(replace(settings, no_auth=True, tokens=(), api_auth=()))


def _log_requests(app: FastAPI, settings: Settings) -> None:
    """``--time-log``. The webui has a log of its own for ``--api-log``."""
    if not settings.time_log:
        return
    logger = logging.getLogger("sd_cloud.time_log")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.propagate = False
    # Not by add_middleware, which refuses an app that serves already.
    app.user_middleware.insert(0, Middleware(RequestLog, by_time=True, by_api=False))
    app.middleware_stack = None


def _tell_token(settings: Settings) -> None:
    token, is_fresh = made_token(settings)
    if token and is_fresh:
        # Once, and to standard output: a log is kept and read by many.
        print(
            "sd-cloud-api: its own routes want a token from other machines. It is shown once and kept in "
            f"{settings.state_dir / 'token'}:\n  Authorization: {token}",
            flush=True,
        )
