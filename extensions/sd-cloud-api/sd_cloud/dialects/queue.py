"""The EAS queue service, for its SDKs: ``/api/predict/<service>`` and its ``/sink``.

A message put into the input is a request to a route of this app (the path behind the service's
name) and becomes a task; its answer goes to the sink, under the message's tags and ``requestId``.
Wire format: what the ``eas-prediction`` package and the Java client send and read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

import anyio
from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, WebSocketRoute

from sd_cloud import errors
from sd_cloud.access import Caller
from sd_cloud.dialects.asked import Seam, callback_beside
from sd_cloud.dialects.idempotency import idempotency_of
from sd_cloud.dialects.queue_frames import PROTOBUF, frame_json, frames_bytes
from sd_cloud.dialects.queue_request import (
    GROUP_HEADER,
    LIMIT_LENGTH,
    PRIORITY_HEADER,
    REQUEST_ID_HEADER,
    USER_HEADER,
    Place,
    Query,
    identity_of,
    place_of,
    priority_of,
)
from sd_cloud.dialects.queue_results import Results
from sd_cloud.dialects.queue_watch import Watchers
from sd_cloud.dialects.replay import call_job
from sd_cloud.dialects.routes import refused, telling
from sd_cloud.job import new_id
from sd_cloud.store.messages import MessageStore
from sd_cloud.store.pushing import Pushing
from sd_cloud.store.queues import Message

log = logging.getLogger(__name__)

PREFIX = "/api/predict/"
#: The wait of a read without ``_timeout_``.
DEFAULT_WAIT_SECONDS = 0.0


def router(seam: Seam) -> APIRouter:
    database = seam.service.store.database
    messages, pushing = MessageStore(database), Pushing(database)
    watchers = Watchers(seam, messages, pushing)
    queue = _Queue(seam, messages, pushing, watchers)
    seam.service.beside.append(Results(seam, messages, pushing).run)
    routes = APIRouter()
    path = PREFIX + "{path:path}"
    routes.routes.append(WebSocketRoute(path, watchers.watch))
    routes.add_api_route(
        path, telling(refusal, queue.answer), methods=["GET", "POST", "PUT", "DELETE"], response_model=None,
        include_in_schema=False,
    )  # fmt: skip
    return routes


class _Queue:
    def __init__(self, seam: Seam, messages: MessageStore, pushing: Pushing, watchers: Watchers) -> None:
        self._seam = seam
        self._messages = messages
        self._pushing = pushing
        self._watchers = watchers

    async def answer(self, request: Request) -> Response:
        caller = await self._seam.access.permitted(request)
        place = place_of(request.path_params["path"], self._seam.settings, caller.owner)
        query = Query.of(request)
        if request.method == "POST":
            return await self._post(request, place, query, caller)
        if request.method == "PUT":
            return await self._put(request, place, query)
        if request.method == "DELETE":
            return await self._delete(place, query)
        return await self._get(request, place, query)

    # -- put ------------------------------------------------------------------------------------

    async def _post(self, request: Request, place: Place, query: Query, caller: Caller) -> Response:
        if query.asks("_eos_"):
            await self._messages.end(place.queue, forced=query.asks("_force_"))
            return PlainTextResponse("OK")
        data = await self._body(request)
        priority = priority_of(request, query)
        if place.route is None:
            request_id = str(uuid4())
            index = await self._messages.put(
                place.queue, data, {**query.tags, "requestId": request_id}, request_id=request_id,
                priority=priority,
            )  # fmt: skip
        else:
            index, request_id = await self._run(request, place, query, caller, data, priority)
        return PlainTextResponse(str(index), headers={REQUEST_ID_HEADER: request_id})

    async def _run(
        self,
        request: Request,
        place: Place,
        query: Query,
        caller: Caller,
        data: bytes,
        priority: int,
    ) -> tuple[int, str]:
        """An input message: a task of the same id as the request, reminded of by the message. The
        message's index and the request's id."""
        assert place.route is not None
        request_id = new_id()
        self._check_route(place.route)
        kind = request.headers.get("content-type") or "application/json"
        if kind.startswith("application/x-www-form-urlencoded"):
            kind = "application/json"  # what HTTP clients say of bytes when nobody told them
        tags = {**query.tags, "requestId": request_id}
        job = call_job(
            method="POST",
            path=place.route,
            query=urlencode(query.tags),
            headers=[("content-type", kind), ("accept", "application/json")],
            body=data,
            caller=caller,
            dialect="queue",
            callback_url=callback_beside(query.tags, data),
            priority=priority,
            labels=query.tags,
            id=request_id,
        )
        index = 0

        def put(connection: Connection) -> None:
            nonlocal index
            index = self._messages.put_within(
                connection, place.queue, data, tags, request_id=request_id, priority=priority,
                task_id=request_id,
            )  # fmt: skip

        # In one transaction: there is no message without its task, and no task without its message.
        idempotency = await idempotency_of(request, data)
        task_id = await self._seam.service.submit(job, beside=put, idempotency=idempotency)
        if task_id != request_id:  # sent before
            index = await self._messages.index_of(task_id)
        return index, task_id

    async def _body(self, request: Request) -> bytes:
        limit = self._seam.settings.queue_payload_bytes
        announced = request.headers.get("content-length", "")
        body = bytearray()
        if not (announced.isdigit() and int(announced) > limit):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise PayloadTooLarge(
            f"a message has at most {limit} bytes (--queue-payload-kib); send pictures as links "
            "(alwayson_scripts.image_link) and have results saved (alwayson_scripts.save_dir)"
        )

    def _check_route(self, path: str) -> None:
        """Raises TaskNotFound for a path that no POST route of the app has."""
        scope = {
            "type": "http", "method": "POST", "path": path, "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        if not path.startswith(PREFIX):
            for route in self._seam.app.router.routes:
                if route.matches(scope)[0] == Match.FULL:
                    return
        raise errors.TaskNotFound(f"this service has no POST route {path}")

    # -- commit, delete -------------------------------------------------------------------------

    async def _put(self, request: Request, place: Place, query: Query) -> Response:
        if place.route is not None:
            raise errors.BadRequest("the service itself commits its input; commit what is in /sink")
        group, uid = identity_of(request)
        indexes = query.indexes()
        if query.asks("_negative_"):
            form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
            code, reason = form.get("_code_", ""), form.get("_reason_", "")
            log.info("%s.%s returns messages %s: %s %s", group, uid, indexes, code[:40], reason[:200])
            self._watchers.refused(place.queue, group, uid, indexes)
            await self._pushing.refuse(place.queue, group, indexes)
        else:
            await self._pushing.commit(place.queue, group, indexes)
        return PlainTextResponse("OK")

    async def _delete(self, place: Place, query: Query) -> Response:
        if query.asks("_trunc_"):
            gone = await self._messages.truncate(place.queue, query.number("_index_", 0))
        else:
            gone = await self._messages.remove(place.queue, query.indexes())
        await self._cancel(gone)
        return PlainTextResponse("OK")

    async def _cancel(self, task_ids: Iterable[str]) -> None:
        """A message taken out of the input is a request taken back."""
        for task_id in task_ids:
            if await self._seam.service.store.get(task_id) is not None:
                await self._seam.service.cancel(task_id)

    # -- get ------------------------------------------------------------------------------------

    async def _get(self, request: Request, place: Place, query: Query) -> Response:
        if query.asks("_watch_"):
            raise errors.BadRequest("watching needs a WebSocket connection", field="_watch_")
        if query.asks("_attrs_"):
            return JSONResponse(await self._attributes(place))
        if query.asks("_search_"):
            return await self._search(place, query)
        if query.asks("_count_"):
            priority = query.number("_priority_", -1)
            count = await self._messages.count(
                place.queue, query.tags, priority=priority if priority >= 0 else None
            )
            return PlainTextResponse(str(count))
        return await self._read(request, place, query)

    async def _read(self, request: Request, place: Place, query: Query) -> Response:
        length = query.number("_length_", 1, least=1, most=LIMIT_LENGTH)
        first = query.number("_index_", 0, least=-1)
        take = query.asks("_auto_delete_")
        found = await self._wait_for(place, query, first, length, take=take)
        if take:
            await self._cancel(one.task_id for one in found if one.task_id is not None)
        accept = request.headers.get("accept", "")
        if query.asks("_raw_") or accept in ("application/octet-stream", "text/plain"):
            if not found:
                return Response(status_code=204)
            headers = {REQUEST_ID_HEADER: found[0].tags.get("requestId", "")}
            return Response(found[0].data, media_type="application/octet-stream", headers=headers)
        if "protobuf" in accept:
            return Response(frames_bytes(found), media_type=PROTOBUF)
        return JSONResponse([frame_json(one) for one in found])

    async def _wait_for(
        self, place: Place, query: Query, first: int, length: int, *, take: bool
    ) -> list[Message]:
        """``length`` messages, or what there is when the time is over."""
        deadline = time.monotonic() + query.seconds("_timeout_", DEFAULT_WAIT_SECONDS)
        news = asyncio.Event()
        stop = self._messages.listen(place.queue, news.set)
        read = partial(self._messages.read, place.queue, first_index=first, length=length, tags=query.tags)
        try:
            while True:
                news.clear()
                found = await read()
                left = deadline - time.monotonic()
                if len(found) >= length or left <= 0:
                    # Only now: whoever hangs up while waiting has taken nothing.
                    taken = await read(take=True) if take and found else found
                    if taken or left <= 0:
                        return taken
                    continue  # another reader was quicker
                with anyio.move_on_after(left):  # not wait_for, which may lose that the reader hung up
                    await news.wait()
        finally:
            stop()

    async def _search(self, place: Place, query: Query) -> Response:
        index = query.number("_index_", 0)
        found = await self._messages.place(place.queue, index)
        if found is None:
            raise errors.TaskNotFound(f"no message {index} in this queue")
        pending, consumer, before = found
        return JSONResponse({"ConsumerId": consumer, "IsPending": pending, "WaitCount": before})

    async def _attributes(self, place: Place) -> dict[str, str]:
        """A flat object of strings, by the names that the clients look for."""
        state = await self._messages.extent(place.queue)
        watching = await self._pushing.watching(place.queue)
        settings = self._seam.settings
        told = {
            "meta.backend": "sqlite" if self._seam.service.store.database.sqlite else "postgresql",
            "meta.name": place.queue.name,
            "meta.state": "End" if state.ended else "Normal",
            "meta.maxPayloadBytes": str(settings.queue_payload_bytes),
            "meta.header.user": USER_HEADER,
            "meta.header.group": GROUP_HEADER,
            "meta.header.priority": PRIORITY_HEADER,
            "stream.approxMaxLength": str(settings.queue_limit),
            "stream.length": str(state.length),
            "stream.firstEntry": str(state.first),
            "stream.lastEntry": str(state.last),
            "consumers.status.total": str(len(watching)),
            "consumers.stats.total": str(len(watching)),
        }
        for number, one in enumerate(watching):
            told[f"consumers.list.[{number}]"] = (
                f"Id: {one.group}.{one.uid}, Index: {one.last}, Pending: {one.uncommitted}, Status: Running, "
                f"Idle: {one.seconds:.3f}s, Window: {one.window}, Slots: {one.window - one.uncommitted}, "
                f"AutoCommit: {str(one.auto_commit).lower()}"
            )
        for number, group in enumerate(sorted({one.group for one in watching})):
            members = [one for one in watching if one.group == group]
            told[f"groups.list.[{number}]"] = (
                f"Id: {group}, Pending: {sum(one.uncommitted for one in members)}, Consumers: {len(members)}"
            )
        return told


class PayloadTooLarge(errors.BadRequest):
    """A message is larger than the queue takes."""

    code, http_status = "payload_too_large", 413


def refusal(error: errors.ServiceError) -> Response:
    return refused(error, {"code": error.code, "message": str(error)})
