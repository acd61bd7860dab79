"""The routes of a dialect of ours: endpoints under paths, and its errors told in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sd_cloud import errors

R = TypeVar("R", bound=Response)
Endpoint = Callable[[Request], Awaitable[Response]]
Refusal = Callable[[errors.ServiceError], Response]


def router_of(refusal: Refusal, *table: tuple[str, str, Endpoint]) -> APIRouter:
    """Method, path and endpoint of each route; ``refusal`` renders what an endpoint raises."""
    routes = APIRouter()
    for method, path, endpoint in table:
        routes.add_api_route(path, telling(refusal, endpoint), methods=[method], response_model=None)
    return routes


def telling(refusal: Refusal, endpoint: Endpoint) -> Endpoint:
    @wraps(endpoint)
    async def with_errors(request: Request) -> Response:
        try:
            return await endpoint(request)
        except errors.ServiceError as error:
            return refusal(error)

    return with_errors


def status_of(error: errors.ServiceError) -> int:
    """These dialects have no 422."""
    return 400 if error.http_status == 422 else error.http_status


def refused(error: errors.ServiceError, content: Any) -> JSONResponse:
    """``content`` under the error's status, with when to come again where that helps."""
    return come_again(JSONResponse(content, status_code=status_of(error)), error)


def come_again(response: R, error: errors.ServiceError) -> R:
    """The response with when to come again, where that helps."""
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
