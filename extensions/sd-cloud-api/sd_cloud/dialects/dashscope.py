"""DashScope's image synthesis: submit, fetch, cancel, list.

Wire format: the guides for SD 1.5 / XL and SD 3.5, and what the ``dashscope`` package sends and
reads. Errors are ``{"code", "message", "request_id"}`` with DashScope's own codes. A task that never
was and one of somebody else are the same to a caller: 404, ``UNKNOWN``; an own one that expired is
``UNKNOWN`` with 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd_cloud import errors
from sd_cloud.access import Caller
from sd_cloud.dialects.asked import FreshLinks, Seam, json_body
from sd_cloud.dialects.dashscope_models import Choice
from sd_cloud.dialects.dashscope_request import ModelNotFound, job_of, model_of
from sd_cloud.dialects.idempotency import idempotency_of
from sd_cloud.dialects.routes import refused, router_of
from sd_cloud.job import Outcome
from sd_cloud.store.base import State, Task
from sd_cloud.translation import Translator

SUBMIT = "/api/v1/services/aigc/text2image/image-synthesis"
TASKS = "/api/v1/tasks"
LIMIT_PAGE = 100
#: Tasks that one listing looks through.
LIMIT_LISTED = 10_000
#: A listing without a start begins here.
LISTED_SECONDS = 24 * 3600.0

WORDS: dict[State, str] = {
    "pending": "PENDING",
    "running": "RUNNING",
    "suspended": "SUSPENDED",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELED",
}
TIMED_OUT = (
    "An internal timeout error has occured during execution, "
    "please try again later or contact service support."
)


def refusal(error: errors.ServiceError) -> Response:
    code, message = in_words(error)
    return refused(error, {"code": code, "message": message, "request_id": str(uuid4())})


def in_words(error: errors.ServiceError) -> tuple[str, str]:
    """DashScope's code and message for an error."""
    if isinstance(error, errors.Unauthorized):
        return "InvalidApiKey", "Invalid API-key provided."
    if isinstance(error, ModelNotFound):
        return "ModelNotFound", str(error.args[0])
    if error.field in ("init_images", "init_images.0", "init_images[0]", "input.init_image") and isinstance(
        error, (errors.InputRefused, errors.InputUnreachable)
    ):
        return "InvalidParameter", f"The image source is invalid. ({error.args[0]})"
    if isinstance(error, (errors.BadRequest, errors.InputUnreachable)):
        told = str(error.args[0])
        named = error.field is None or str(error.field).split(".")[-1] in told
        return "InvalidParameter", told if named else str(error)
    if isinstance(error, errors.TimedOut):
        return "InternalError.Timeout", TIMED_OUT
    codes: tuple[tuple[type[errors.ServiceError], str], ...] = (
        (errors.QueueFull, "Throttling"),
        (errors.QuotaExceeded, "Throttling.AllocationQuota"),
        (errors.NotAllowed, "AccessDenied"),
        (errors.CheckpointNotFound, "ModelNotFound"),
        (errors.TaskNotFound, "TaskNotFound"),
        (errors.Blocked, "DataInspectionFailed"),
        (errors.Cancelled, "TaskCanceled"),
        (errors.IdempotencyConflict, "Conflict"),
        (errors.ShuttingDown, "ServiceUnavailable"),
        (errors.StoreUnavailable, "ServiceUnavailable"),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), "InternalError"), str(error)


def router(seam: Seam) -> APIRouter:
    dashscope = _DashScope(seam)
    return router_of(
        refusal,
        ("POST", SUBMIT, dashscope.submit),
        ("GET", TASKS, dashscope.listed),
        ("GET", TASKS + "/", dashscope.listed),
        ("GET", TASKS + "/{task_id}", dashscope.fetch),
        ("POST", TASKS + "/{task_id}/cancel", dashscope.cancel),
    )


