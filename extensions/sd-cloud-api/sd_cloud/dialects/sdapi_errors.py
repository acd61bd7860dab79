"""Errors of the native routes, in the webui's own shapes.

``{"error", "detail", "body", "errors"}`` for what a handler refuses; ``{"detail": [{loc, msg,
type}]}`` with 422 for a body that does not fit its model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sd_cloud.dialects.routes import come_again
from sd_cloud.errors import ServiceError

log = logging.getLogger(__name__)


class NativeRoute(APIRoute):
    """A route whose errors have the webui's shape, whatever app it hangs on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def native(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                return refusal(error)
            except RequestValidationError as error:
                problems = [{key: one.get(key) for key in ("loc", "msg", "type")} for one in error.errors()]
                return answer({"detail": problems}, status=422)
            except HTTPException as error:
                return answer(_body(type(error).__name__, error.detail), status=error.status_code)
            except Exception as error:
                log.exception("%s %s failed", request.method, request.url.path)
                said = "an error of the service itself; its log has the details"
                return answer(_body(type(error).__name__, said), status=500)

        return native


def refusal(error: ServiceError) -> Response:
    return come_again(answer(_body(error.code, str(error)), status=error.http_status), error)


def answer(content: Any, *, status: int = 200) -> Response:
    """A JSON response in ASCII: whatever a request said can be said back."""
    return Response(json.dumps(content), status_code=status, media_type="application/json")


def _body(error: str, detail: str) -> dict[str, str]:
    return {"error": error, "detail": detail, "body": "", "errors": detail}
