"""``Task-Flag`` and ``Request-Type: async`` on any other route: its answer is kept as a task's result.

The guide's chapter "其他接口". The task's id is in the response header ``taskId``; with
``Request-Type: async`` that is all there is to wait for, else the route's own answer follows.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sd_cloud import errors
from sd_cloud.dialects.asked import Seam, callback_in
from sd_cloud.dialects.idempotency import idempotency_of
from sd_cloud.dialects.replay import REPLAYED, call_job
from sd_cloud.dialects.tasks import refusal, wants_async

#: Routes that are tasks by themselves, or about tasks.
OWN_PATHS = ("/txt2img", "/img2img", "/extra_images", "/login", "/healthz", "/readyz")
OWN_PREFIXES = ("/tasks/", "/api/predict/", "/api/v1/", "/sd-cloud/", "/models", "/list/", "/del/", "/queue/")
NO = ("", "0", "false", "no", "off")


class TaskFlag:
    """ASGI middleware: requests that ask to be tasks become some; all others pass untouched."""

    def __init__(self, app: ASGIApp, *, seam: Seam) -> None:
        self.app = app
        self._seam = seam

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get(REPLAYED) or not _asks(scope):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._as_task(request)
        except errors.ServiceError as error:
            response = refusal(error)
        await response(scope, receive, send)

    async def _as_task(self, request: Request) -> Response:
        caller = await self._seam.access.permitted(request)
        later = wants_async(request)
        job = call_job(
            method=request.method,
            path=_path(request.scope),
            query=request.url.query,
            headers=request.headers.items(),
            body=await request.body(),
            caller=caller,
            dialect="tasks",
            callback_url=callback_in(request.headers.get("callback-url"), "Callback-Url"),
        )
        service = self._seam.service
        task_id = await service.submit(job, idempotency=await idempotency_of(request))
        if later:
            content = {"taskId": task_id, "status": "submitted", "message": "ask for /tasks/{taskId}/result"}
            return JSONResponse(content, headers={"taskId": task_id})
        try:
            outcome = await service.result(task_id)
        except errors.ServiceError as error:
            kept = (await service.task(task_id)).outcome
            if kept is None or kept.reply is None:
                return refusal(error, task_id)
            outcome = kept
        assert outcome.reply is not None
        headers = {**outcome.reply.headers, "taskId": task_id}
        return Response(outcome.reply.body, status_code=outcome.reply.status, headers=headers)


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _asks(scope: Scope) -> bool:
    path = _path(scope)
    if path in OWN_PATHS or path.startswith(OWN_PREFIXES):
        return False
    for name, value in scope["headers"]:
        if name == b"task-flag" and value.decode("latin-1").strip().lower() not in NO:
            return True
        if name == b"request-type" and value.strip().lower() == b"async":
            return True
    return False
