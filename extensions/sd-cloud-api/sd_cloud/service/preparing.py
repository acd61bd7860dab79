"""Before a job can be claimed: what can be refused at once, and its inputs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from sd_cloud import errors
from sd_cloud.engines.base import Engine
from sd_cloud.job import Job
from sd_cloud.service.under_way import UnderWay

log = logging.getLogger(__name__)

#: Jobs whose links are being fetched at once.
FETCHING_AT_ONCE = 8


class Inputs(Protocol):
    """Turns every picture a job names into checked base64, or raises naming the field."""

    async def resolve(self, job: Job) -> Job: ...

    def check_paths(self, job: Job) -> None: ...

    async def check_link(self, link: str, *, field: str) -> None: ...


class Preparing:
    """Checks jobs and fetches their inputs."""

    def __init__(self, under_way: UnderWay, engine: Engine, inputs: Inputs, *, max_delivery: int) -> None:
        self._under_way = under_way
        self._engine = engine
        self._inputs = inputs
        self._max_delivery = max_delivery
        self._fetching = asyncio.Semaphore(FETCHING_AT_ONCE)

    async def check(self, job: Job) -> Job:
        """What can be refused before it is queued. Names are resolved to the catalogue's own."""
        if job.callback_url:
            await self._inputs.check_link(job.callback_url, field="callback_url")
        if job.kind == "call":
            return job  # its route checks
        await asyncio.to_thread(self._inputs.check_paths, job)  # follows links, on whatever disk
        if job.checkpoint is None:
            return job
        found = self._engine.catalogue().checkpoint(job.checkpoint)
        if found is None:
            # Only the first look at a name that is new costs a scan of the folders.
            found = (await self._engine.refresh()).checkpoint(job.checkpoint)
        if found is None:
            there = self._engine.catalogue()
            names = ", ".join(c.name for c in there.checkpoints) or "none"
            remark = there.unhashed_remark(job.checkpoint)
            raise errors.CheckpointNotFound(
                f"no checkpoint {job.checkpoint!r}; installed: {names}{remark}",
                field="sd_model_checkpoint",
            )
        return replace(job, checkpoint=found.name)

    async def prepare(self, job: Job) -> None:
        """Fetch the inputs before it is the job's turn."""
        store = self._under_way.store
        try:
            async with self._fetching:
                if not await store.preparing(job.id, max_delivery=self._max_delivery):
                    return  # cancelled meanwhile, or set aside: its end is announced
                prepared = await self.resolved(job)
        except errors.ServiceError as error:
            await self._under_way.fail(job.id, error)
            return
        live = self._under_way.get(job.id)
        if live is not None:
            live.job, live.prepared = prepared, True
        await store.ready(job.id)

    async def prepare_singly(self, suspects: Sequence[Job], held: Sequence[str]) -> None:
        """One at a time, so that the one that ends the service is the only one to be blamed; what ran when
        it ended (``held``) runs again once that is known."""
        for job in suspects:
            await self.prepare(job)
        for task_id in held:
            await self._under_way.store.ready(task_id)

    async def resolved(self, job: Job) -> Job:
        if job.kind == "call":
            return job
        try:
            return await self._inputs.resolve(job)
        except errors.ServiceError:
            raise
        except Exception as error:
            log.exception("fetching the inputs of task %s failed", job.id)
            raise errors.EngineFailed("the inputs could not be prepared; see the log") from error