class _DashScope:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._service = seam.service
        self._links = FreshLinks(seam.settings)
        self._choice = Choice(seam.settings.dashscope_models)
        self._translator = Translator(seam.settings.data_dir / "models" / "translation")
        seam.service.beside.append(self._translator.until_stopped)

    async def submit(self, request: Request) -> Response:
        caller = await self._caller(request)
        if request.headers.get("x-dashscope-async", "").strip().lower() != "enable":
            raise errors.NotAllowed("current user api does not support synchronous calls.")
        body = await json_body(request)
        model = model_of(body)
        checkpoint = await asyncio.to_thread(self._choice.checkpoint, model, self._service.catalogue())
        job = await job_of(self._seam, body, model, checkpoint.name, owner=caller.owner)
        prompts = await self._translator.english((job.payload["prompt"], job.payload["negative_prompt"]))
        job = job.with_payload({**job.payload, "prompt": prompts[0], "negative_prompt": prompts[1]})
        workspace = request.headers.get("x-dashscope-workspace")
        if workspace:
            job = replace(job, labels={**job.labels, "workspace": workspace})
        request.scope["sd_cloud.job"] = job.id
        task_id = await self._service.submit(job, idempotency=await idempotency_of(request))
        output = {"task_id": task_id, "task_status": "PENDING"}
        return JSONResponse({"output": output, "request_id": str(uuid4())})

    async def fetch(self, request: Request) -> Response:
        caller = await self._caller(request)
        task_id = request.path_params["task_id"]
        task = await self._visible(caller, task_id)
        if task is None:
            expired = await self._service.store.was_of(task_id, caller.owner)
            output = {"task_id": task_id, "task_status": "UNKNOWN"}
            content: dict[str, Any] = {"request_id": str(uuid4()), "output": output}
            if expired:
                return JSONResponse(content)
            content |= {"code": "TaskNotFound", "message": f"There is no task {task_id}."}
            return JSONResponse(content, status_code=404)
        outcome = await self._links.of(task.outcome or Outcome(), task.job.owner)
        return JSONResponse(self._said(task, outcome))

    async def cancel(self, request: Request) -> Response:
        caller = await self._caller(request)
        task = await self._visible(caller, request.path_params["task_id"])
        if task is None:
            raise errors.TaskNotFound(f"There is no task {request.path_params['task_id']}.")
        request_id = str(uuid4())
        if await self._service.cancel(task.id):
            return JSONResponse({"request_id": request_id})
        content = {
            "request_id": request_id,
            "code": "UnsupportedOperation",
            "message": "Failed to cancel the task, please confirm if the task is in PENDING status.",
        }
        return JSONResponse(content, status_code=400)

    async def listed(self, request: Request) -> Response:
        caller = await self._caller(request)
        query = request.query_params
        page, size = _whole(query, "page_no", 1, 10**6), _whole(query, "page_size", 10, LIMIT_PAGE)
        since, until = _moment(query, "start_time"), _moment(query, "end_time")
        if since is None:
            since = (until or datetime.now().timestamp()) - LISTED_SECONDS
        state = _state(query.get("status"))
        found = await self._service.store.find(
            owner=caller.owner,
            dialect="dashscope",
            states=(state,) if state else (),
            since=since,
            until=until,
            limit=LIMIT_LISTED,
        )
        name = query.get("model_name")
        chosen = [task for task in found if not name or task.job.labels.get("model") == name]
        content = {
            "request_id": str(uuid4()),
            "total": len(chosen),
            "total_page": -(-len(chosen) // size),
            "page_no": page,
            "page_size": size,
            "data": [_listed(task) for task in chosen[(page - 1) * size : page * size]],
        }
        return JSONResponse(content)

    async def _caller(self, request: Request) -> Caller:
        return await self._seam.access.permitted(request)

    async def _visible(self, caller: Caller, task_id: str) -> Task | None:
        task = await self._service.store.get(task_id)
        return task if task is not None and caller.may_see(task.job.owner) else None

    def _said(self, task: Task, outcome: Outcome) -> dict[str, Any]:
        wanted = _pictures_wanted(task)
        output: dict[str, Any] = {
            "task_id": task.id,
            "task_status": WORDS[task.state],
            "submit_time": _time(task.submitted),
        }
        if task.scheduled is not None:
            output["scheduled_time"] = _time(task.scheduled)
        if task.ended is not None:
            output["end_time"] = _time(task.ended)
        content: dict[str, Any] = {"request_id": str(uuid4()), "output": output}
        if task.state == "succeeded" and task.job.dialect != "dashscope":
            pictures = outcome.of_role("image")  # it may have answered with them and saved none
            output["results"] = [{"url": picture.link} for picture in pictures if picture.link]
            output["task_metrics"] = _metrics(len(pictures), len(pictures), 0)
            content["usage"] = {"image_count": len(pictures)}
        elif task.state == "succeeded":
            results = _results(outcome, wanted)
            made = sum("url" in one for one in results)
            if made:
                output["results"] = results
                content["usage"] = {"image_count": made}
            else:
                output |= {"task_status": "FAILED", **results[0]}
            output["task_metrics"] = _metrics(wanted, made, wanted - made)
        elif task.error is not None:
            output["code"], output["message"] = in_words(task.error)
            output["task_metrics"] = _metrics(wanted, 0, wanted if task.state == "failed" else 0)
        elif task.state == "running":
            progress = self._service.progress_of(task)
            output["task_metrics"] = _metrics(wanted, min(progress.job_no if progress else 0, wanted), 0)
        return content


def _results(outcome: Outcome, wanted: int) -> list[dict[str, str]]:
    """A link for each picture that was made, and why not for each other one."""
    results = []
    for picture in outcome.of_role("image"):
        if picture.link and not picture.error:
            results.append({"url": picture.link})
        else:
            why = picture.error or "the picture was not saved"
            results.append({"code": "InternalError", "message": why})
    missing = {"code": "InternalError", "message": "the picture was not made"}
    return results + [missing] * (wanted - len(results))


def _pictures_wanted(task: Task) -> int:
    """Also of tasks that were asked for in another way: every task is visible in every dialect."""
    label = task.job.labels.get("n", "")
    if task.job.dialect == "dashscope" and label.isdigit():
        return int(label)
    counts = [task.job.payload.get(name) for name in ("n_iter", "batch_size")]
    product = 1
    for count in counts:
        product *= count if isinstance(count, int) and count > 0 else 1
    return product


def _metrics(total: int, succeeded: int, failed: int) -> dict[str, int]:
    return {"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": failed}


def _listed(task: Task) -> dict[str, Any]:
    """An entry of a listing; times in milliseconds since the epoch."""
    return {
        "task_id": task.id,
        "request_id": task.id,
        "status": WORDS[task.state],
        "model_name": task.job.labels.get("model", ""),
        "api_key_id": task.job.owner,
        "region": "local",
        "gmt_create": int(task.submitted * 1000),
        "start_time": int((task.scheduled or task.submitted) * 1000),
        "end_time": int(task.ended * 1000) if task.ended is not None else None,
    }


def _time(seconds: float) -> str:
    """``2024-06-14 14:30:44.096``, in the service's time zone, as the guide's."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _state(text: str | None) -> State | None:
    if not text:
        return None
    for state, word in WORDS.items():
        if word == text.upper():
            return state
    raise errors.BadRequest(f"status must be one of {', '.join(WORDS.values())}.", field="status")


def _whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise errors.BadRequest(f"{name} must be an integer between 1 and {most}.", field=name)
    return int(text)


def _moment(query: Mapping[str, str], name: str) -> float | None:
    """``YYYYMMDDhhmmss``; the moment's whole second belongs to it."""
    text = query.get(name)
    if not text:
        return None
    try:
        moment = datetime.strptime(text, "%Y%m%d%H%M%S")
    except ValueError:
        raise errors.BadRequest(f"{name} must have the form YYYYMMDDhhmmss.", field=name) from None
    if name == "end_time":
        moment += timedelta(seconds=1)
    return moment.timestamp()
