"""What our own pages ask for beside the caller's tasks: themselves, the caller's files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from sd_cloud import pages
from sd_cloud.access import Caller
from sd_cloud.dialects.asked import Seam, json_body
from sd_cloud.dialects.routes import come_again
from sd_cloud.errors import BadRequest, NotFound, ServiceError, Unauthorized
from sd_cloud.files import FileBrowser

#: Shown in the page itself; everything else is only ever saved by the browser.
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PAGE_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
#: A page runs its own modules and nothing else, and only the same site may frame it.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
FILE_HEADERS = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}


def router(seam: Seam) -> APIRouter:
    routes = APIRouter()
    asking = _Pages(seam)
    listed: list[tuple[str, Any, str]] = [
        (pages.ROUTE + "/{name}", asking.page, "GET"),
    ]
    if seam.settings.filebrowser:
        files = _Files(seam)
        listed += [
            ("/sd-cloud/v1/browse", files.listed, "GET"),
            ("/sd-cloud/v1/browse/file", files.get, "GET"),
            ("/sd-cloud/v1/browse/file", files.put, "PUT"),
            ("/sd-cloud/v1/browse/file", files.remove, "DELETE"),
            ("/sd-cloud/v1/browse/folder", files.make_folder, "POST"),
            ("/sd-cloud/v1/browse/rename", files.rename, "POST"),
        ]
    for path, endpoint, method in listed:
        routes.add_api_route(
            path, told(endpoint), methods=[method], response_model=None, include_in_schema=False
        )
    return routes


def told(endpoint: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Our own routes tell a ServiceError as JSON, whatever app they hang on."""

    @wraps(endpoint)
    async def with_errors(*args: object, **kwargs: object) -> Response:
        try:
            return await endpoint(*args, **kwargs)
        except ServiceError as error:
            content = {"error": error.code, "detail": str(error)}
            return come_again(JSONResponse(content, status_code=error.http_status), error)

    return with_errors


class _Pages:
    def __init__(self, seam: Seam) -> None:
        self._seam = seam

    async def page(self, request: Request, name: str) -> Response:
        try:
            await self._seam.access.permitted(request)
        except Unauthorized as error:
            # A browser then asks its user, and sends what it was told with everything the page asks for.
            return Response(str(error), 401, {"WWW-Authenticate": 'Basic realm="sd-cloud"'})
        path = pages.WEB / name
        if path.suffix not in PAGE_TYPES or path.name != name or not await asyncio.to_thread(path.is_file):
            raise NotFound(f"no page {name!r}", field="name")
        return FileResponse(path, media_type=PAGE_TYPES[path.suffix], headers=PAGE_HEADERS)


class _Files:
    """The FileBrowser over HTTP. A path travels as the query's ``path``."""

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._files = FileBrowser(seam.settings)

    async def listed(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        entries = await asyncio.to_thread(self._files.listed, caller, path)
        return JSONResponse({"path": path.strip("/"), "entries": [asdict(one) for one in entries]})

    async def get(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        file = await asyncio.to_thread(self._files.file, caller, path)
        kind = PICTURES.get(file.suffix.lower())
        return FileResponse(
            file,
            media_type=kind or "application/octet-stream",
            filename=file.name,
            content_disposition_type="inline" if kind else "attachment",
            headers=FILE_HEADERS,
        )

    async def put(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        size_bytes = await self._files.put(caller, path, request.stream())
        return JSONResponse({"path": path.strip("/"), "size_bytes": size_bytes}, status_code=201)

    async def remove(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        await asyncio.to_thread(self._files.remove, caller, path)
        return JSONResponse({"removed": path.strip("/")})

    async def make_folder(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        await asyncio.to_thread(self._files.make_folder, caller, path)
        return JSONResponse({"path": path.strip("/")}, status_code=201)

    async def rename(self, request: Request) -> Response:
        caller, path = await self._asked(request)
        name = (await json_body(request)).get("name")
        if not isinstance(name, str):
            raise BadRequest("expected the new name, a string", field="name")
        await asyncio.to_thread(self._files.rename, caller, path, name)
        return JSONResponse({"renamed": path.strip("/"), "name": name})

    async def _asked(self, request: Request) -> tuple[Caller, str]:
        caller = await self._seam.access.permitted(request)
        return caller, request.query_params.get("path", "")
