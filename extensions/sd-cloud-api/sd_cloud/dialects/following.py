"""The caller's tasks, whatever dialect made them: listed, one by one, as a stream of events, cancelled.

``GET /sd-cloud/v1/tasks/events`` is the listing again, as the event ``tasks``, whenever it changes.
``GET /sd-cloud/v1/tasks/{id}/events`` are server-sent events (WHATWG HTML, section 9.2): ``progress`` while
something changes, ``end`` once, then the stream ends. Every event has the whole state, so a client that
lost the connection misses nothing it needs; one that comes back after ``end`` is told 204, upon which an
``EventSource`` gives up.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sd_cloud.dialects.asked import FreshLinks, Seam, count_in
from sd_cloud.dialects.pages import told
from sd_cloud.job import Picture
from sd_cloud.outputs import links
from sd_cloud.service import Service
from sd_cloud.store.base import Task
from sd_cloud.store.webhooks import WebhookTable

TASKS = "/sd-cloud/v1/tasks"
TASKS_AT_ONCE = 200
LONGEST_PROMPT = 400
#: Longest side of a preview; in a listing it goes along with every look.
PREVIEW_PIXELS, LISTED_PIXELS = 512, 96
#: Between two events of one stream; an engine's steps may be quicker.
EVENT_SECONDS = 0.25
#: The same for listings, which cost more.
LISTING_SECONDS = 0.5
#: Proxies end connections on which nothing moves for a minute or less.
HEARTBEAT_SECONDS = 15.0
#: How long a browser waits before it comes back.
RETRY_MILLISECONDS = 2000
LAST_ID = "end"
STILL_THERE = ": still there\n\n"
Heard = TypeVar("Heard")
_END = object()
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold them back


def router(seam: Seam) -> APIRouter:
    routes = APIRouter()
    tasks = _Tasks(seam)
    for path, endpoint, method in (
        (TASKS, tasks.listed, "GET"),
        (TASKS + "/events", tasks.listings, "GET"),
        (TASKS + "/{task_id}", tasks.one, "GET"),
        (TASKS + "/{task_id}/events", tasks.events, "GET"),
        (TASKS + "/{task_id}/cancel", tasks.cancel, "POST"),
    ):
        routes.add_api_route(path, told(endpoint), methods=[method], response_model=None)
    return routes


class _Tasks:
    def __init__(self, seam: Seam) -> None:
        self._access = seam.access
        self._service: Service = seam.service
        self._webhooks = WebhookTable(seam.service.store.database)
        self._telling = Telling(seam)

    async def listed(self, request: Request) -> Response:
        """The caller's tasks, the newest first; an admin's are everybody's."""
        return JSONResponse(await self._listing(await self._shown(request)))

    async def listings(self, request: Request) -> Response:
        """The same, as events."""
        return _events(self._listings(await self._shown(request)))

    async def _shown(self, request: Request) -> _Shown:
        caller = await self._access.permitted(request)
        limit, offset = count_in(request, "limit", 50, TASKS_AT_ONCE), count_in(request, "offset", 0)
        self._service.start()  # what an earlier process left behind is taken up by the first who looks
        return _Shown(None if caller.admin else caller.owner, limit, offset)

    async def _listing(self, shown: _Shown) -> dict[str, Any]:
        found = await self._service.store.find(owner=shown.owner, limit=shown.limit, offset=shown.offset)
        return {
            "tasks": [await self._telling.listed(one) for one in found],
            "waiting": await self._service.queue_length(),
            "offset": shown.offset,
        }

    async def _listings(self, shown: _Shown) -> AsyncGenerator[str, None]:
        last = None
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async with aclosing(self._service.news()) as news, aclosing(_heard(news)) as changes:
            async for changed in changes:
                if changed is None:
                    yield STILL_THERE
                    continue
                listing = await self._listing(shown)
                facts = _without_links(listing)
                if facts != last:
                    last = facts
                    yield f"event: tasks\ndata: {json.dumps(listing)}\n\n"
                await asyncio.sleep(LISTING_SECONDS)

    async def one(self, request: Request, task_id: str) -> Response:
        task = await self._access.owned_task(request, self._service, task_id)
        told = {**await self._telling.said(task), "preview": await self._telling.preview(task)}
        if task.job.callback_url:
            told["callback"] = await self._webhooks.of(task_id)
        return JSONResponse(told)

    async def cancel(self, request: Request, task_id: str) -> Response:
        await self._access.owned_task(request, self._service, task_id)
        return JSONResponse({"cancelled": await self._service.cancel(task_id)})

    async def events(self, request: Request, task_id: str) -> Response:
        task = await self._access.owned_task(request, self._service, task_id)
        if task.over and request.headers.get("last-event-id") == LAST_ID:
            return Response(status_code=204)
        self._service.start()  # it hears of other processes only from then on
        return _events(self._stream(task_id))

    async def _stream(self, task_id: str) -> AsyncGenerator[str, None]:
        """The next change is awaited while the heartbeat goes on; a hung-up client ends both."""
        number = 0
        shown: Image.Image | None = None
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        async with aclosing(self._service.changes(task_id)) as tasks, aclosing(_heard(tasks)) as changes:
            async for task in changes:
                if task is None:
                    yield STILL_THERE
                    continue
                number += 1
                content = await self._telling.said(task)
                progress = self._service.progress_of(task)
                if progress is not None and progress.preview is not shown:
                    shown = progress.preview
                    content["preview"] = await self._telling.preview(task)
                yield _event(LAST_ID if task.over else str(number), task.over, content)
                if not task.over:
                    await asyncio.sleep(EVENT_SECONDS)


