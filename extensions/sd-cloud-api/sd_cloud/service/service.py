"""What is asked of the one path: run, submit, result, progress, cancel.

Every dialect builds a `Job` and hands it to one `Service`. A synchronous caller waits for its own
job with :meth:`Service.run`; everybody else has the task id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from sd_cloud import errors
from sd_cloud.engines.base import Catalogue, Engine
from sd_cloud.job import Job, Outcome, Progress, Reply
from sd_cloud.live import Live, replaying
from sd_cloud.service.delivery import CANCEL_GRACE_SECONDS, Delivery, Outputs
from sd_cloud.service.housekeeping import Housekeeping
from sd_cloud.service.preparing import Inputs, Preparing
from sd_cloud.service.under_way import UnderWay
from sd_cloud.store.base import Task
from sd_cloud.store.sql import SqlStore


class Service:
    """Runs jobs on one engine, in the store's order."""

    def __init__(
        self,
        engine: Engine,
        *,
        store: SqlStore,
        inputs: Inputs,
        outputs: Outputs,
        safety: Callable[[Outcome], Outcome] | None = None,
        options: Callable[[], Mapping[str, Any]] = dict,
        queue_limit: int = 1000,
        max_delivery: int = 2,
        job_seconds: float = 3600.0,
    ) -> None:
        self.engine = engine
        self.store = store
        self.inputs = inputs
        self.outputs = outputs
        self.options = options
        self.queue_limit = queue_limit
        #: Plays a job of kind ``call`` to the app; set by what attaches the service to one.
        self.replay: Callable[[Job], Awaitable[Reply]] | None = None
        #: What else runs for as long as this service does; added before it starts.
        self.beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._under_way = UnderWay(store)
        self._preparing = Preparing(self._under_way, engine, inputs, max_delivery=max_delivery)
        self._delivery = Delivery(
            self._under_way,
            self._preparing,
            engine,
            outputs,
            replay=self._replay,
            safety=safety,
            max_delivery=max_delivery,
            job_seconds=job_seconds,
        )
        self._housekeeping = Housekeeping(
            self._under_way, self._preparing, outputs, max_delivery=max_delivery
        )
        self._forever: list[asyncio.Task[None]] = []
        self._stop_listening: list[Callable[[], None]] = []

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hand queued jobs to the engine. Call on the event loop; `submit` does it too."""
        if self._forever or self.closing:
            return
        listen = self.store.database.listen
        self._stop_listening = [
            listen("ended", self._under_way.heard_end),
            listen("progress", self._under_way.heard_progress),
            listen("cancel", self._heard_cancel),
        ]
        self._forever = [
            asyncio.create_task(self._delivery.dispatch(), name="sd-cloud dispatcher"),
            asyncio.create_task(self._housekeeping.keep(), name="sd-cloud housekeeping"),
            *(asyncio.create_task(run()) for run in self.beside),
        ]

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no new work, let what runs finish for ``drain_seconds``, then cancel it.

        Waiting jobs of a store that is not durable fail with ShuttingDown, so that nobody waits
        for an answer that cannot come.
        """
        under_way = self._under_way
        under_way.closing = True
        under_way.tell()
        await _ended(self._forever)
        for task_id, job in under_way.waiting():
            if not self._outlives(job):
                await under_way.fail(task_id, errors.ShuttingDown("the service is stopping"))
        await under_way.settle(drain_seconds)
        for task_id in list(under_way.running):
            await self.cancel(task_id)
        await under_way.settle(CANCEL_GRACE_SECONDS)
        for stop in self._stop_listening:
            stop()
        self._forever, self._stop_listening = [], []

    @property
    def closing(self) -> bool:
        return self._under_way.closing

    async def clean(self) -> int:
        """Forget the tasks whose time is over, and the pictures kept for them; how many they were."""
        return await self._housekeeping.clean()

    # -- asking -------------------------------------------------------------------------------

    async def run(self, job: Job, *, idempotency: tuple[str, str] | None = None) -> Outcome:
        """Queue the job and wait for what it comes to. Raises the ServiceError it failed with.

        An outcome of an earlier request (``idempotency``: see `submit`) may be without its pixels.
        """
        outer = replaying.get()
        if outer is not None:
            return await self._delivery.run_within(outer, self._with_options(job))
        return await self.result(await self.submit(job, idempotency=idempotency))

    async def submit(
        self,
        job: Job,
        *,
        idempotency: tuple[str, str] | None = None,
        beside: Callable[[Any], object] | None = None,
    ) -> str:
        """Record and queue the job; its task id, or the id of the task that the same key made.

        ``idempotency``, ``beside``: see :meth:`SqlStore.add`. Raises BadRequest, CheckpointNotFound,
        QueueFull, QuotaExceeded, IdempotencyConflict.
        """
        if self.closing:
            raise errors.ShuttingDown("the service is stopping; send the request to another instance")
        self.start()
        job = await self._preparing.check(self._with_options(job))
        live = self._under_way.begin(job)  # before it is recorded: its end may come at any time
        live.recorded = False
        try:
            task = await self.store.add(
                job, limit=self.queue_limit, kept=is_kept(job), idempotency=idempotency, beside=beside
            )
        except BaseException:
            self._under_way.drop(job.id)
            raise
        live.recorded = True
        if task.id != job.id:
            self._under_way.drop(job.id)
            return task.id
        if self.closing and not self._outlives(job):  # it was recorded while the service began to stop
            stopping = errors.ShuttingDown("the service is stopping")
            await self._under_way.fail(job.id, stopping)
            raise stopping
        self._under_way.tell()
        self._under_way.spawn(self._preparing.prepare(job))
        return job.id

    def _outlives(self, job: Job) -> bool:
        return self.store.durable and is_kept(job)

    def _with_options(self, job: Job) -> Job:
        return job if job.options else replace(job, options=dict(self.options()))

    async def result(self, task_id: str) -> Outcome:
        """Wait for a task. Raises the ServiceError it failed with, TaskNotFound for an unknown id."""
        live = self._under_way.get(task_id)
        if live is not None and live.ours:
            return await asyncio.shield(live.done)
        task = await self.task(task_id)
        if not task.over:  # it runs in another process, or was accepted by an earlier one
            with self._under_way.asked(task.job) as live:
                task = await self.task(task_id)
                if not task.over:
                    return await asyncio.shield(live.done)
        if task.error is not None:
            raise task.error
        return task.outcome or Outcome()

    async def task(self, task_id: str) -> Task:
        """The record of a task. Raises TaskNotFound."""
        task = await self.store.get(task_id)
        if task is None:
            raise errors.TaskNotFound(f"no task {task_id!r}")
        return task

    async def changes(self, task_id: str) -> AsyncGenerator[Task, None]:
        """The task's record now, and again whenever something about it changed, to its end."""
        task = await self.task(task_id)
        if task.over:
            yield task
            return
        with self._under_way.asked(task.job) as live:
            async with aclosing(live.changes()) as changes:
                async for _ in changes:
                    task = await self.task(task_id)
                    yield task
                    if task.over:
                        return

    def news(self) -> AsyncGenerator[bool, None]:
        """Yields at once, and again when something about any task may have changed; ends with the service."""
        return self._under_way.news()

    def progress(self, task_id: str | None = None) -> Progress | None:
        """How far a running task is (without an id: the one started first); None when it is not running."""
        live = self._live(task_id)
        return live.progress if live is not None and live.started is not None else None

    def seconds_running(self, task_id: str | None = None) -> float:
        live = self._live(task_id)
        return live.seconds if live is not None else 0.0

    def progress_of(self, task: Task) -> Progress | None:
        """How far a running task is, whichever process runs it; None when it does not run."""
        if task.state != "running":
            return None
        return self.progress(task.id) or task.progress or Progress()

    def seconds_of(self, task: Task) -> float:
        """How long a task has been running, whichever process runs it."""
        if task.state != "running" or task.scheduled is None:
            return 0.0
        return self.seconds_running(task.id) or max(time.time() - task.scheduled, 0.0)

    def _live(self, task_id: str | None) -> Live | None:
        return self._under_way.get(task_id) if task_id is not None else self._under_way.first_running()

    @property
    def loaded(self) -> str | None:
        """The checkpoint that the engine was last given by name."""
        return self._delivery.loaded

    @property
    def running(self) -> Task | None:
        """The task that was started first of those running now."""
        return next(iter(self._under_way.running.values()), None)

    def first_running(self, may_see: Callable[[str], bool] | None = None) -> Task | None:
        """The same among the tasks of those owners that the caller may see."""
        running = self._under_way.running.values()
        return next((one for one in running if may_see is None or may_see(one.job.owner)), None)

    async def queue_length(self) -> int:
        return await self.store.waiting()

    def catalogue(self) -> Catalogue:
        return self.engine.catalogue()

    # -- stopping a task ----------------------------------------------------------------------

    async def cancel(self, task_id: str) -> bool:
        """Cancel one task, waiting or running, before its next step. False when it is over already, or
        made and about to be recorded."""
        waited = errors.Cancelled("the task was cancelled while it waited")
        under_way = self._under_way
        while task_id not in under_way.running:
            if (await self.task(task_id)).over or under_way.is_made(task_id):
                return False
            if await under_way.fail(task_id, waited, only_waiting=True):
                return True
            if task_id in under_way.running or under_way.is_made(task_id):
                continue
            # It was taken at this moment, here or by another process: whoever has it hears of it.
            live = under_way.get(task_id)
            if live is not None:
                live.cancelled = True
            if await self.store.ask_cancel(task_id):
                return True
        await self._delivery.cancel(task_id)
        return True

    async def _replay(self, job: Job) -> Reply:
        if self.replay is None:
            raise errors.NotImplementedHere("this service has no app to play a call to")
        return await self.replay(job)

    def _heard_cancel(self, task_id: str) -> None:
        if task_id in self._under_way.running:
            self._under_way.spawn(self._delivery.cancel(task_id))
        else:  # something may have been missed, or it is being taken at this moment
            self._under_way.spawn(self._cancel_asked())

    async def _cancel_asked(self) -> None:
        for task_id in await self.store.to_cancel():
            await self._delivery.cancel(task_id)

    async def interrupt(self, task_id: str | None = None) -> bool:
        """Stop a running task and keep what is there; without an id, whatever runs now."""
        ids = [task_id] if task_id is not None else list(self._under_way.running)
        return any([await self.engine.interrupt(one) for one in ids])

    async def skip(self, task_id: str | None = None) -> bool:
        """Let a running task go on to its next batch; without an id, whatever runs now."""
        ids = [task_id] if task_id is not None else list(self._under_way.running)
        return any([await self.engine.skip(one) for one in ids])


async def _ended(running: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are done: a wait_for of Python 3.11 and before may lose a cancellation
    that comes at the moment of its result."""
    pending = {one for one in running if not one.done()}
    while pending:
        for one in pending:
            one.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)


def is_kept(job: Job) -> bool:
    """Can the result still be fetched once the connection that asked for it is gone?"""
    return job.target is not None or job.kind == "call"
