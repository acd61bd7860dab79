"""The one path of a job: check, record, queue, fetch its inputs, make, save, tell.

Every dialect builds a `Job` and hands it to one `Service`. A synchronous caller waits for its own
job with :meth:`Service.run`; everybody else has the task id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sd_cloud import errors
from sd_cloud.engines.base import Catalogue, Engine, EngineDied, Report
from sd_cloud.job import Job, Outcome, Picture, Progress, Reply
from sd_cloud.live import Live, replaying
from sd_cloud.store.base import State, Task
from sd_cloud.store.sql import SqlStore

log = logging.getLogger(__name__)

#: Jobs whose links are being fetched at once.
FETCHING_AT_ONCE = 8
#: How long a cancelled engine may take to reach its next step before it is given up.
CANCEL_GRACE_SECONDS = 30.0
#: How often a service looks for what other, dead processes left behind, and for what has expired.
HOUSEKEEPING_SECONDS = 30.0
#: How long the dispatcher waits when the database fails.
RETRY_SECONDS = 1.0
#: Tasks that are cleaned away at once.
CLEANED_AT_ONCE = 50


class Inputs(Protocol):
    """Turns every picture a job names into checked base64, or raises naming the field."""

    async def resolve(self, job: Job) -> Job: ...

    def check_paths(self, job: Job) -> None: ...


class Outputs(Protocol):
    """Saves what a job's target asks for and fills in the pictures' paths and links."""

    async def save(self, job: Job, outcome: Outcome) -> Outcome: ...

    async def keep_reply(self, job: Job, reply: Reply) -> str: ...

    async def remove(self, job: Job, outcome: Outcome) -> None: ...


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
        self.safety = safety
        self.options = options
        self.queue_limit = queue_limit
        self.max_delivery = max_delivery
        self.job_seconds = job_seconds
        #: Plays a job of kind ``call`` to the app; set by what attaches the service to one.
        self.replay: Callable[[Job], Awaitable[Reply]] | None = None
        #: What else runs for as long as this service does; added before it starts.
        self.beside: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._live: dict[str, Live] = {}
        self._running: dict[str, Task] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._forever: list[asyncio.Task[None]] = []
        self._stop_listening: list[Callable[[], None]] = []
        self._fetching = asyncio.Semaphore(FETCHING_AT_ONCE)
        self._slots = asyncio.Semaphore(engine.slots)
        self._loaded: str | None = None
        self._closing = False

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to hand queued jobs to the engine. Call on the event loop; `submit` does it too."""
        if self._forever or self._closing:
            return
        listen = self.store.database.listen
        self._stop_listening = [listen("ended", self._heard_end), listen("cancel", self._heard_cancel)]
        self._forever = [
            asyncio.create_task(self._dispatch(), name="sd-cloud dispatcher"),
            asyncio.create_task(self._keep_house(), name="sd-cloud housekeeping"),
            *(asyncio.create_task(run()) for run in self.beside),
        ]

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no new work, let what runs finish for ``drain_seconds``, then cancel it.

        Waiting jobs of a store that is not durable fail with ShuttingDown, so that nobody waits
        for an answer that cannot come.
        """
        self._closing = True
        for one in self._forever:
            one.cancel()
        await asyncio.gather(*self._forever, return_exceptions=True)
        for task_id, live in list(self._live.items()):
            if live.started is None and task_id not in self._running and not self._outlives(live.job):
                await self._fail(task_id, errors.ShuttingDown("the service is stopping"))
        await self._settle(drain_seconds)
        for task_id in list(self._running):
            await self.cancel(task_id)
        await self._settle(CANCEL_GRACE_SECONDS)
        for stop in self._stop_listening:
            stop()
        self._forever, self._stop_listening = [], []

    @property
    def closing(self) -> bool:
        return self._closing

    def _outlives(self, job: Job) -> bool:
        return self.store.durable and is_kept(job)

    # -- asking -------------------------------------------------------------------------------

    async def run(self, job: Job) -> Outcome:
        """Queue the job and wait for what it comes to. Raises the ServiceError it failed with."""
        outer = replaying.get()
        if outer is not None:
            return await self._run_within(outer, job)
        return await self.result(await self.submit(job))

    async def submit(self, job: Job, *, idempotency: tuple[str, str] | None = None) -> str:
        """Record and queue the job; its task id, or the id of the task that the same key made.

        ``idempotency``: see :meth:`SqlStore.add`. Raises BadRequest, CheckpointNotFound,
        QueueFull, QuotaExceeded, IdempotencyConflict.
        """
        if self._closing:
            raise errors.ShuttingDown("the service is stopping; send the request to another instance")
        self.start()
        if not job.options:
            job = replace(job, options=dict(self.options()))
        job = await self._check(job)
        self._live[job.id] = Live.of(job)  # before it is recorded: its end may come at any time
        try:
            task = await self.store.add(
                job, limit=self.queue_limit, kept=is_kept(job), idempotency=idempotency
            )
        except BaseException:
            del self._live[job.id]
            raise
        if task.id != job.id:
            del self._live[job.id]
            return task.id
        self._spawn(self._prepare(job))
        return job.id

    async def result(self, task_id: str) -> Outcome:
        """Wait for a task. Raises the ServiceError it failed with, TaskNotFound for an unknown id."""
        live = self._live.get(task_id)
        if live is None:
            task = await self.task(task_id)
            if not task.over:  # it runs in another process, or was accepted by an earlier one
                live = self._live.setdefault(task_id, Live.of(task.job))
                task = await self.task(task_id)
            if task.over:
                if live is not None:
                    self._live.pop(task_id, None)
                if task.error is not None:
                    raise task.error
                return task.outcome or Outcome()
        assert live is not None
        return await asyncio.shield(live.done)

    async def task(self, task_id: str) -> Task:
        """The record of a task. Raises TaskNotFound."""
        task = await self.store.get(task_id)
        if task is None:
            raise errors.TaskNotFound(f"no task {task_id!r}")
        return task

    async def changes(self, task_id: str) -> AsyncIterator[Task]:
        """The task's record now, and again whenever something about it changed, to its end."""
        live = self._live.get(task_id)
        if live is None:
            task = await self.task(task_id)
            if task.over:
                yield task
                return
            live = self._live.setdefault(task_id, Live.of(task.job))
        async for _ in live.changes():
            task = await self.task(task_id)
            yield task
            if task.over:
                self._forget(task_id)
                return

    def progress(self, task_id: str | None = None) -> Progress | None:
        """How far a running task is (without an id: the one started first); None when it is not running."""
        live = self._live.get(task_id) if task_id is not None else self._first_running()
        return live.progress if live is not None and live.started is not None else None

    def seconds_running(self, task_id: str | None = None) -> float:
        live = self._live.get(task_id) if task_id is not None else self._first_running()
        return live.seconds if live is not None else 0.0

    @property
    def loaded(self) -> str | None:
        """The checkpoint that the engine was last given by name."""
        return self._loaded

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
        waited = errors.Cancelled("the task was cancelled while it waited")
        if task_id not in self._running:
            task = await self.task(task_id)
            if task.over:
                return False
            if await self._fail(task_id, waited, only_waiting=True):
                return True
        if task_id in self._running:
            await self._cancel_running(task_id)
            return True
        # It was taken at this moment, here or by another process: whoever has it hears of it.
        self._marked(task_id)
        await self.store.announce("cancel", task_id)
        return not (await self.task(task_id)).over

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
        if job.kind == "call":
            return job  # its route checks
        await asyncio.to_thread(self.inputs.check_paths, job)  # follows links, on whatever disk
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
        """Fetch the inputs before it is the job's turn."""
        try:
            async with self._fetching:
                if not await self.store.preparing(job.id, max_delivery=self.max_delivery):
                    return  # cancelled meanwhile, or set aside: its end is announced
                prepared = await self._resolved(job)
        except errors.ServiceError as error:
            await self._fail(job.id, error)
            return
        live = self._live.get(job.id)
        if live is not None:
            live.job, live.prepared = prepared, True
        await self.store.ready(job.id)

    async def _resolved(self, job: Job) -> Job:
        if job.kind == "call":
            return job
        try:
            return await self.inputs.resolve(job)
        except errors.ServiceError:
            raise
        except Exception as error:
            log.exception("fetching the inputs of task %s failed", job.id)
            raise errors.EngineFailed("the inputs could not be prepared; see the log") from error

    async def _dispatch(self) -> None:
        while True:
            await self._slots.acquire()
            try:
                task = await self._next()
            except Exception:
                self._slots.release()
                log.exception("the next task could not be taken; trying again in %g s", RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except BaseException:
                self._slots.release()
                raise
            self._running[task.id] = task
            self._spawn(self._deliver(task))

    async def _next(self) -> Task:
        while True:
            # Not lost when this is cancelled meanwhile: a claim that was made is handed back.
            claim = asyncio.ensure_future(self.store.claim(loaded=self._loaded))
            try:
                task = await asyncio.shield(claim)
            except asyncio.CancelledError:
                taken = await claim
                if taken is not None:
                    await self.store.requeue(taken.id)
                raise
            if task is not None:
                return task
            await self.store.work()

    async def _deliver(self, task: Task) -> None:
        """One delivery to the engine. The slot is free again before the pictures are saved."""
        live = self._live.get(task.id)
        if live is None:  # accepted by another process, or by an earlier one
            live = self._live[task.id] = Live.of(task.job)
        live.started = time.monotonic()
        live.tell()
        if task.job.checkpoint is not None:
            self._loaded = task.job.checkpoint
        try:
            outcome = await self._make(live)
        except EngineDied as error:
            self._released(task.id)
            await self._redeliver(task, live, error)
        except errors.ServiceError as error:
            self._released(task.id)
            await self._fail(task.id, error, seconds=live.seconds)
        except Exception:
            log.exception("task %s failed in a way that has no name", task.id)
            self._released(task.id)
            failed = errors.EngineFailed("the engine failed; see the service's log")
            await self._fail(task.id, failed, seconds=live.seconds)
        else:
            self._released(task.id)
            if live.cancelled:  # it was done before the engine heard of it
                cancelled = errors.Cancelled("the task was cancelled while it ran")
                await self._fail(task.id, cancelled, seconds=live.seconds)
                return
            await self._finish(task.id, live, replace(outcome, seconds=live.seconds))

    async def _make(self, live: Live) -> Outcome:
        live.running = asyncio.ensure_future(
            self._replayed(live) if live.job.kind == "call" else self._run(live)
        )
        finished, _ = await asyncio.wait({live.running}, timeout=self.job_seconds)
        if not finished:
            await self.engine.cancel(live.job.id)
            await asyncio.wait({live.running}, timeout=CANCEL_GRACE_SECONDS)
            live.running.cancel()
            raise errors.TimedOut(f"the job was not done after {self.job_seconds:g} s and was stopped")
        if live.running.cancelled():
            raise errors.Cancelled("the task was cancelled while it ran")
        return live.running.result()

    async def _run(self, live: Live) -> Outcome:
        if not live.prepared:
            live.job, live.prepared = await self._resolved(live.job), True
        if live.cancelled:
            raise errors.Cancelled("the task was cancelled before its first step")
        return await self.engine.run(live.job, self._reporting(live))

    async def _replayed(self, live: Live) -> Outcome:
        """A call, played to the app. What it asks of this service becomes part of this task."""
        if self.replay is None:
            raise errors.NotImplementedHere("this service has no app to play a call to")
        replaying.set(live)
        reply = await self.replay(live.job)
        if isinstance(live.failed_within, EngineDied):
            raise live.failed_within
        pictures = tuple(picture for one in live.within for picture in one.pictures)
        info = live.within[-1].info if live.within else {}
        return Outcome(pictures, info, any(one.interrupted for one in live.within), reply=reply)

    async def _run_within(self, outer: Live, job: Job) -> Outcome:
        """A job that a replayed call asks for: it has that call's task, slot and cancellation."""
        job = replace(
            job, id=outer.job.id, owner=outer.job.owner, options=job.options or dict(self.options())
        )
        try:
            job = await self._resolved(await self._check(job))
            if outer.cancelled:
                raise errors.Cancelled("the task was cancelled before its first step")
            self._loaded = job.checkpoint or self._loaded
            outcome = await self.engine.run(job, self._reporting(outer))
            saved = await self._saved(job, replace(outcome, seconds=outer.seconds))
        except errors.ServiceError as error:
            outer.failed_within = error
            raise
        outer.within.append(saved)
        return saved

    def _reporting(self, live: Live) -> Report:
        """How the engine's progress is taken down: without previews, which nobody has checked."""
        if self.safety is None:
            return live.report
        return lambda progress: live.report(replace(progress, preview=None))

    def _released(self, task_id: str) -> None:
        self._running.pop(task_id, None)
        self._slots.release()

    async def _redeliver(self, task: Task, live: Live, error: EngineDied) -> None:
        if task.attempts < self.max_delivery and not self._closing and not live.cancelled:
            log.warning("task %s: %s; delivering it again", task.id, error)
            live.started, live.within, live.failed_within = None, [], None
            await self.store.requeue(task.id)
            return
        await self._fail(
            task.id, errors.EngineFailed(f"{error} (delivered {task.attempts} times, not tried again)")
        )

    async def _saved(self, job: Job, outcome: Outcome) -> Outcome:
        try:
            if self.safety is not None:
                outcome = await asyncio.to_thread(self.safety, outcome)
            return await self.outputs.save(job, outcome)
        except errors.ServiceError:
            raise
        except Exception as error:
            log.exception("saving the pictures of task %s failed", job.id)
            raise errors.SavingFailed("the pictures could not be saved; see the log") from error

    async def _finish(self, task_id: str, live: Live, outcome: Outcome) -> None:
        state: State = "succeeded"
        error: errors.ServiceError | None = None
        try:
            saved = outcome if live.job.kind == "call" else await self._saved(live.job, outcome)
        except errors.ServiceError as failed:
            await self._fail(task_id, failed, seconds=outcome.seconds)
            return
        if saved.reply is not None and saved.reply.status >= 400:
            state, error = "failed", live.failed_within or said_in(saved.reply)
        # The store has the result before the caller hears of it.
        await self.store.end(
            task_id, state, outcome=without_images(saved), error=error, engine_seconds=outcome.seconds
        )
        self._live.pop(task_id, None)
        if error is not None:
            live.fail(error)
        else:
            live.succeed(saved)

    async def _fail(
        self, task_id: str, error: errors.ServiceError, *, seconds: float = 0.0, only_waiting: bool = False
    ) -> bool:
        state: State = "cancelled" if isinstance(error, errors.Cancelled) else "failed"
        ended = await self.store.end(
            task_id, state, error=error, engine_seconds=seconds, only_waiting=only_waiting
        )
        if ended or not only_waiting:
            live = self._live.pop(task_id, None)
            if live is not None:
                live.fail(error)
        return ended

    # -- other processes ----------------------------------------------------------------------

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._recover()
                await self.clean()
            except Exception:  # a database or a bucket that is away for a while: the next round may do
                log.exception("housekeeping failed; it is tried again in %g s", HOUSEKEEPING_SECONDS)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def clean(self) -> int:
        """Forget the tasks whose time is over, and the pictures kept for them; how many they were."""
        count = 0
        while expired := await self.store.expired(limit=CLEANED_AT_ONCE):
            for task in expired:
                if task.outcome is not None and (task.outcome.reply or task.outcome.pictures):
                    await self.outputs.remove(task.job, task.outcome)
            await self.store.forget([task.id for task in expired])
            count += len(expired)
        return count

    async def _recover(self) -> None:
        found = await self.store.recover(max_delivery=self.max_delivery)
        for job in (*found.unprepared, *found.suspects):
            self._live.setdefault(job.id, Live.of(job))
        for job in found.unprepared:
            self._spawn(self._prepare(job))
        if found.suspects:
            self._spawn(self._prepare_singly(found.suspects))
        if found.unprepared or found.suspects or found.ended:
            log.warning(
                "a service ended before its work: %d tasks prepared again, %d failed",
                len(found.unprepared) + len(found.suspects),
                len(found.ended),
            )

    async def _prepare_singly(self, jobs: Sequence[Job]) -> None:
        """One at a time, so that the one that ends the service is the only one to be blamed."""
        for job in jobs:
            await self._prepare(job)

    def _heard_end(self, task_id: str) -> None:
        """A task ended somewhere. Those that run here are told by who runs them."""
        waiting = [task_id] if task_id else list(self._live)
        for one in waiting:
            live = self._live.get(one)
            if live is not None and live.started is None:
                self._spawn(self._take_result(one))

    async def _take_result(self, task_id: str) -> None:
        task = await self.store.get(task_id)
        live = self._live.get(task_id)
        if live is None or live.started is not None or (task is not None and not task.over):
            return
        self._live.pop(task_id, None)
        if task is None:
            live.fail(errors.TaskNotFound(f"no task {task_id!r}"))
        elif task.error is not None:
            live.fail(task.error)
        else:
            live.succeed(task.outcome or Outcome())

    def _heard_cancel(self, task_id: str) -> None:
        if task_id in self._running:
            self._spawn(self._cancel_running(task_id))

    def _marked(self, task_id: str) -> None:
        live = self._live.get(task_id)
        if live is not None:
            live.cancelled = True

    async def _cancel_running(self, task_id: str) -> None:
        live = self._live.get(task_id)
        if live is None:
            return
        live.cancelled = True
        reached = await self.engine.cancel(task_id)
        if not reached and live.job.kind == "call" and live.running is not None:
            live.running.cancel()  # a route that asks nothing of the engine

    def _forget(self, task_id: str) -> None:
        live = self._live.get(task_id)
        if live is not None and live.started is None:
            self._live.pop(task_id, None)

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


def is_kept(job: Job) -> bool:
    """Can the result still be fetched once the connection that asked for it is gone?"""
    return job.target is not None or job.kind == "call"


def without_images(outcome: Outcome) -> Outcome:
    """The outcome as the store keeps it: paths, links, seeds and infotexts, no pixels."""
    bare: tuple[Picture, ...] = tuple(replace(p, image=None) for p in outcome.pictures)
    return replace(outcome, pictures=bare)


def said_in(reply: Reply) -> errors.ServiceError:
    """What a route that refused a call said, as an error of this service."""
    said = reply.body[:500].decode("utf-8", "replace")
    kind = errors.BadRequest if reply.status < 500 else errors.EngineFailed
    return kind(f"the route answered {reply.status}: {said}")
