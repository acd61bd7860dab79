"""What the webui's callbacks do with us. Called by ``scripts/sd_cloud_api.py``, in the webui only."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from sd_cloud.access import Access
from sd_cloud.app import attach
from sd_cloud.dialects import eas
from sd_cloud.engines.webui import Endpoint, WebuiEngine
from sd_cloud.inputs import Inputs
from sd_cloud.outputs import Outputs
from sd_cloud.service import Service
from sd_cloud.settings import Settings
from sd_cloud.settings_from_flags import settings_of
from sd_cloud.store.sql import open_store

log = logging.getLogger(__name__)


def app_started(demo: Any, app: FastAPI) -> None:
    """The webui's ``on_app_started``: hook this app. ``demo`` is None with ``--nowebui``.

    Called again, with another app, after "Reload UI". A failure of ours is logged by name and
    leaves the webui as it is.
    """
    try:
        hook(app)
    except Exception:
        log.exception("sd-cloud-api could not be attached; the webui goes on without it")


def hook(app: FastAPI) -> None:
    """Attach to the app, its native endpoints as the engine. Nothing to do without ``--api``."""
    settings = _settings()
    native = eas.native_routes(app)
    if not native:
        log.warning("sd-cloud-api: this webui serves no API; start it with --api (or --nowebui)")
        return
    if any(eas.is_wrapped(route) for route in native):
        return  # this app has us already
    engine = WebuiEngine(
        {eas.ROUTES[route.path]: Endpoint(route.endpoint, _model(route)) for route in native}
    )
    service = Service(
        engine,
        store=open_store(settings),
        inputs=Inputs(settings),
        outputs=Outputs(settings),
        queue_limit=settings.queue_limit,
        max_delivery=settings.max_delivery,
        job_seconds=settings.job_seconds,
    )
    attach(app, service, settings, access=Access(settings), native_access=_native_access(settings))


def tabs() -> list[tuple[Any, str, str]]:
    """The webui's ``on_ui_tabs``."""
    return []


def _settings() -> Settings:
    """Our settings from the webui's own command line, for the data dir that it works in."""
    from modules import shared
    from modules.paths import data_path

    return settings_of({**vars(shared.cmd_opts), "data_dir": data_path})


def _native_access(settings: Settings) -> Access:
    """Who may use the native routes is the webui's to say, unless ``--token`` says more.

    The wrapped route keeps its ``--api-auth`` dependency in front of us.
    """
    if settings.tokens:
        return Access(settings)
    return Access(replace(settings, no_auth=True, tokens=(), api_auth=()))


def _model(route: APIRoute) -> Any:
    """The pydantic model that the route takes as its body."""
    body = route.body_field
    if body is None:
        raise RuntimeError(f"{route.path} of this webui takes no body")
    return getattr(body, "type_", None) or body.field_info.annotation
