"""The serverless task API: pictures as tasks, their progress, result and cancellation.

Wire format: ``serverless-api.yaml`` of the guide. The words of a task are ``waiting``, ``running``,
``succeeded``, ``failed`` and ``cancelled``. Errors are ``{"code", "message"}``.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd_cloud import errors
from sd_cloud.dialects.asked import FreshLinks, Seam, callback_in, json_body, stored_key
from sd_cloud.dialects.idempotency import idempotency_of
from sd_cloud.dialects.routes import Endpoint, refused, router_of, status_of
from sd_cloud.job import Job, Kind, Outcome, Picture, Progress, Target
from sd_cloud.live import replaying
from sd_cloud.service import Service
from sd_cloud.store.base import State, Task

WORDS: dict[State, str] = {
    "pending": "waiting",
    "suspended": "waiting",
    "running": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}
PATHS: dict[str, Kind] = {"/txt2img": "txt2img", "/img2img": "img2img", "/extra_images": "extras"}
#: A native field -> what a caller of this API knows it as.
FIELDS = {"sd_model_checkpoint": "stable_diffusion_model", "override_settings.sd_vae": "sd_vae"}
#: What of a request is this dialect's own; the rest is the native payload.
OWN_FIELDS = ("stable_diffusion_model", "sd_vae", "save_dir", "callback_url")


def refusal(error: errors.ServiceError, task_id: str | None = None) -> Response:
    status = status_of(error)
    field = FIELDS.get(error.field or "", error.field)
    content: dict[str, Any] = {
        "code": status,
        "message": f"{field}: {error.args[0]}" if field else str(error),
    }
    if task_id is not None:
        content |= {"taskId": task_id, "status": WORDS["cancelled" if status == 409 else "failed"]}
    return refused(error, content)


def wants_async(request: Request) -> bool:
    """``Request-Type: sync | async``; sync without it. Raises BadRequest for another word."""
    asked = request.headers.get("request-type", "sync").strip().lower()
    if asked not in ("sync", "async"):
        raise errors.BadRequest(f"{asked!r} is neither sync nor async", field="Request-Type")
    return asked == "async"


def router(seam: Seam) -> APIRouter:
    making, watching = _Making(seam), _Watching(seam)
    return router_of(
        refusal,
        *(("POST", path, making.endpoint(kind)) for path, kind in PATHS.items()),
        ("GET", "/tasks/{task_id}/progress", watching.progress),
        ("GET", "/tasks/{task_id}/result", watching.result),
        ("POST", "/tasks/{task_id}/cancellation", watching.cancellation),
    )


class _Making:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._service = seam.service
        self._links = FreshLinks(seam.settings)

    def endpoint(self, kind: Kind) -> Endpoint:
        async def make(request: Request) -> Response:
            caller = await self._seam.access.permitted(request)
            later = wants_async(request)
            job = await self._job(kind, await json_body(request), owner=caller.owner)
            outer = replaying.get()
            if outer is not None:  # a queued request holds its task and its slot already
                outcome = await self._service.run(job)
                return await self._made(outer.job.id, outcome, caller.owner)
            request.scope["sd_cloud.job"] = job.id
            task_id = await self._service.submit(job, idempotency=await idempotency_of(request))
            if later:
                return JSONResponse(
                    {"taskId": task_id, "status": "submitted", "message": "ask for /tasks/{taskId}/result"},
                    headers={"taskId": task_id},
                )
            try:
                outcome = await self._service.result(task_id)
            except errors.ServiceError as error:
                return refusal(error, task_id)
            return await self._made(task_id, outcome, caller.owner)

        return make

    async def _made(self, task_id: str, outcome: Outcome, owner: str) -> Response:
        outcome = await self._links.of(outcome, owner)
        content = {
            "taskId": task_id,
            "status": "succeeded",
            "ossUrl": links_of(outcome),
            "images": keys_of(outcome),
        }
        return JSONResponse(content, headers={"taskId": task_id})

    async def _job(self, kind: Kind, body: dict[str, Any], *, owner: str) -> Job:
        own = {name: body.pop(name, None) for name in OWN_FIELDS}
        for name in ("stable_diffusion_model", "sd_vae", "save_dir"):
            if own[name] is not None and not isinstance(own[name], str):
                raise errors.BadRequest(f"expected a string, got {json.dumps(own[name])[:60]}", field=name)
        if kind == "extras":
            if not body.get("image"):
                raise errors.BadRequest(
                    "this field is required: base64, a stored key or a link", field="image"
                )
            if body.get("resize_mode") is None:
                raise errors.BadRequest("this field is required: 0 or 1", field="resize_mode")
        elif not own["stable_diffusion_model"]:
            raise errors.BadRequest(
                "this field is required: a checkpoint's name", field="stable_diffusion_model"
            )
        if kind == "img2img" and not body.get("init_images"):
            raise errors.BadRequest(
                "img2img needs a picture: base64, a stored key or a link", field="init_images"
            )
        if kind != "extras":
            # The checkpoint and VAE of a request win over its override_settings; its grid is not a result.
            override = {"return_grid": False, **(body.get("override_settings") or {})}
            if own["stable_diffusion_model"]:
                override["sd_model_checkpoint"] = own["stable_diffusion_model"]
            if own["sd_vae"]:
                override["sd_vae"] = own["sd_vae"]
            body = {**body, "override_settings": override, "save_images": True}
        job = await self._seam.native(kind, body, owner=owner)
        return replace(
            job,
            dialect="tasks",
            target=Target("task", own["save_dir"] or None),
            callback_url=callback_in(own["callback_url"]),
        )


class _Watching:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._service = seam.service
        self._links = FreshLinks(seam.settings)

    async def _task(self, request: Request) -> Task:
        await self._seam.access.permitted(request)
        return await self._seam.access.owned_task(request, self._service, request.path_params["task_id"])

    async def progress(self, request: Request) -> Response:
        task = await self._task(request)
        return JSONResponse(await progress_of(self._service, task))

    async def result(self, request: Request) -> Response:
        task = await self._task(request)
        outcome = await self._links.of(task.outcome or Outcome(), task.job.owner)
        return JSONResponse(result_of(task, outcome))

    async def cancellation(self, request: Request) -> Response:
        task = await self._task(request)
        cancelled = await self._service.cancel(task.id)
        message = "the task is cancelled" if cancelled else f"the task is over already: {WORDS[task.state]}"
        return JSONResponse(
            {"taskId": task.id, "status": "cancelled" if cancelled else WORDS[task.state], "message": message}
        )


def links_of(outcome: Outcome) -> list[str]:
    return [p.link for p in shown(outcome) if p.link]


def keys_of(outcome: Outcome) -> list[str]:
    return [stored_key(p.path) for p in shown(outcome) if p.path]


def shown(outcome: Outcome) -> tuple[Picture, ...]:
    return outcome.of_role("image")


def result_of(task: Task, outcome: Outcome) -> dict[str, Any]:
    """``TaskResultResponse``. A replayed call's answer is under ``info`` unless it is a native one."""
    content: dict[str, Any] = {
        "taskId": task.id,
        "status": WORDS[task.state],
        "images": keys_of(outcome),
        "ossUrl": links_of(outcome),
        "parameters": {name: value for name, value in task.job.payload.items() if name != "body"},
        "info": dict(outcome.info),
    }
    if outcome.reply is not None:
        content |= _answered(outcome)
    if task.error is not None:
        content["message"] = str(task.error)
    return content


