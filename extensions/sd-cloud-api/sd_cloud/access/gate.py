"""The gate in front of an app: an unknown caller gets no further."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sd_cloud import errors
from sd_cloud.access.caller import Access


class Gate:
    """ASGI middleware: every route but the open ones needs a caller; `ADMIN_ROUTES` an admin.

    ``open_paths``: exact paths, and prefixes where they end in a slash (``/`` itself is exact: it
    would otherwise open everything). The caller is left in
    ``scope["sd_cloud.caller"]``. Refusals have the shape of the webui's own errors.
    """

    def __init__(self, app: ASGIApp, *, access: Access, open_paths: tuple[str, ...] = ()) -> None:
        self.app = app
        self.access = access
        self.open_prefixes = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self.open_paths = frozenset(open_paths) - set(self.open_prefixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_open(scope):
            await self.app(scope, receive, send)
            return
        try:
            scope["sd_cloud.caller"] = await self.access.permitted(HTTPConnection(scope))
        except errors.ServiceError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": error.code})
                return
            await _refusal(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return path in self.open_paths or path.startswith(self.open_prefixes)


def _refusal(error: errors.ServiceError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Basic"} if error.http_status == 401 else None
    content = {"error": error.code, "detail": str(error), "body": "", "errors": str(error)}
    return JSONResponse(content, status_code=error.http_status, headers=headers)
