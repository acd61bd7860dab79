"""From a queued request's end to the message in the sink: once, also after a crash.

The input message is the reminder: it is taken away in the transaction that puts the result into
the sink. What ended while nobody was there to do so is found when the service starts.
"""

from __future__ import annotations

import asyncio
import json
import logging

import anyio

from sd_cloud.dialects import eas
from sd_cloud.dialects.asked import Seam
from sd_cloud.dialects.queue_request import sink_of
from sd_cloud.errors import EngineFailed
from sd_cloud.job import Outcome
from sd_cloud.store.base import Task
from sd_cloud.store.messages import MessageStore
from sd_cloud.store.pushing import Pushing

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
#: How often is looked for what nobody was told of, and for what dead processes left behind.
HOUSEKEEPING_SECONDS = 30.0


class Results:
    def __init__(self, seam: Seam, messages: MessageStore, pushing: Pushing) -> None:
        self._seam = seam
        self._messages = messages
        self._pushing = pushing
        self._sink = sink_of(seam.settings.async_service)

    async def run(self) -> None:
        """For as long as the service runs."""
        ended: asyncio.Queue[str] = asyncio.Queue()
        stop = self._seam.service.store.database.listen("ended", ended.put_nowait)
        try:
            await self._one(ended, "")
            while True:
                task_id = ""
                # Not wait_for, which loses a cancellation that comes with a result (Python 3.11).
                with anyio.move_on_after(HOUSEKEEPING_SECONDS):
                    task_id = await ended.get()
                await self._one(ended, task_id)
        finally:
            stop()

    async def _one(self, ended: asyncio.Queue[str], task_id: str) -> None:
        try:
            if task_id:
                await self._deliver(task_id)
            else:  # something may have been missed
                await self._catch_up()
        except Exception:
            log.exception("the result of task %r did not reach the sink; trying again", task_id)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, ended.put_nowait, task_id)

    async def _catch_up(self) -> None:
        await self._pushing.forget_dead()
        for task_id, there in await self._messages.unfinished():
            if there:
                await self._deliver(task_id)
            else:  # it expired before its end was told
                await self._messages.drop(task_id)

    async def _deliver(self, task_id: str) -> None:
        task = await self._seam.service.store.get(task_id)
        if task is None or task.job.dialect != "queue":
            return
        data, message = await self.rendered(task)
        await self._messages.finish(task_id, self._sink, data, message)

    async def rendered(self, task: Task) -> tuple[bytes, str]:
        """The sink message's data and its ``message``: the route's answer, or why there is none."""
        outcome = task.outcome or Outcome()
        if outcome.reply is None:
            error = task.error or EngineFailed("the task ended without an answer")
            return eas.failure_body(error), f"{error.http_status} {error.code}"
        message = "" if outcome.reply.status < 400 else str(outcome.reply.status)
        if len(outcome.reply.body) <= self._seam.settings.queue_payload_bytes:
            return outcome.reply.body, message
        link = await self._seam.service.outputs.keep_reply(task.job, outcome.reply)
        return _pointing(outcome, link), message


def _pointing(outcome: Outcome, link: str) -> bytes:
    """The guide's shape, for an answer that is too large for a message: where it is to be had."""
    paths = [picture.path for picture in outcome.of_role("grid", "image") if picture.path]
    parameters = {
        "id_task": None,
        "status": 0 if outcome.reply is not None and outcome.reply.status < 400 else EngineFailed.eas_status,
        "image_url": ",".join(paths),
        "seed": ",".join(str(picture.seed) for picture in outcome.of_role("image")),
        "error_msg": "",
        "total_time": outcome.seconds,
        "result_link": link,
    }
    return json.dumps({"images": [], "parameters": parameters, "info": ""}).encode()
