"""The webui's native routes, ``/sdapi/v1/*``, for the standalone host.

Paths, names, defaults and shapes are those of a webui 1.10.1; the conformance tests hold them to
its OpenAPI file and to its recorded answers, and list every difference with its reason.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from sd_cloud.dialects import sdapi_models as models
from sd_cloud.dialects.eas import NativeJob
from sd_cloud.dialects.idempotency import with_pictures
from sd_cloud.dialects.sdapi_checks import (
    EXTRA_OPTIONS,
    check_upscaler,
    check_vae,
    check_values,
    checked_payload,
)
from sd_cloud.dialects.sdapi_errors import NativeRoute, answer
from sd_cloud.dialects.sdapi_host import Options, add_host_routes
from sd_cloud.dialects.sdapi_infotext import filled_in
from sd_cloud.dialects.sdapi_lists import add_lists
from sd_cloud.dialects.sdapi_pictures import checked_picture, encoded, opened, preview
from sd_cloud.engines.diffusion.interrogate.files import MODELS, weights_of
from sd_cloud.errors import BadRequest, NotFound
from sd_cloud.job import Job, Kind, Outcome, Target
from sd_cloud.outputs.png import geninfo
from sd_cloud.service import Service
from sd_cloud.settings import Settings


def router(service: Service, options: Options, settings: Settings) -> APIRouter:
    """All native routes over one service."""
    routes = APIRouter(prefix="/sdapi/v1", route_class=NativeRoute)
    making, watching = _Making(service, options, settings), _Watching(service)
    for path, endpoint, answers in (
        ("/txt2img", making.text2imgapi, models.TextToImageResponse),
        ("/img2img", making.img2imgapi, models.ImageToImageResponse),
        ("/extra-single-image", making.extras_single_image_api, models.ExtrasSingleImageResponse),
        ("/extra-batch-images", making.extras_batch_images_api, models.ExtrasBatchImagesResponse),
        ("/png-info", making.pnginfoapi, models.PNGInfoResponse),
        ("/interrogate", making.interrogateapi, None),
        ("/interrupt", watching.interruptapi, None),
        ("/skip", watching.skip, None),
    ):
        routes.add_api_route(path, endpoint, methods=["POST"], response_model=answers)
    routes.add_api_route(
        "/progress", watching.progressapi, methods=["GET"], response_model=models.ProgressResponse
    )
    add_host_routes(routes, service, options, settings)
    add_lists(routes, service, settings)
    return routes


def native_job(service: Service, options: Options, settings: Settings) -> NativeJob:
    """What makes the job of a native request, for dialects that are that plus something."""
    return _Making(service, options, settings).job


class _Making:
    """The routes that make or read pictures."""

    def __init__(self, service: Service, options: Options, settings: Settings) -> None:
        self._service = service
        self._options = options
        self._settings = settings

    async def text2imgapi(
        self, request: Request, txt2imgreq: models.StableDiffusionProcessingTxt2Img
    ) -> Response:
        return await self._make("txt2img", request, txt2imgreq)

    async def img2imgapi(
        self, request: Request, img2imgreq: models.StableDiffusionProcessingImg2Img
    ) -> Response:
        return await self._make("img2img", request, img2imgreq)

    async def _make(self, kind: Kind, request: Request, body: BaseModel) -> Response:
        sent = body.model_dump()
        if sent["infotext"]:
            sent = filled_in(kind, sent, body.model_fields_set, self._options.snapshot())
        job = await self.job(kind, sent, owner=owner_of(request))
        request.scope["sd_cloud.job"] = job.id
        outcome = await with_pictures(self._service, job, request)
        return await asyncio.to_thread(self._made, job, sent, outcome)

    async def job(self, kind: Kind, payload: Mapping[str, Any], *, owner: str) -> Job:
        """The job of a native request. Raises what `checked_payload` raises."""
        model = (
            models.StableDiffusionProcessingTxt2Img
            if kind == "txt2img"
            else models.StableDiffusionProcessingImg2Img
        )
        defaults = {name: field.default for name, field in model.model_fields.items()}
        payload = {name: defaults.get(name) if value is None else value for name, value in payload.items()}
        catalogue = self._service.catalogue()
        payload = checked_payload(kind, payload, catalogue, limit_pixels=self._settings.fetch.limit_pixels)
        override = {**self._extra_options(kind, payload), **(payload["override_settings"] or {})}
        self._options.check(override, "override_settings")
        checkpoint, vae = override.pop("sd_model_checkpoint", None), override.pop("sd_vae", None)
        check_vae(vae, catalogue, "override_settings.sd_vae")
        saves = bool(payload["save_images"])
        payload |= {
            "override_settings": override,
            "do_not_save_samples": not saves,
            "do_not_save_grid": not saves,
        }
        target = Target("webui") if saves else None
        return Job(kind, payload, owner=owner, checkpoint=checkpoint, vae=vae, target=target)

    def _extra_options(self, kind: Kind, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What the script "extra options" says of the options that ``extra_options_…`` lists."""
        scripts = {name.lower(): script for name, script in (payload.get("alwayson_scripts") or {}).items()}
        values = scripts.get(EXTRA_OPTIONS, {}).get("args") or []
        return dict(zip(self._options.snapshot()[f"extra_options_{kind}"], values, strict=False))

    def _made(self, job: Job, sent: dict[str, Any], outcome: Outcome) -> Response:
        """The answer, pictures encoded; runs in a thread."""
        images = self._images(job, outcome) if sent["send_images"] is not False else []
        if job.kind == "img2img" and not sent["include_init_images"]:
            sent = {**sent, "init_images": None, "mask": None}
        return answer({"images": images, "parameters": sent, "info": json.dumps(dict(outcome.info))})

    def _images(self, job: Job, outcome: Outcome) -> list[str]:
        options = {**self._options.snapshot(), **job.options}

        def option(name: str) -> Any:
            return (job.payload.get("override_settings") or {}).get(name, options.get(name))

        return [encoded(p.image, p.infotext, option) for p in outcome.pictures if p.image is not None]

    async def extras_single_image_api(
        self, request: Request, req: models.ExtrasSingleImageRequest
    ) -> Response:
        if not req.image:
            raise BadRequest("Invalid encoded image: expected base64", field="image")
        html_info, images = await self._extras(request, req)
        return answer({"html_info": html_info, "image": images[0] if images else None})

    async def extras_batch_images_api(
        self, request: Request, req: models.ExtrasBatchImagesRequest
    ) -> Response:
        if not req.imageList:
            raise BadRequest("expected at least one picture", field="imageList")
        html_info, images = await self._extras(request, req)
        return answer({"html_info": html_info, "images": images})

    async def _extras(self, request: Request, req: BaseModel) -> tuple[str, list[str]]:
        payload = req.model_dump()
        check_values(payload)
        for field in ("upscaler_1", "upscaler_2"):
            if payload[field] != "None":
                check_upscaler(payload[field], self._service.catalogue(), field)
        job = Job("extras", payload, owner=owner_of(request))
        request.scope["sd_cloud.job"] = job.id
        outcome = await with_pictures(self._service, job, request)
        shown = payload["show_extras_results"]
        images = await asyncio.to_thread(self._images, job, outcome) if shown else []
        return str(outcome.info.get("html_info", "")), images

    async def pnginfoapi(self, req: models.PNGInfoRequest) -> Response:
        checked = await checked_picture(self._service, req.image, "image")
        info, items, parameters = await asyncio.to_thread(lambda: geninfo(opened(checked)))
        return answer({"info": info, "items": items, "parameters": parameters})

    async def interrogateapi(self, request: Request, interrogatereq: models.InterrogateRequest) -> Response:
        if not interrogatereq.image:
            raise NotFound("Image not found")
        if interrogatereq.model not in MODELS:
            raise NotFound("Model not found")
        weights_of(interrogatereq.model, self._settings)  # what is missing is told at once
        job = Job("interrogate", interrogatereq.model_dump(), owner=owner_of(request))
        request.scope["sd_cloud.job"] = job.id
        outcome = await with_pictures(self._service, job, request)
        return answer({"caption": outcome.info["caption"]})


