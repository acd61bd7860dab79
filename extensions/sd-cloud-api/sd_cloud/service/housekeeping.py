"""What other, dead processes left behind, and what has expired."""

from __future__ import annotations

import asyncio
import logging

from sd_cloud.service.delivery import Outputs
from sd_cloud.service.preparing import Preparing
from sd_cloud.service.under_way import UnderWay
from sd_cloud.store.base import Task

log = logging.getLogger(__name__)

#: How often a service looks for it.
HOUSEKEEPING_SECONDS = 30.0
#: When a task whose pictures could not be removed is looked at again.
POSTPONED_SECONDS = 3600.0
#: Tasks that are cleaned away at once.
CLEANED_AT_ONCE = 50


class Housekeeping:
    def __init__(
        self, under_way: UnderWay, preparing: Preparing, outputs: Outputs, *, max_delivery: int
    ) -> None:
        self._under_way = under_way
        self._store = under_way.store
        self._preparing = preparing
        self._outputs = outputs
        self._max_delivery = max_delivery

    async def keep(self) -> None:
        """For as long as the service runs."""
        while True:
            try:
                await self.recover()
                await self.clean()
            except Exception:  # a database or a bucket that is away for a while: the next round may do
                log.exception("housekeeping failed; it is tried again in %g s", HOUSEKEEPING_SECONDS)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def clean(self) -> int:
        """Forget the tasks whose time is over, and the pictures kept for them; how many they were."""
        count = 0
        while expired := await self._store.expired(limit=CLEANED_AT_ONCE):
            gone = [task.id for task in expired if await self._removed(task)]
            await self._store.forget(gone)
            # A bucket that is away for a while holds up its own tasks only.
            kept = [task.id for task in expired if task.id not in gone]
            await self._store.postpone(kept, POSTPONED_SECONDS)
            count += len(gone)
        return count

    async def _removed(self, task: Task) -> bool:
        """Whether the pictures of a task are gone."""
        if task.outcome is not None and (task.outcome.reply or task.outcome.pictures):
            try:
                await self._outputs.remove(task.job, task.outcome)
            except Exception:
                log.exception("the pictures of task %s could not be removed; tried again later", task.id)
                return False
        return True

    async def recover(self) -> None:
        found = await self._store.recover(max_delivery=self._max_delivery)
        for job in (*found.unprepared, *found.suspects):
            self._under_way.begin(job)
        for job in found.unprepared:
            self._under_way.spawn(self._preparing.prepare(job))
        if found.suspects:
            self._under_way.spawn(self._preparing.prepare_singly(found.suspects, found.held))
        if found.unprepared or found.suspects or found.ended:
            log.warning(
                "a service ended before its work: %d tasks prepared again, %d failed",
                len(found.unprepared) + len(found.suspects),
                len(found.ended),
            )
