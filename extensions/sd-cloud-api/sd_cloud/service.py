"""The one path of a job: check, record, queue, fetch its inputs, make, save, tell.

Every dialect builds a `Job` and hands it to one `Service`. A synchronous caller waits for its own
job with :meth:`Service.run`; everybody else has the task id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sd_cloud import errors
from sd_cloud.engines.base import Catalogue, Engine, EngineDied
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.store.base import Store, Task

log = logging.getLogger(__name__)

#: Jobs whose links are being fetched at once.
FETCHING_AT_ONCE = 8
#: How long a cancelled engine may take to reach its next step before it is given up.
CANCEL_GRACE_SECONDS = 30.0


class Inputs(Protocol):
    """Turns every picture a job names into checked base64, or raises naming the field."""

    async def resolve(self, job: Job) -> Job: ...

    def check_paths(self, job: Job) -> None: ...


class Outputs(Protocol):
    """Saves what a job's target asks for and fills in the pictures' paths and links."""

    async def save(self, job: Job, outcome: Outcome) -> Outcome: ...


@dataclass
class Live:
    """What is known of a task in this process while it is under way."""

    job: Job
    done: asyncio.Future[Outcome]
    started: float | None = None  # monotonic seconds, when the engine took it
    cancelled: bool = False
    progress: Progress = field(default_factory=Progress)


class Service:
    """Runs jobs on one engine, in the store's order."""

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        inputs: Inputs,
        outputs: Outputs,
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
        self.max_delivery = max_delivery
        self.job_seconds = job_seconds
        self._live: dict[str, Live] = {}
        self._running: dict[str, Task] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._dispatcher: asyncio.Task[None] | None = None
        self._fetching = asyncio.Semaphore(FETCHING_AT_ONCE)
        self._slots = asyncio.Semaphore(engine.slots)
        self._loaded: str | None = None
        self._closing = False

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hand queued jobs to the engine. Call on the event loop; `submit` does it too."""
        if self._dispatcher is None and not self._closing:
            self._dispatcher = asyncio.create_task(self._dispatch(), name="sd-cloud dispatcher")

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no new work, let what runs finish for ``drain_seconds``, then cancel it.

        Waiting jobs of a store that is not durable fail with ShuttingDown, so that nobody waits
        for an answer that cannot come.
        """
        self._closing = True
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
            self._dispatcher = None
        if not self.store.durable:
            for task_id, live in list(self._live.items()):
                if live.started is None and task_id not in self._running:
                    await self._fail(task_id, errors.ShuttingDown("the service is stopping"))
        await self._settle(drain_seconds)
        for task_id in list(self._running):
            await self.cancel(task_id)
        await self._settle(CANCEL_GRACE_SECONDS)

    @property
    def closing(self) -> bool:
        return self._closing

    # -- asking -------------------------------------------------------------------------------

    async def run(self, job: Job) -> Outcome:
        """Queue the job and wait for what it comes to. Raises the ServiceError it failed with."""
        await self.submit(job)
        return await self.result(job.id)

    async def submit(self, job: Job) -> str:
        """Record and queue the job; its task id. Raises BadRequest, CheckpointNotFound, QueueFull."""
        if self._closing:
            raise errors.ShuttingDown("the service is stopping; send the request to another instance")
        self.start()
        if not job.options:
            job = replace(job, options=dict(self.options()))
        job = await self._check(job)
        await self.store.add(job, limit=self.queue_limit)
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_retrieved)
        self._live[job.id] = Live(job, done)
        self._spawn(self._prepare(job))
        return job.id

    async def result(self, task_id: str) -> Outcome:
        """Wait for a task. Raises the ServiceError it failed with, TaskNotFound for an unknown id."""
        live = self._live.get(task_id)
        if live is not None:
            return await asyncio.shield(live.done)
        task = await self.store.get(task_id)
        if task is None:
            raise errors.TaskNotFound(f"no task {task_id!r}")
        if task.error is not None:
            raise task.error
        return task.outcome or Outcome()

    async def task(self, task_id: str) -> Task:
        """The record of a task. Raises TaskNotFound."""
        task = await self.store.get(task_id)
        if task is None:
            raise errors.TaskNotFound(f"no task {task_id!r}")
        return task

    def progress(self, task_id: str | None = None) -> Progress | None:
        """How far a running task is (without an id: the one started first); None when it is not running."""
        live = self._live.get(task_id) if task_id is not None else self._first_running()
        return live.progress if live is not None and live.started is not None else None

    def seconds_running(self, task_id: str | None = None) -> float:
        live = self._live.get(task_id) if task_id is not None else self._first_running()
        return time.monotonic() - live.started if live is not None and live.started is not None else 0.0

    @property
    def running(self) -> Task | None:
        """The task that was started first of those running now."""
        return next(iter(self._running.values()), None)

    async def queue_length(self) -> int:
        return await self.store.waiting()

    def catalogue(self) -> Catalogue:
        return self.engine.catalogue()

    async def cancel(self, task_id: str) -> bool:
        """Cancel one task, waiting or running, before its next step. False when it is over already."""
        if task_id in self._running:
            self._live[task_id].cancelled = True
            await self.engine.cancel(task_id)
            return True
        task = await self.task(task_id)
        if task.over:
            return False
        await self._fail(task_id, errors.Cancelled("the task was cancelled while it waited"))
        return True

    async def interrupt(self, task_id: str | None = None) -> bool:
        """Stop a running task and keep what is there; without an id, whatever runs now."""
        ids = [task_id] if task_id is not None else list(self._running)
        return any([await self.engine.interrupt(one) for one in ids])

    async def skip(self, task_id: str | None = None) -> bool:
        """Let a running task go on to its next batch; without an id, whatever runs now."""
        ids = [task_id] if task_id is not None else list(self._running)
        return any([await self.engine.skip(one) for one in ids])

    # -- the path -----------------------------------------------------------------------------

    async def _check(self, job: Job) -> Job:
        """What can be refused before it is queued. Names are resolved to the catalogue's own."""
        self.inputs.check_paths(job)
        if job.checkpoint is None:
            return job
        found = self.catalogue().checkpoint(job.checkpoint)
        if found is None:
            # Only the first look at a name that is new costs a scan of the folders.
            found = (await self.engine.refresh()).checkpoint(job.checkpoint)
        if found is None:
            names = ", ".join(c.name for c in self.catalogue().checkpoints) or "none"
            raise errors.CheckpointNotFound(
                f"no checkpoint {job.checkpoint!r}; installed: {names}", field="sd_model_checkpoint"
            )
        return replace(job, checkpoint=found.name)

    async def _prepare(self, job: Job) -> None:
        try:
            async with self._fetching:
                prepared = await self.inputs.resolve(job)
        except errors.ServiceError as error:
            await self._fail(job.id, error)
        except Exception:
            log.exception("fetching the inputs of task %s failed", job.id)
            await self._fail(job.id, errors.EngineFailed("the inputs could not be prepared; see the log"))
        else:
            if job.id in self._live:
                self._live[job.id].job = prepared
            await self.store.ready(job.id)

    async def _dispatch(self) -> None:
        while True:
            await self._slots.acquire()
            try:
                task = await self._next()
            except BaseException:
                self._slots.release()
                raise
            self._running[task.id] = task
            self._spawn(self._deliver(task))

    async def _next(self) -> Task:
        while True:
            task = await self.store.claim(loaded=self._loaded)
            if task is not None:
                return task
            await self.store.work()

    async def _deliver(self, task: Task) -> None:
        """One delivery to the engine. The slot is free again before the pictures are saved."""
        live = self._live.get(task.id)
        if live is None:  # accepted by an earlier process
            done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            done.add_done_callback(_retrieved)
            live = self._live[task.id] = Live(task.job, done)
        live.started = time.monotonic()
        self._loaded = task.job.checkpoint
        try:
            outcome = await self._make(live)
        except EngineDied as error:
            self._released(task.id)
            await self._redeliver(task, error)
        except errors.ServiceError as error:
            self._released(task.id)
            await self._fail(task.id, error)
        except Exception:
            log.exception("task %s failed in a way that has no name", task.id)
            self._released(task.id)
            await self._fail(task.id, errors.EngineFailed("the engine failed; see the service's log"))
        else:
            self._released(task.id)
            if live.cancelled:  # it was done before the engine heard of it
                await self._fail(task.id, errors.Cancelled("the task was cancelled while it ran"))
                return
            outcome = replace(outcome, seconds=time.monotonic() - live.started)
            await self._finish(task.id, live.job, outcome)

    async def _make(self, live: Live) -> Outcome:
        def report(progress: Progress) -> None:
            live.progress = progress

        running = asyncio.ensure_future(self.engine.run(live.job, report))
        finished, _ = await asyncio.wait({running}, timeout=self.job_seconds)
        if not finished:
            await self.engine.cancel(live.job.id)
            await asyncio.wait({running}, timeout=CANCEL_GRACE_SECONDS)
            running.cancel()
            raise errors.TimedOut(f"the job was not done after {self.job_seconds:g} s and was stopped")
        return running.result()

    def _released(self, task_id: str) -> None:
        self._running.pop(task_id, None)
        self._slots.release()

    async def _redeliver(self, task: Task, error: EngineDied) -> None:
        if task.attempts < self.max_delivery and not self._closing:
            log.warning("task %s: %s; delivering it again", task.id, error)
            self._live[task.id].started = None
            await self.store.requeue(task.id)
            return
        await self._fail(
            task.id, errors.EngineFailed(f"{error} (delivered {task.attempts} times, not tried again)")
        )

    async def _finish(self, task_id: str, job: Job, outcome: Outcome) -> None:
        try:
            saved = await self.outputs.save(job, outcome)
        except errors.ServiceError as error:
            await self._fail(task_id, error)
            return
        except Exception:
            log.exception("saving the pictures of task %s failed", task_id)
            await self._fail(task_id, errors.SavingFailed("the pictures could not be saved; see the log"))
            return
        # The store has the result before the caller hears of it.
        await self.store.end(task_id, "succeeded", outcome=without_images(saved))
        live = self._live.pop(task_id, None)
        if live is not None and not live.done.done():
            live.done.set_result(saved)

    async def _fail(self, task_id: str, error: errors.ServiceError) -> None:
        state = "cancelled" if isinstance(error, errors.Cancelled) else "failed"
        await self.store.end(task_id, state, error=error)  # type: ignore[arg-type]
        live = self._live.pop(task_id, None)
        if live is not None and not live.done.done():
            live.done.set_exception(error)

    async def _settle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._background and time.monotonic() < deadline:
            await asyncio.wait(self._background, timeout=deadline - time.monotonic())

    def _first_running(self) -> Live | None:
        return next((self._live[i] for i in self._running if i in self._live), None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def without_images(outcome: Outcome) -> Outcome:
    """The outcome as the store keeps it: paths, links, seeds and infotexts, no pixels."""
    bare: tuple[Picture, ...] = tuple(replace(p, image=None) for p in outcome.pictures)
    return replace(outcome, pictures=bare)


def _retrieved(done: asyncio.Future[Outcome]) -> None:
    """A task nobody waits for is not an unhandled error."""
    if not done.cancelled():
        done.exception()