class _Watching:
    """The routes about whatever runs now."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._interrupted: str | None = None
        self._skipped: str | None = None

    async def progressapi(self, request: Request, skip_current_image: bool = False) -> Response:
        """Of whatever runs now; a plain user sees only what is theirs."""
        caller = request.scope.get("sd_cloud.caller")
        task = self._service.first_running(None if caller is None else caller.may_see)
        progress = self._service.progress(task.id) if task is not None else None
        if task is None or progress is None:
            return answer(_progress(0.0, 0.0, _state()))
        fraction = min(0.01 + progress.fraction, 1.0)
        seconds = self._service.seconds_running(task.id)
        state = _state(
            skipped=self._skipped == task.id,
            interrupted=self._interrupted == task.id,
            stopping_generation=self._interrupted == task.id,
            job=f"scripts_{task.job.kind}",
            job_count=progress.job_count,
            job_timestamp=time.strftime("%Y%m%d%H%M%S", time.localtime(task.scheduled or task.submitted)),
            job_no=progress.job_no,
            sampling_step=progress.step,
            sampling_steps=progress.steps,
        )
        image = None
        if progress.preview is not None and not skip_current_image:
            image = await asyncio.to_thread(preview, progress.preview)
        return answer(_progress(fraction, seconds / fraction - seconds, state, image, progress.stage or None))

    async def interruptapi(self) -> Response:
        self._interrupted = self._service.running.id if self._service.running else None
        await self._service.interrupt()
        return answer({})

    async def skip(self) -> Response:
        self._skipped = self._service.running.id if self._service.running else None
        await self._service.skip()
        return answer(None)


def _progress(
    fraction: float,
    eta_seconds: float,
    state: Mapping[str, Any],
    image: str | None = None,
    textinfo: str | None = None,
) -> dict[str, Any]:
    return {
        "progress": fraction,
        "eta_relative": eta_seconds,
        "state": state,
        "current_image": image,
        "textinfo": textinfo,
    }


def _state(**running: Any) -> dict[str, Any]:
    idle = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    return {**idle, **running}


def owner_of(request: Request) -> str:
    """Whom the access gate let in; without one, the operator."""
    caller = request.scope.get("sd_cloud.caller")
    return caller.owner if caller is not None else "local"
