"""The routes of the sd-webui-controlnet extension (its API version 3): what there is, and detection."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from sd_cloud.dialects.idempotency import with_pictures
from sd_cloud.dialects.sdapi import owner_of
from sd_cloud.dialects.sdapi_checks import check_values
from sd_cloud.dialects.sdapi_errors import NativeRoute, answer
from sd_cloud.dialects.sdapi_pictures import encoded
from sd_cloud.engines.diffusion.controlnet import api as controlnet_api
from sd_cloud.engines.diffusion.controlnet.rendering import rendered
from sd_cloud.job import Job, Outcome
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

    async def detect(request: Request, body: dict[str, Any]) -> Response:
        check_values(body)
        payload = await asyncio.to_thread(controlnet_api.checked_detection, body, settings)
        job = Job("detect", payload, owner=owner_of(request), options=dict(service.options()))
        request.scope["sd_cloud.job"] = job.id
        outcome = await with_pictures(service, job, request)
        return await asyncio.to_thread(_detected, job, outcome)

    async def render_openpose_json(
        pose_data: Annotated[list[dict[str, Any]] | None, Body()] = None,
    ) -> Response:
        if not pose_data:
            return answer({"info": "No pose data detected."})
        check_values(pose_data, "pose_data")
        return await asyncio.to_thread(_rendered, pose_data, settings, service)

    for path, endpoint in (
        ("/version", version),
        ("/model_list", model_list),
        ("/module_list", module_list),
        ("/control_types", control_types),
        ("/settings", shown_settings),
    ):
        routes.add_api_route(path, endpoint, methods=["GET"])
    routes.add_api_route("/detect", detect, methods=["POST"])
    routes.add_api_route("/render_openpose_json", render_openpose_json, methods=["POST"])
    return routes


def _rendered(poses: list[dict[str, Any]], settings: Settings, service: Service) -> Response:
    """The extension's answer to poses; runs in a thread."""
    options = service.options()
    images = rendered(poses, settings.fetch.limit_pixels)
    return answer({"images": [encoded(one, "", options.get) for one in images], "info": "Success"})


def _detected(job: Job, outcome: Outcome) -> Response:
    """The extension's answer, pictures encoded; runs in a thread."""
    content: dict[str, Any] = {"info": "Success"}
    if outcome.info.get("poses"):
        content["poses"] = outcome.info["poses"]
    maps = outcome.of_role("control_map")
    content["images"] = [encoded(one.image, "", job.option) for one in maps if one.image is not None]
    return answer(content)
