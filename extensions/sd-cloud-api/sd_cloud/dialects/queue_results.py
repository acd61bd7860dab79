"""From a queued request's end to the message in the sink: once, also after a crash.

The input message is the reminder: it is taken away in the transaction that puts the result into
the sink. What ended while nobody was there to do so is found when the service starts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time

from sd_cloud.dialects import eas
from sd_cloud.dialects.asked import Seam
from sd_cloud.dialects.queue_request import sink_of
from sd_cloud.errors import EngineFailed
from sd_cloud.job import Outcome
from sd_cloud.store.base import Task
from sd_cloud.store.messages import ENDED_TASKS, MessageStore

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


class Results:
    def __init__(self, seam: Seam, messages: MessageStore) -> None:
        self._seam = seam
        self._messages = messages
        self._sink = sink_of(seam.settings.async_service)
        self._began = time.time()

    async def run(self) -> None:
        """For as long as the service runs."""
        ended: asyncio.Queue[str] = asyncio.Queue()
        stop = self._seam.service.store.database.listen("ended", ended.put_nowait)
        try:
            await self._catch_up(ended, at_start=True)
            while True:
                await self._one(ended, await ended.get())
        finally:
            stop()

    async def _one(self, ended: asyncio.Queue[str], task_id: str) -> None:
        try:
            if task_id:
                await self._deliver(task_id)
            else:  # something may have been missed
                await self._catch_up(ended, at_start=False)
        except Exception:
            log.exception("the result of task %s did not reach the sink; trying again", task_id)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, ended.put_nowait, task_id)

    async def _catch_up(self, ended: asyncio.Queue[str], *, at_start: bool) -> None:
        if at_start:
            await self._messages.forget_dead()
        for task_id, state, submitted in await self._messages.unfinished():
            if state in ENDED_TASKS:
                ended.put_nowait(task_id)
            elif state is None and at_start and self._is_left_over(submitted):
                await self._messages.drop(task_id)  # the process ended before the put was answered

    def _is_left_over(self, submitted: float) -> bool:
        """Whether a message without a task is an earlier process's, not one that is just being put.

        On PostgreSQL another process may be putting it.
        """
        return self._seam.service.store.database.sqlite and submitted < self._began

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
