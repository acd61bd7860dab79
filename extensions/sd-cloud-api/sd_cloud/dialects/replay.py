"""Any route of the app as a task: the request kept as a `Job`, played to the app when it is its turn.

What of a request is kept with the task: its method, path, query, body and content headers. Never its
credentials: the replayed request carries its caller in the ASGI scope, where none from outside can.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message

from sd_cloud.access import Caller
from sd_cloud.job import Job, Reply

#: Request headers that say what the body is and how the answer should look.
KEPT_HEADERS = frozenset({"content-type", "accept", "accept-language", "user-agent"})
#: Response headers that belong to one connection, not to the answer.
DROPPED_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "date", "server"})

CALLER = "sd_cloud.caller"
REPLAYED = "sd_cloud.replayed"


def call_job(
    *,
    method: str,
    path: str,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    caller: Caller,
    dialect: str,
    **more: Any,
) -> Job:
    """The job of a request to another route of this app. ``path`` is without the app's root path."""
    payload = {
        "method": method,
        "path": path,
        "query": query,
        "headers": {name.lower(): value for name, value in headers if name.lower() in KEPT_HEADERS},
        "body": base64.b64encode(body).decode("ascii"),
        "admin": caller.admin,
    }
    return Job("call", payload, owner=caller.owner, dialect=dialect, **more)


class Replay:
    """Plays calls to one app, middleware included, and takes down the answers."""

    def __init__(self, app: ASGIApp, *, authorization: str | None = None) -> None:
        self._app = app
        self._authorization = authorization

    async def __call__(self, job: Job) -> Reply:
        taken = _Taken(base64.b64decode(job.payload["body"]))
        await self._app(self._scope(job), taken.receive, taken.send)
        return Reply(taken.status, taken.headers, b"".join(taken.body))

    def _scope(self, job: Job) -> dict[str, Any]:
        kept: Mapping[str, str] = job.payload["headers"]
        sent = {"host": "127.0.0.1", **kept, "content-length": str(_length(job.payload["body"]))}
        if self._authorization:
            sent["authorization"] = self._authorization
        path = job.payload["path"]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": job.payload["method"],
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8"),
            "root_path": "",
            "query_string": job.payload["query"].encode("latin-1"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            CALLER: Caller(job.owner, admin=bool(job.payload["admin"])),
            REPLAYED: True,
        }


class _Taken:
    """One exchange: the body in, the answer out."""

    def __init__(self, body: bytes) -> None:
        self._given: bytes | None = body
        self.status = 500
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self._ended = False

    async def receive(self) -> Message:
        if self._given is not None:
            body, self._given = self._given, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._ended:
            # Nobody hangs up on a replayed call: who waits for that waits for its end.
            import anyio

            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in message.get("headers", [])
                if name.decode("latin-1").lower() not in DROPPED_HEADERS
            }
        elif message["type"] == "http.response.body":
            self.body.append(message.get("body", b""))
            self._ended = not message.get("more_body", False)


def _length(encoded: str) -> int:
    return len(encoded) * 3 // 4 - encoded.count("=")
