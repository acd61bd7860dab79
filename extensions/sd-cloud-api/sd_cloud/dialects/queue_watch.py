"""Watching an EAS queue: messages pushed over a WebSocket as they come.

A consumer holds at most ``_window_`` messages that it has not committed. When its connection ends,
what it holds goes to another consumer of its group, or to itself when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect

from sd_cloud import errors
from sd_cloud.dialects.asked import Seam
from sd_cloud.dialects.queue_frames import frame_bytes, json_text
from sd_cloud.dialects.queue_request import Query, identity_of, place_of
from sd_cloud.store.messages import MessageStore
from sd_cloud.store.pushing import Pushing
from sd_cloud.store.queues import Consumer, Message, NotWatching, Queue

log = logging.getLogger(__name__)

DEFAULT_WINDOW = 5
LIMIT_WINDOW = 1000
#: Until another try to give back what a consumer held that is gone.
RETRY_SECONDS = 5.0
#: WebSocket close codes (RFC 6455): all was said; not allowed; going away.
DONE, REFUSED, GOING = 1000, 1008, 1001


@dataclass
class _Watcher:
    consumer: Consumer
    news: asyncio.Event = field(default_factory=asyncio.Event)
    refused: set[int] = field(default_factory=set)
    pushed: list[int] = field(default_factory=list)  # with auto commit: not committed yet


class Watchers:
    """The watching connections of this process."""

    def __init__(self, seam: Seam, messages: MessageStore, pushing: Pushing) -> None:
        self._seam = seam
        self._messages = messages
        self._pushing = pushing
        self._here: dict[str, _Watcher] = {}

    def refused(self, queue: Queue, group: str, uid: str, indexes: Iterable[int]) -> None:
        """That consumer does not get these messages again while it is connected."""
        for one in self._here.values():
            if (one.consumer.queue, one.consumer.group, one.consumer.uid) == (queue, group, uid):
                one.refused.update(indexes)

    async def watch(self, socket: WebSocket) -> None:
        try:
            caller = await self._seam.access.permitted(socket)
            consumer, index_only = self._consumer(socket, caller.owner)
        except errors.ServiceError as error:
            await socket.close(REFUSED, reason=str(error)[:120])
            return
        await socket.accept()
        watcher = self._here[consumer.connection] = _Watcher(consumer)
        stop = self._messages.listen(consumer.queue, watcher.news.set)
        try:
            await self._pushing.arrive(consumer)
            await self._until_gone(socket, watcher, index_only=index_only)
        finally:
            stop()
            del self._here[consumer.connection]
            await asyncio.shield(self._leave(watcher))

    async def _leave(self, watcher: _Watcher) -> None:
        """Until it is done: what is held by a consumer that is gone goes to nobody else."""
        while True:
            try:
                if watcher.consumer.auto_commit:  # it may have hung up on the last message it wanted
                    await self._commit_pushed(watcher)
                await self._pushing.leave(watcher.consumer)
                return
            except Exception:  # a database that is away for a while
                if self._seam.service.closing:  # the next service finds it
                    raise
                log.exception("a consumer that is gone still holds its messages; trying again")
                await asyncio.sleep(RETRY_SECONDS)

    async def _commit_pushed(self, watcher: _Watcher) -> None:
        indexes = list(watcher.pushed)
        if indexes:
            await self._pushing.commit(watcher.consumer.queue, watcher.consumer.group, indexes)
        del watcher.pushed[: len(indexes)]

    def _consumer(self, socket: WebSocket, owner: str) -> tuple[Consumer, bool]:
        query = Query.of(socket)
        place = place_of(socket.path_params["path"], self._seam.settings, owner)
        if place.route is not None:
            raise errors.BadRequest("the service itself consumes its input; watch /sink")
        group, uid = identity_of(socket)
        consumer = Consumer(
            connection=uuid4().hex,
            queue=place.queue,
            group=group,
            uid=uid,
            window=query.number("_window_", DEFAULT_WINDOW, least=1, most=LIMIT_WINDOW),
            auto_commit=query.asks("_auto_commit_"),
            first_index=query.number("_index_", 0),
            tags=query.tags,
        )
        return consumer, query.asks("_index_only_")

    async def _until_gone(self, socket: WebSocket, watcher: _Watcher, *, index_only: bool) -> None:
        pushing = asyncio.ensure_future(self._push(socket, watcher, index_only=index_only))
        listening = asyncio.ensure_future(_hang_up(socket))
        try:
            await asyncio.wait({pushing, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (pushing, listening):
                one.cancel()
            results = await asyncio.gather(pushing, listening, return_exceptions=True)
        for result in results:
            # A consumer that is gone while a message is on its way to it is nothing to report.
            if isinstance(result, Exception) and not isinstance(result, (WebSocketDisconnect, RuntimeError)):
                log.error("watching %s ended", watcher.consumer.queue.name, exc_info=result)

    async def _push(self, socket: WebSocket, watcher: _Watcher, *, index_only: bool) -> None:
        consumer = watcher.consumer
        as_json = "json" in socket.headers.get("accept", "")
        while not self._seam.service.closing:
            watcher.news.clear()
            try:
                found = await self._next_for(watcher)
            except NotWatching:  # another process took this one for dead, and what was held went to others
                await self._pushing.arrive(consumer)
                continue
            for one in found:
                if consumer.auto_commit:
                    watcher.pushed.append(one.index)
                await _send(socket, replace(one, data=b"") if index_only else one, as_json=as_json)
            if found and consumer.auto_commit:
                await self._commit_pushed(watcher)
            if not found:
                ended, forced = await self._messages.ended(consumer.queue)
                if forced or (ended and await self._pushing.is_done(consumer)):
                    await socket.close(DONE, reason="the queue has ended")
                    return
                await watcher.news.wait()
        await socket.close(GOING, reason="the service is stopping")

    async def _next_for(self, watcher: _Watcher) -> list[Message]:
        consumer = watcher.consumer
        found = await self._pushing.next_for(consumer, refused=watcher.refused)
        # It may have refused one while it was being chosen for it again.
        again = [one.index for one in found if one.index in watcher.refused]
        if again:
            await self._pushing.refuse(consumer.queue, consumer.group, again)
        return [one for one in found if one.index not in again]


async def _send(socket: WebSocket, message: Message, *, as_json: bool) -> None:
    if as_json:
        await socket.send_text(json_text(message))
    else:
        await socket.send_bytes(frame_bytes(message))


async def _hang_up(socket: WebSocket) -> None:
    """Returns when the other side is gone. What it says is of no concern."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
