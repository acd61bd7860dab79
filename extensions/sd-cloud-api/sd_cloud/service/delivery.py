"""From the queue to the engine, and from the engine to the one who waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from sd_cloud import errors
from sd_cloud.engines.base import Engine, EngineDied, Report
from sd_cloud.job import Job, Outcome, Reply
from sd_cloud.live import Live, replaying, retrieved
from sd_cloud.service.preparing import Preparing
from sd_cloud.service.under_way import UnderWay
from sd_cloud.store.base import Task

log = logging.getLogger(__name__)

#: How long a cancelled engine may take to reach its next step before it is given up.
CANCEL_GRACE_SECONDS = 30.0
#: How often the progress of a running task is written down.
NOTED_SECONDS = 1.0
#: How long the dispatcher waits when the database fails.
RETRY_SECONDS = 1.0


class Outputs(Protocol):
    """Saves what a job's target asks for and fills in the pictures' paths and links."""

    async def save(self, job: Job, outcome: Outcome) -> Outcome: ...

    async def keep_reply(self, job: Job, reply: Reply) -> str: ...

    async def remove(self, job: Job, outcome: Outcome) -> None: ...


class Delivery:
    """Gives ready tasks to the engine, in the store's order, and records what comes of them.

    ``loaded``: the checkpoint that the engine was last given by name. ``replay`` plays a job of
    kind ``call`` to the app.
    """

    def __init__(
        self,
        under_way: UnderWay,
        preparing: Preparing,
        engine: Engine,
        outputs: Outputs,
        *,
        replay: Callable[[Job], Awaitable[Reply]],
        safety: Callable[[Outcome], Outcome] | None,
        max_delivery: int,
        job_seconds: float,
    ) -> None:
        self.loaded: str | None = None
        self._under_way = under_way
        self._store = under_way.store
        self._preparing = preparing
        self._engine = engine
        self._outputs = outputs
        self._replay = replay
        self._safety = safety
        self._max_delivery = max_delivery
        self._job_seconds = job_seconds
        self._slots = asyncio.Semaphore(engine.slots)
        #: Tasks of another process, cancelled by it while they were being taken here.
        self._cancelled: set[str] = set()

    # -- from the queue -----------------------------------------------------------------------

    async def dispatch(self) -> None:
        """For as long as the service takes work."""
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
            self._under_way.running[task.id] = task
            live = self._under_way.begin(task.job)  # a cancellation may come before the next line runs
            if task.id in self._cancelled:
                self._cancelled.remove(task.id)
                live.cancelled = True
            self._under_way.spawn(self._deliver(task))

    async def _next(self) -> Task:
        while True:
            # Not lost when this is cancelled meanwhile: a claim that was made is handed back.
            claim = asyncio.ensure_future(self._store.claim(loaded=self.loaded))
            try:
                task = await asyncio.shield(claim)
            except asyncio.CancelledError:
                taken = await claim
                if taken is not None:
                    await self._store.requeue(taken.id)
                raise
            if task is not None:
                return task
            await self._store.work()

    async def _deliver(self, task: Task) -> None:
        """One delivery to the engine."""
        live = self._under_way.begin(task.job)
        live.started = time.monotonic()
        live.tell()
        if task.job.checkpoint is not None:
            self.loaded = task.job.checkpoint
        try:
            outcome = await self._make(live)
        except EngineDied as error:
            self._released(task.id)
            await self._redeliver(task, live, error)
        except errors.ServiceError as error:
            self._released(task.id)
            await self._under_way.fail(task.id, error, seconds=live.seconds)
        except Exception:
            log.exception("task %s failed in a way that has no name", task.id)
            self._released(task.id)
            failed = errors.EngineFailed("the engine failed; see the service's log")
            await self._under_way.fail(task.id, failed, seconds=live.seconds)
        else:
            await self._made(task, live, outcome)

    async def _made(self, task: Task, live: Live, outcome: Outcome) -> None:
        """The slot is free again before the pictures are saved. Not that of a task that is delivered again:
        it may have been beside what ended the service, and is not to be beside that a second time."""
        self._under_way.running.pop(task.id, None)
        again = task.attempts > 1
        if not again:
            self._slots.release()
        try:
            if live.cancelled:  # it was done before the engine heard of it
                cancelled = errors.Cancelled("the task was cancelled while it ran")
                await self._under_way.fail(task.id, cancelled, seconds=live.seconds)
            else:
                await self._finish(task.id, live, replace(outcome, seconds=live.seconds))
        finally:
            if again:
                self._slots.release()

    # -- to the engine ------------------------------------------------------------------------

    async def _make(self, live: Live) -> Outcome:
        if live.cancelled:
            raise errors.Cancelled("the task was cancelled before its first step")
        live.running = asyncio.ensure_future(
            self._replayed(live) if live.job.kind == "call" else self._run(live)
        )
        live.running.add_done_callback(retrieved)  # of one that is given up nobody asks what came of it
        noting = asyncio.create_task(self._note(live))
        try:
            finished, _ = await asyncio.wait({live.running}, timeout=self._job_seconds)
        finally:
            noting.cancel()
        if not finished:
            await self._engine.cancel(live.job.id)
            await asyncio.wait({live.running}, timeout=CANCEL_GRACE_SECONDS)
            live.running.cancel()
            raise errors.TimedOut(f"the job was not done after {self._job_seconds:g} s and was stopped")
        if live.running.cancelled():
            raise errors.Cancelled("the task was cancelled while it ran")
        return live.running.result()

    async def _run(self, live: Live) -> Outcome:
        if not live.prepared:
            live.job, live.prepared = await self._preparing.resolved(live.job), True
        if live.cancelled:
            raise errors.Cancelled("the task was cancelled before its first step")
        return await self._engine.run(live.job, self._reporting(live))

    async def _replayed(self, live: Live) -> Outcome:
        """A call, played to the app. What it asks of this service becomes part of this task."""
        replaying.set(live)
        reply = await self._replay(live.job)
        if isinstance(live.failed_within, EngineDied):
            raise live.failed_within
        pictures = tuple(picture for one in live.within for picture in one.pictures)
        info = live.within[-1].info if live.within else {}
        return Outcome(pictures, info, any(one.interrupted for one in live.within), reply=reply)

    async def run_within(self, outer: Live, job: Job) -> Outcome:
        """A job that a replayed call asks for: it has that call's task, slot and cancellation."""
        job = replace(job, id=outer.job.id, owner=outer.job.owner)
        try:
            job = await self._preparing.resolved(await self._preparing.check(job))
            if outer.cancelled:
                raise errors.Cancelled("the task was cancelled before its first step")
            self.loaded = job.checkpoint or self.loaded
            outcome = await self._engine.run(job, self._reporting(outer))
            saved = await self._saved(job, replace(outcome, seconds=outer.seconds))
        except errors.ServiceError as error:
            outer.failed_within = error
            raise
        outer.within.append(saved)
        return saved

    async def cancel(self, task_id: str) -> None:
        """Stop a task that runs here before its next step."""
        live = self._under_way.get(task_id)
        if live is None:
            self._cancelled.add(task_id)
            return
        live.cancelled = True
        reached = await self._engine.cancel(task_id)
        if not reached and live.job.kind == "call" and live.running is not None:
            live.running.cancel()  # a route that asks nothing of the engine

    async def _note(self, live: Live) -> None:
        """Write down how far a task is, for those who ask another process."""
        noted = live.progress
        while self._store.durable:
            await asyncio.sleep(NOTED_SECONDS)
            if live.progress is noted:
                continue
            noted = live.progress
            try:
                await self._store.note_progress(live.job.id, noted)
            except Exception:
                log.exception("the progress of task %s could not be written down", live.job.id)

    def _reporting(self, live: Live) -> Report:
        """How the engine's progress is taken down: without previews, which nobody has checked."""
        if self._safety is None:
            return live.report
        return lambda progress: live.report(replace(progress, preview=None))

    # -- from the engine ----------------------------------------------------------------------

    def _released(self, task_id: str) -> None:
        self._under_way.running.pop(task_id, None)
        self._slots.release()

    async def _redeliver(self, task: Task, live: Live, error: EngineDied) -> None:
        if task.attempts < self._max_delivery and not self._under_way.closing and not live.cancelled:
            log.warning("task %s: %s; delivering it again", task.id, error)
            live.started, live.within, live.failed_within = None, [], None
            await self._store.requeue(task.id)
            live.tell()
            return
        failed = errors.EngineFailed(f"{error} (delivered {task.attempts} times, not tried again)")
        await self._under_way.fail(task.id, failed, seconds=live.seconds)

    async def _saved(self, job: Job, outcome: Outcome) -> Outcome:
        try:
            if self._safety is not None:
                outcome = await asyncio.to_thread(self._safety, outcome)
            return await self._outputs.save(job, outcome)
        except errors.ServiceError:
            raise
        except Exception as error:
            log.exception("saving the pictures of task %s failed", job.id)
            raise errors.SavingFailed("the pictures could not be saved; see the log") from error

    async def _finish(self, task_id: str, live: Live, outcome: Outcome) -> None:
        error: errors.ServiceError | None = None
        try:
            saved = outcome if live.job.kind == "call" else await self._saved(live.job, outcome)
        except errors.ServiceError as failed:
            await self._under_way.fail(task_id, failed, seconds=outcome.seconds)
            return
        if saved.reply is not None and saved.reply.status >= 400:
            error = live.failed_within or said_in(saved.reply)
        await self._under_way.succeed(task_id, live, saved, error, outcome.seconds)


def said_in(reply: Reply) -> errors.ServiceError:
    """What a route that refused a call said, as an error of this service."""
    said = reply.body[:500].decode("utf-8", "replace")
    kind = errors.BadRequest if reply.status < 500 else errors.EngineFailed
    return kind(f"the route answered {reply.status}: {said}")