def _answered(outcome: Outcome) -> dict[str, Any]:
    assert outcome.reply is not None
    try:
        said = json.loads(outcome.reply.body)
    except (ValueError, RecursionError):
        said = None
    if outcome.info and not (isinstance(said, dict) and "info" in said):
        return {}  # a route that made pictures and answers in words of its own: they are told as always
    if not isinstance(said, dict) or not {"images", "parameters", "info"} <= said.keys():
        text = outcome.reply.body.decode("utf-8", "replace")
        return {"info": said if isinstance(said, dict) else {"answer": said if said is not None else text}}
    info = said["info"]
    try:
        info = json.loads(info) if isinstance(info, str) else info
    except ValueError:
        info = {"text": info}
    images = keys_of(outcome) or said["images"]
    return {"images": images, "parameters": said["parameters"], "info": info}


async def progress_of(service: Service, task: Task) -> dict[str, Any]:
    """``TaskProgressResponse``; ``state`` as the webui's own progress has it, with our phase."""
    now = service.progress_of(task) or Progress()
    fraction = 1.0 if task.over else now.fraction if task.state == "running" else 0.0
    seconds = service.seconds_of(task)
    eta = seconds / fraction * (1 - fraction) if 0 < fraction < 1 else 0.0
    started = datetime.fromtimestamp(task.scheduled).strftime("%Y%m%d%H%M%S") if task.scheduled else "0"
    content: dict[str, Any] = {
        "taskId": task.id,
        "progress": round(fraction, 4),
        "etaRelative": round(eta, 3),
        "state": {
            "phase": WORDS[task.state],
            "interrupted": task.state == "cancelled",
            "skipped": False,
            "job": f"scripts_{task.job.kind}" if task.state == "running" else "",
            "job_count": now.job_count if task.state == "running" else 0,
            "job_no": now.job_no,
            "job_timestamp": started,
            "sampling_step": now.step,
            "sampling_steps": now.steps,
        },
        "currentImage": "",
        "message": str(task.error) if task.error else WORDS[task.state],
    }
    if now.preview is not None and not task.over:
        content["currentImage"] = await asyncio.to_thread(_encoded, now.preview)
    return content


def _encoded(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")
