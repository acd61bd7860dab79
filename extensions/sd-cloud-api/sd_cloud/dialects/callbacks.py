"""``callback_url``: a POST of the task's end, signed, tried again, through the guard of picture links.

The form of the request is that of Standard Webhooks (https://www.standardwebhooks.com, specification
1.0): the headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``, the last ``v1,`` and
the base64 of HMAC-SHA256 over ``<id>.<timestamp>.<body>``. The id is the task's, the same at each try.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time

from sd_cloud.dialects.asked import Seam
from sd_cloud.dialects.following import Telling
from sd_cloud.errors import InputRefused, ServiceError
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.fetch import post
from sd_cloud.settings import FetchLimits
from sd_cloud.store.webhooks import Due, WebhookTable
from sd_cloud.webhook_secret import webhook_secret

log = logging.getLogger(__name__)

#: Seconds after each try until the next; after the last there is none.
RETRY_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0)
CALLED_AT_ONCE = 8
#: An answer's body is of no interest; more of it than this is not read.
LIMITS = FetchLimits(limit_bytes=4096, seconds=10.0)
LEASE_SECONDS = 60.0
#: How often is looked whether a call is due that nobody announced.
LOOK_SECONDS = 30.0
GONE = 410


class Callbacks:
    """Makes the calls that are due, for as long as the service runs."""

    def __init__(self, seam: Seam) -> None:
        self._service = seam.service
        self._table = WebhookTable(seam.service.store.database)
        self._telling = Telling(seam)
        self._policy = AddressPolicy.listing(seam.settings.image_link_allow)
        self._settings = seam.settings

    async def run(self) -> None:
        news = asyncio.Event()
        stop = self._service.store.database.listen("webhook", lambda _: news.set())
        calls: set[asyncio.Task[None]] = set()
        try:
            while True:
                news.clear()
                try:
                    wait = await self._begin(calls)
                except Exception:
                    log.exception("the calls that are due could not be looked up; trying again")
                    wait = RETRY_SECONDS[0]
                heard = asyncio.ensure_future(news.wait())
                await asyncio.wait({heard, *calls}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                calls = {one for one in calls if not one.done()}
        finally:
            stop()
            for one in calls:
                one.cancel()

    async def _begin(self, calls: set[asyncio.Task[None]]) -> float:
        """Begin what is due; the seconds until there may be more."""
        free = CALLED_AT_ONCE - len(calls)
        if free:
            for due in await self._table.take(free, lease_seconds=LEASE_SECONDS):
                calls.add(asyncio.create_task(self._call(due)))
        next_due = await self._table.next_due() if len(calls) < CALLED_AT_ONCE else None
        return LOOK_SECONDS if next_due is None else min(max(next_due - time.time(), 0.0), LOOK_SECONDS)

    async def _call(self, due: Due) -> None:
        try:
            problem, for_good = await self._tried(due)
            if problem is None:
                await self._table.settle(due.task_id, "delivered")
            elif for_good or due.attempt > len(RETRY_SECONDS):
                log.warning("task %s: nobody was told of its end: %s", due.task_id, problem)
                await self._table.settle(due.task_id, "failed", problem)
            else:
                await self._table.try_again(due.task_id, RETRY_SECONDS[due.attempt - 1], problem)
        except Exception:
            log.exception("the call for task %s failed; it is made again in a minute", due.task_id)

    async def _tried(self, due: Due) -> tuple[str | None, bool]:
        """What went wrong, and whether another try is of no use."""
        task = await self._service.store.get(due.task_id)
        if task is None:
            return "the task has expired", True
        content = {"type": f"task.{task.state}", "task": await self._telling.said(task)}
        body = json.dumps(content).encode()
        secret = await asyncio.to_thread(webhook_secret, self._settings)
        headers = {"Content-Type": "application/json", **signed(secret, due.task_id, int(time.time()), body)}
        try:
            answer = await post(
                due.url, body, limits=LIMITS, policy=self._policy, field="callback_url", headers=headers
            )
        except ServiceError as error:
            return str(error), isinstance(error, InputRefused)
        if 200 <= answer.status < 300:
            return None, False
        return f"the other side answered {answer.status}", answer.status == GONE


def signed(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    mac = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(mac).decode("ascii"),
    }
