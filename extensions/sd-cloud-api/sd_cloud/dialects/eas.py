"""The EAS edition's parameters on the native routes.

In ``alwayson_scripts`` of ``txt2img`` and ``img2img``: ``sd_model_checkpoint``, ``sd_vae``,
``save_dir``, ``image_link``, ``id_task``, ``uid``, and in each ControlNet unit ``image_link`` and
``mask_link``. A request with none of them goes to the native handler untouched; one with any of
them becomes a `Job` and is answered in the guide's shape. Wire format: the guide's chapter
"API接口额外支持配置的参数有哪些". `docs/eas.md` has the table of status numbers.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sd_cloud import errors
from sd_cloud.access import Access
from sd_cloud.dialects.idempotency import idempotency_of
from sd_cloud.dialects.routes import come_again
from sd_cloud.job import Job, Kind, Outcome, Target
from sd_cloud.service import Service

#: Our keys directly below ``alwayson_scripts``, all of them strings (ids may be numbers).
KEYS = ("sd_model_checkpoint", "sd_vae", "save_dir", "image_link", "id_task", "uid")
#: Our keys within a ControlNet unit; :mod:`sd_cloud.inputs` resolves them.
UNIT_KEYS = ("image_link", "mask_link")
#: What of a ControlNet unit goes by either name.
CONTROLNET_NAMES = ("controlnet", "ControlNet")

ROUTES: Mapping[str, Kind] = {"/sdapi/v1/txt2img": "txt2img", "/sdapi/v1/img2img": "img2img"}


class NativeJob(Protocol):
    """Makes the job of a native request. Raises a ServiceError for a name that is not there."""

    async def __call__(self, kind: Kind, payload: Mapping[str, Any], *, owner: str) -> Job: ...


_WRAPPED = "_sd_cloud_wrapped"
_MARKS = tuple(f'"{key}"'.encode() for key in (*KEYS, *UNIT_KEYS))


def wrap(app: FastAPI, service: Service, access: Access, native_job: NativeJob) -> None:
    """Put the EAS parameters in front of the app's own txt2img and img2img routes.

    Idempotent. Each native route keeps its place, its name and its schema; what it runs becomes
    ours, behind the same dependencies (its auth). ``native_job`` makes the job of a native request.
    """
    for route in native_routes(app):
        if not is_wrapped(route):
            native = route.app
            ours = APIRoute(
                route.path,
                _endpoint(route, native, service, access, native_job),
                methods=["POST"],
                response_model=None,
                dependencies=route.dependencies,
                dependency_overrides_provider=app,
            )
            route.app = ours.app
            setattr(route, _WRAPPED, True)


def native_routes(app: FastAPI) -> list[APIRoute]:
    """The app's own txt2img and img2img routes."""
    return [r for r in app.router.routes if isinstance(r, APIRoute) and r.path in ROUTES]


def is_wrapped(route: APIRoute) -> bool:
    return hasattr(route, _WRAPPED)


def _endpoint(
    route: APIRoute, native: ASGIApp, service: Service, access: Access, native_job: NativeJob
) -> Callable[[Request], Awaitable[Response]]:
    kind = ROUTES[route.path]

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        scripts = await _scripts_of(body)
        if scripts is None or not has_our_keys(scripts):
            return _Native(native, body)
        labels = _labels(scripts)
        started = time.monotonic()
        try:
            caller = await access.caller(request)
            job = await parse(kind, json.loads(body), route, native_job, owner=caller.owner)
            request.scope["sd_cloud.job"] = job.id
            outcome = await service.run(job, idempotency=await idempotency_of(request, body))
        except errors.ServiceError as error:
            return _failure(labels, _in_our_words(error, scripts), time.monotonic() - started)
        return _success(labels, outcome, time.monotonic() - started)

    return endpoint


class _Native(Response):
    """Hands the request, its body included, to the native app of the route."""

    def __init__(self, native: ASGIApp, body: bytes) -> None:
        super().__init__()
        self._native = native
        self._given = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": self._given, "more_body": False}

        await self._native(scope, replay, send)


async def _scripts_of(body: bytes) -> dict[str, Any] | None:
    """``alwayson_scripts`` of a body that may hold one of our keys; None when it cannot."""
    if not any(mark in body for mark in _MARKS):
        return None
    try:
        parsed = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError):
        return None  # the native handler says what is wrong with it
    scripts = parsed.get("alwayson_scripts") if isinstance(parsed, dict) else None
    return scripts if isinstance(scripts, dict) else None


def has_our_keys(scripts: Mapping[str, Any]) -> bool:
    if any(key in scripts for key in KEYS):
        return True
    return any(isinstance(unit, dict) and any(k in unit for k in UNIT_KEYS) for unit in _units(scripts))


def _units(scripts: Mapping[str, Any]) -> list[Any]:
    for name in CONTROLNET_NAMES:
        block = scripts.get(name)
        if isinstance(block, dict) and isinstance(block.get("args"), list):
            return list(block["args"])
    return []


def _labels(scripts: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(scripts[key]) for key in ("id_task", "uid") if scripts.get(key) is not None}


