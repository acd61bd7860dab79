"""Users, their tokens and quotas, and what was used: for admins."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sd_cloud.access import Administration
from sd_cloud.dialects.asked import Seam, json_body
from sd_cloud.dialects.pages import told
from sd_cloud.moments import moment
from sd_cloud.store import usage
from sd_cloud.store.users import UserTable

USERS = "/sd-cloud/v1/users"
USAGE = "/sd-cloud/v1/usage"


def router(seam: Seam) -> APIRouter:
    routes = APIRouter()
    users = _Administration(seam)
    for path, endpoint, method in (
        (USAGE, users.usage, "GET"),
        (USERS, users.listed, "GET"),
        (USERS, users.add, "POST"),
        (USERS + "/{name}", users.change, "PATCH"),
        (USERS + "/{name}", users.remove, "DELETE"),
        (USERS + "/{name}/tokens", users.tokens, "GET"),
        (USERS + "/{name}/tokens", users.make_token, "POST"),
        (USERS + "/{name}/tokens/{token_id}", users.revoke_token, "DELETE"),
    ):
        routes.add_api_route(path, told(endpoint), methods=[method], response_model=None)
    return routes


class _Administration:
    def __init__(self, seam: Seam) -> None:
        self._access = seam.access
        self._database = seam.service.store.database
        self._users = Administration(UserTable(self._database))

    async def usage(self, request: Request) -> Response:
        """CSV; ``from``, ``to`` (days in UTC, both included, or moments) and ``user`` in the query."""
        await self._access.permitted(request)
        query = request.query_params
        lines = usage.as_csv(
            self._database,
            since=moment(query["from"], field="from") if query.get("from") else 0.0,
            until=moment(query["to"], field="to", ends=True) if query.get("to") else None,
            owner=query.get("user") or None,
        )
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return StreamingResponse(lines, media_type="text/csv", headers=headers)

    async def listed(self, request: Request) -> Response:
        await self._access.permitted(request)
        return JSONResponse({"users": await self._users.all()})

    async def add(self, request: Request) -> Response:
        await self._access.permitted(request)
        body = await json_body(request)
        name = body.pop("name", None)
        return JSONResponse(await self._users.add(name, body), status_code=201)

    async def change(self, request: Request, name: str) -> Response:
        await self._access.permitted(request)
        return JSONResponse(await self._users.change(name, await json_body(request)))

    async def remove(self, request: Request, name: str) -> Response:
        await self._access.permitted(request)
        await self._users.remove(name)
        return JSONResponse({"removed": name})

    async def tokens(self, request: Request, name: str) -> Response:
        await self._access.permitted(request)
        return JSONResponse({"tokens": await self._users.tokens(name)})

    async def make_token(self, request: Request, name: str) -> Response:
        await self._access.permitted(request)
        body = await json_body(request)
        token = await self._users.make_token(name, body.get("label", "made by an admin"), body.get("days"))
        return JSONResponse({"token": token}, status_code=201)

    async def revoke_token(self, request: Request, name: str, token_id: str) -> Response:
        await self._access.permitted(request)
        await self._users.revoke_token(name, token_id)
        return JSONResponse({"revoked": token_id})
