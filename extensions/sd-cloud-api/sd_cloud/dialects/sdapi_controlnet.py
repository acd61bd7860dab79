"""The routes of the sd-webui-controlnet extension (its API version 3): what there is, and detection."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from sd_cloud.dialects.sdapi_checks import check_values
from sd_cloud.dialects.sdapi_errors import NativeRoute, answer
from sd_cloud.dialects.sdapi_pictures import checked_picture
from sd_cloud.engines.diffusion.controlnet import api as controlnet_api
from sd_cloud.engines.diffusion.preprocess.table import NETWORK_FILES, find_module
from sd_cloud.errors import BadRequest, NotImplementedHere
from sd_cloud.service import Service
from sd_cloud.settings import Settings


def router(service: Service, settings: Settings) -> APIRouter:
    """``/controlnet/*`` over one service."""
    routes = APIRouter(prefix="/controlnet", route_class=NativeRoute)

    async def version() -> Response:
        return answer(controlnet_api.version())

    async def model_list(update: bool = True) -> Response:
        catalogue = await service.engine.refresh() if update else service.catalogue()
        return answer(controlnet_api.model_list(catalogue.controlnets))

    async def module_list(alias_names: bool = False) -> Response:
        return answer(controlnet_api.module_list(alias_names))

    async def control_types() -> Response:
        return answer(controlnet_api.control_types(service.catalogue().controlnets))

    async def shown_settings() -> Response:
        return answer(controlnet_api.settings_answer())

    async def detect(body: dict[str, Any]) -> Response:
        check_values(body)
        prepared = await _fetched(service, body)
        return answer(await asyncio.to_thread(controlnet_api.detect_images, prepared, settings))

    for path, endpoint in (
        ("/version", version),
        ("/model_list", model_list),
        ("/module_list", module_list),
        ("/control_types", control_types),
        ("/settings", shown_settings),
    ):
        routes.add_api_route(path, endpoint, methods=["GET"])
    routes.add_api_route("/detect", detect, methods=["POST"])
    return routes


async def _fetched(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The body with every picture checked, links fetched; refused where only the engine could do it."""
    name = body.get("controlnet_module", "none")
    module = find_module(name) if isinstance(name, str) else None
    if module is not None and module.name in NETWORK_FILES:
        raise NotImplementedHere(
            f"{name} is a network, and networks run in the engine only: send it as a unit of a txt2img "
            "request, whose answer ends with the control map",
            field="controlnet_module",
        )
    fetched = dict(body)
    for field in ("controlnet_input_images", "controlnet_masks"):
        sent = body.get(field) or []
        if not isinstance(sent, list) or not all(isinstance(one, str) for one in sent):
            raise BadRequest("expected a list of pictures in base64", field=field)
        fetched[field] = [await checked_picture(service, one, f"{field}[{i}]") for i, one in enumerate(sent)]
    return fetched
