"""The rest of the serverless task API: log in, options, restart, and functions.

A *function* there is a deployment of one checkpoint. Here it is the engine's slot for that
checkpoint: its name is ``sd_`` and the SHA-256 of the checkpoint's name, and the resources that the
resource routes are given are kept and reported.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from sd_cloud import errors
from sd_cloud.dialects.asked import Seam, json_body
from sd_cloud.dialects.replay import Replay, call_job
from sd_cloud.dialects.routes import router_of, telling
from sd_cloud.dialects.tasks import refusal
from sd_cloud.store.models import FunctionTable

#: Resources a function may be given, and what each is.
RESOURCES: dict[str, tuple[type, ...]] = {
    "image": (str,),
    "cpu": (int, float),
    "instanceType": (str,),
    "memorySize": (int,),
    "gpuMemorySize": (int,),
    "timeout": (int,),
    "extraArgs": (str,),
    "vpcConfig": (dict,),
    "nasConfig": (dict,),
    "ossMountConfig": (dict,),
    "mountPoints": (list,),
    "env": (dict,),
}


class JsonRoute(APIRoute):
    """A route for JSON only: a form to the same path is somebody else's (Gradio's own log-in)."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http":
            kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
            if not kind.strip().lower().startswith(b"application/json"):
                return Match.NONE, {}
        return super().matches(scope)


def router(seam: Seam) -> APIRouter:
    admin, functions = _Admin(seam), _Functions(seam)
    routes = router_of(
        refusal,
        ("POST", "/options", admin.options),
        ("POST", "/restart", admin.restart),
        ("GET", "/list/sdapi/functions", functions.listed),
        ("GET", "/list/sdapi/fucntions", functions.listed),
        ("POST", "/batch_update_sd_resource", functions.update),
        ("POST", "/del/sd/functions", functions.delete),
    )
    login = telling(refusal, admin.login)
    routes.routes.append(JsonRoute("/login", login, methods=["POST"], response_model=None))
    return routes


class _Admin:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam

    async def login(self, request: Request) -> Response:
        body = await json_body(request)
        name, password = body.get("userName"), body.get("password")
        for field, value in (("userName", name), ("password", password)):
            if not isinstance(value, str) or not value:
                raise errors.BadRequest("this field is required, as a string", field=field)
        users = self._seam.access.users
        if users is None or not await users.any():
            raise errors.Unauthorized("there is no user yet; the operator adds one with `sd-cloud users add`")
        token = await users.log_in(str(name), str(password))
        return JSONResponse({"token": token, "userName": name, "message": "success"})

    async def options(self, request: Request) -> Response:
        """``{"data": {…}}``: the same as the native options."""
        caller = await self._seam.access.permitted(request)
        data = (await json_body(request)).get("data")
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except ValueError as error:
                raise errors.BadRequest(f"not JSON: {error}", field="data") from None
        if not isinstance(data, dict):
            raise errors.BadRequest("expected an object of options", field="data")
        call = call_job(
            method="POST", path="/sdapi/v1/options", headers=[("content-type", "application/json")],
            body=json.dumps(data).encode(), caller=caller, dialect="tasks",
        )  # fmt: skip
        replay = self._seam.service.replay or Replay(self._seam.app)
        reply = await replay(call)
        if reply.status >= 400:
            raise errors.BadRequest(reply.body.decode("utf-8", "replace")[:500], field="data")
        return JSONResponse({"message": "success"})

    async def restart(self, request: Request) -> Response:
        """Start the engine again: its memory is empty, a job it was running is delivered again."""
        await self._seam.access.permitted(request)
        restart = getattr(self._seam.service.engine, "restart", None)
        if restart is None:
            raise errors.NotImplementedHere("inside the webui use its own /sdapi/v1/server-restart")
        await restart()
        return JSONResponse({"message": "success"})


class _Functions:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._table = FunctionTable(seam.service.store.database)

    async def listed(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        kept = await self._table.all()
        functions = []
        for model in await self._models():
            resources, deleted = kept.get(function_name(model), ({}, False))
            if not deleted:
                functions.append({"functionName": function_name(model), "model": model, **resources})
        return JSONResponse({"status": "success", "functions": functions})

    async def update(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        body = await json_body(request)
        wanted = body.pop("models", None)
        given = _resources(body)
        models = await self._models()
        if wanted is not None and not (isinstance(wanted, list) and all(isinstance(m, str) for m in wanted)):
            raise errors.BadRequest("expected a list of model names", field="models")
        kept = await self._table.all()
        failed = []
        for model in wanted or models:
            found = self._seam.service.catalogue().checkpoint(model)
            if found is None:
                failed.append(function_name(model))
                continue
            name = function_name(found.name)
            await self._table.put(name, found.name, {**kept.get(name, ({}, False))[0], **given})
        if failed:
            content = {
                "status": "fail",
                "failFuncList": failed,
                "errMsg": "no such model is installed for these functions",
            }
            return JSONResponse(content, status_code=500)
        return JSONResponse({"status": "success", "failFuncList": [], "errMsg": ""})

    async def delete(self, request: Request) -> Response:
        await self._seam.access.permitted(request)
        wanted = (await json_body(request)).get("functions")
        if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
            raise errors.BadRequest("expected a list of function names", field="functions")
        known = {function_name(model): model for model in await self._models()}
        fails = []
        for name in wanted:
            if name in known:
                await self._table.put(name, known[name], {}, deleted=True)
            else:
                fails.append({"functionName": name, "err": "there is no such function"})
        if fails:
            return JSONResponse({"status": "fail", "fails": fails}, status_code=500)
        return JSONResponse({"status": "success", "fails": []})

    async def _models(self) -> list[str]:
        catalogue = await asyncio.to_thread(self._seam.service.catalogue)
        return [one.name for one in catalogue.checkpoints]


def function_name(model: str) -> str:
    return "sd_" + hashlib.sha256(model.encode()).hexdigest()


def _resources(body: dict[str, Any]) -> dict[str, Any]:
    """Raises BadRequest for a resource that is not known, or of another type."""
    for field, value in body.items():
        if field not in RESOURCES:
            raise errors.BadRequest(f"no such resource; there are {', '.join(RESOURCES)}", field=field)
        if not isinstance(value, RESOURCES[field]) or isinstance(value, bool):
            names = " or ".join(kind.__name__ for kind in RESOURCES[field])
            raise errors.BadRequest(f"expected {names}", field=field)
    return body
