"""``--time-log`` and ``--api-log``: one line per request, as ASGI middleware."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

time_log = logging.getLogger("sd_cloud.time_log")
api_log = logging.getLogger("sd_cloud.api_log")

#: What counts as an API request; the page's own traffic does not.
API_PREFIXES = ("/sdapi/", "/sd-cloud/", "/api/")


class RequestLog:
    """``by_time``: method, route, status, seconds and job id of every request. ``by_api``: who
    asked, method, path, status and seconds of every API request.

    A dialect leaves its job's id in ``scope["sd_cloud.job"]``. The route is logged as declared
    (``/sd-cloud/v1/files/{token}/{name}``), so that no signed link ends up in a log.
    """

    def __init__(self, app: ASGIApp, *, by_time: bool, by_api: bool) -> None:
        self.app = app
        self.by_time = by_time
        self.by_api = by_api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            # 0: the connection ended before an answer began.
            self._tell(scope, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = _one_line(_route(scope))
        if self.by_time:
            job = scope.get("sd_cloud.job") or "-"
            time_log.info("%s %s %d %.3f s job=%s", scope["method"], route, status, seconds, job)
        if self.by_api and _path(scope).startswith(API_PREFIXES):
            client = scope["client"][0] if scope.get("client") else "-"
            api_log.info("%s %s %s %d %.3f s", client, scope["method"], route, status, seconds)


def _route(scope: Scope) -> str:
    declared: Any = getattr(scope.get("route"), "path", None)
    return declared if isinstance(declared, str) else _path(scope)


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _one_line(path: str) -> str:
    return path.encode("unicode_escape").decode("ascii")