async def parse(
    kind: Kind, body: dict[str, Any], route: APIRoute, native_job: NativeJob, *, owner: str
) -> Job:
    """The job of an EAS request. Raises BadRequest naming the field, and what ``native_job`` raises."""
    scripts = dict(body["alwayson_scripts"])
    ours = {key: scripts.pop(key) for key in KEYS if key in scripts}
    for key, value in ours.items():
        if value is not None and not isinstance(value, str) and key not in ("id_task", "uid"):
            raise errors.BadRequest(
                f"expected a string, got {json.dumps(value)[:60]}", field=f"alwayson_scripts.{key}"
            )
    payload = validated({**body, "alwayson_scripts": scripts}, route)
    link = ours.get("image_link")
    if link:
        if kind != "img2img":
            raise errors.BadRequest(
                "txt2img has no input picture; send the request to /sdapi/v1/img2img",
                field="alwayson_scripts.image_link",
            )
        payload["init_images"] = [link]
    elif kind == "img2img" and not payload.get("init_images"):
        raise errors.BadRequest(
            "img2img needs a picture: give init_images (base64) or alwayson_scripts.image_link (a URL)",
            field="init_images",
        )
    # From here on it is a native request that says the same in the webui's own words.
    override = dict(payload.get("override_settings") or {})
    for name in ("sd_model_checkpoint", "sd_vae"):
        if ours.get(name):
            override[name] = ours[name]
    payload = {**payload, "override_settings": override, "save_images": True}
    job = await native_job(kind, payload, owner=owner)
    return replace(
        job,
        dialect="eas",
        target=Target("eas", ours.get("save_dir") or None),
        labels={key: str(ours[key]) for key in ("id_task", "uid") if ours.get(key) is not None},
    )


async def plain_native_job(kind: Kind, payload: Mapping[str, Any], *, owner: str) -> Job:
    """The job of a native request whose names the engine itself checks (inside the webui)."""
    override = dict(payload.get("override_settings") or {})
    checkpoint, vae = override.pop("sd_model_checkpoint", None), override.pop("sd_vae", None)
    payload = {**payload, "override_settings": override}
    return Job(kind, payload, owner=owner, checkpoint=checkpoint, vae=vae)


def validated(body: dict[str, Any], route: APIRoute) -> dict[str, Any]:
    """The native payload, its defaults filled in by the native route's own model."""
    if route.body_field is None:
        return body
    model, problems = route.body_field.validate(body, {}, loc=("body",))
    if problems:
        # FastAPI's own error flattens what either pydantic gives it.
        first = RequestValidationError(problems if isinstance(problems, list) else [problems]).errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        raise errors.BadRequest(first["msg"], field=where or "body")
    return dict(model.model_dump() if hasattr(model, "model_dump") else model.dict())


# -- answers --------------------------------------------------------------------------------------


def _success(labels: Mapping[str, str], outcome: Outcome, seconds: float) -> Response:
    failed = [picture.error for picture in outcome.pictures if picture.error]
    told = outcome.of_role("grid", "image")
    return _answer(
        errors.SavingFailed.http_status if failed else 200,
        labels,
        seconds,
        status=errors.SavingFailed.eas_status if failed else 0,
        error_msg="; ".join(failed),
        image_url=",".join(picture.path for picture in told if picture.path),
        seed=",".join(str(picture.seed) for picture in outcome.of_role("image")),
        image_mask_url=",".join(picture.path for picture in outcome.of_role("control_map") if picture.path),
        image_links=[picture.link for picture in told if picture.link],
        info=outcome.info,
    )


def _in_our_words(error: errors.ServiceError, scripts: Mapping[str, Any]) -> errors.ServiceError:
    """The error with the field's name as the caller wrote it: ``image_link`` became ``init_images``."""
    if scripts.get("image_link") and (error.field or "").startswith("init_images"):
        return type(error)(error.args[0], field="image_link")
    return error


def _failure(labels: Mapping[str, str], error: errors.ServiceError, seconds: float) -> Response:
    answer = _answer(error.http_status, labels, seconds, status=error.eas_status, error_msg=str(error))
    return come_again(answer, error)


def failure_body(error: errors.ServiceError) -> bytes:
    """The guide's shape for a request that came to nothing and has no caller left to answer."""
    return bytes(_failure({}, error, 0.0).body)


def _answer(
    http_status: int,
    labels: Mapping[str, str],
    seconds: float,
    *,
    status: int,
    error_msg: str,
    image_url: str = "",
    seed: str = "",
    image_mask_url: str = "",
    image_links: Sequence[str] = (),
    info: Mapping[str, Any] | None = None,
) -> Response:
    """The guide's shape, the same for success and failure."""
    parameters: dict[str, Any] = {
        "id_task": labels.get("id_task"),
        "status": status,
        "image_url": image_url,
        "seed": seed,
        "error_msg": error_msg,
        "image_mask_url": image_mask_url,
        "total_time": seconds,
        "image_links": list(image_links),
    }
    if "uid" in labels:
        parameters["uid"] = labels["uid"]
    told = json.dumps({"hostname": socket.gethostname(), **(info or {})}, default=str)
    content = {"images": [], "parameters": parameters, "info": told}
    return JSONResponse(content, status_code=http_status)