async def _heard(changes: AsyncGenerator[Heard, None]) -> AsyncGenerator[Heard | None, None]:
    """What comes, and None whenever nothing has come for a heartbeat's time. The next is awaited meanwhile; a
    hung-up client ends both."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(anext(changes, _END))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=HEARTBEAT_SECONDS)
            if not done:
                yield None
                continue
            if waiting.result() is _END:
                return
            yield waiting.result()
            waiting = asyncio.ensure_future(anext(changes, _END))
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@dataclass(frozen=True)
class _Shown:
    """Which tasks are listed; everybody's where ``owner`` is None."""

    owner: str | None
    limit: int
    offset: int


def _events(stream: AsyncGenerator[str, None]) -> Response:
    return StreamingResponse(stream, media_type="text/event-stream", headers=EVENT_HEADERS)


def _without_links(listing: dict[str, Any]) -> dict[str, Any]:
    """Links to the same picture are signed anew each time: they alone are no change."""
    tasks = [
        {**task, "pictures": [(one["name"], one["error"]) for one in task["pictures"]]}
        for task in listing["tasks"]
    ]
    return {**listing, "tasks": tasks}


class Telling:
    """A task as our own routes and the calls to ``callback_url`` tell it, whatever dialect made it."""

    def __init__(self, seam: Seam) -> None:
        self._service: Service = seam.service
        self._links = FreshLinks(seam.settings)

    async def said(self, task: Task) -> dict[str, Any]:
        job = task.job
        progress = self._service.progress_of(task)
        outcome = await self._links.of(task.outcome, job.owner) if task.outcome is not None else None
        left = progress.seconds_left(self._service.seconds_of(task)) if progress is not None else None
        return {
            "id": task.id,
            "kind": job.kind if job.kind != "call" else str(job.payload.get("path")),
            "dialect": job.dialect,
            "owner": job.owner,
            "labels": dict(job.labels),
            "checkpoint": job.checkpoint,
            "prompt": str(job.payload.get("prompt") or "")[:LONGEST_PROMPT],
            "state": task.state,
            "submitted": task.submitted,
            "scheduled": task.scheduled,
            "ended": task.ended,
            "attempts": task.attempts,
            "fraction": progress.fraction if progress is not None else None,
            "step": progress.step if progress is not None else None,
            "steps": progress.steps if progress is not None else None,
            "pass": progress.job_no if progress is not None else None,
            "passes": progress.job_count if progress is not None else None,
            "seconds_left": round(left, 1) if left is not None else None,
            "error": str(task.error) if task.error is not None else None,
            "error_code": task.error.code if task.error is not None else None,
            "pictures": [_picture(one) for one in outcome.pictures] if outcome is not None else [],
        }

    async def listed(self, task: Task) -> dict[str, Any]:
        return {**await self.said(task), "preview": await self.preview(task, LISTED_PIXELS)}

    async def preview(self, task: Task, most_pixels: int = PREVIEW_PIXELS) -> str | None:
        """A data URL: it can be an ``img``'s ``src`` as it stands."""
        progress = self._service.progress_of(task)
        if progress is None or progress.preview is None:
            return None
        return await asyncio.to_thread(_data_url, progress.preview, most_pixels)


def _event(number: str, over: bool, content: dict[str, Any]) -> str:
    return f"id: {number}\nevent: {'end' if over else 'progress'}\ndata: {json.dumps(content)}\n\n"


def _data_url(image: Image.Image, most_pixels: int) -> str:
    small = image.convert("RGB")
    small.thumbnail((most_pixels, most_pixels))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _picture(one: Picture) -> dict[str, Any]:
    """``file`` is relative to ``/sd-cloud/``: the page builds its address from its own."""
    link = one.link or ""
    at = link.find(links.ROUTE + "/")
    file = link[at + len("/sd-cloud/") :] if at >= 0 else None
    name = Path(one.path).name if one.path else None
    return {"role": one.role, "seed": one.seed, "name": name, "file": file, "link": link, "error": one.error}
