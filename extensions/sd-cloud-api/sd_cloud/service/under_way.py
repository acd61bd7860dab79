"""The tasks that are under way here, and how one of them ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sd_cloud import errors
from sd_cloud.job import Job, Outcome, Picture
from sd_cloud.live import Live
from sd_cloud.store.base import State, Task
from sd_cloud.store.sql import SqlStore


class UnderWay:
    """What this process knows of tasks that are not over. ``running``: those its engine has.

    ``closing``: nothing new is begun.
    """

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.running: dict[str, Task] = {}
        self.closing = False
        self._live: dict[str, Live] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def get(self, task_id: str) -> Live | None:
        return self._live.get(task_id)

    def begin(self, job: Job) -> Live:
        """What is known of this job's task, which this process takes care of."""
        live = self._live.setdefault(job.id, Live.of(job, self.tell))
        live.ours = True
        return live

    @contextmanager
    def asked(self, job: Job) -> Iterator[Live]:
        """The same for a task of any process, for as long as somebody asks for it here."""
        live = self._live.get(job.id)
        if live is None:
            live = self._live[job.id] = Live.of(job, self.tell)
            live.ours = False
        live.askers += 1
        try:
            yield live
        finally:
            live.askers -= 1
            if not live.ours and not live.askers and self._live.get(job.id) is live:
                del self._live[job.id]

    def drop(self, task_id: str) -> Live | None:
        return self._live.pop(task_id, None)

    def first_running(self) -> Live | None:
        return next((self._live[i] for i in self.running if i in self._live), None)

    def is_made(self, task_id: str) -> bool:
        """Was it run here, and what came of it is being saved or recorded?"""
        live = self._live.get(task_id)
        return live is not None and live.started is not None and task_id not in self.running

    def waiting(self) -> list[tuple[str, Job]]:
        """Those that somebody waits for here and that do not run here."""
        return [
            (task_id, live.job)
            for task_id, live in self._live.items()
            if live.started is None and task_id not in self.running
        ]

    # -- news ---------------------------------------------------------------------------------

    def tell(self) -> None:
        """Something about a task, or the service, has changed. Any thread may call it."""
        for loop, event in list(self._watchers):
            loop.call_soon_threadsafe(event.set)

    async def news(self) -> AsyncGenerator[bool, None]:
        """Yields at once, and again when something about any task, of any process, may have changed; ends
        when the service begins to stop. A slow reader misses what came between, never the last."""
        event = asyncio.Event()
        watcher = (asyncio.get_running_loop(), event)
        topics = ("work", "progress", "ended")
        stops = [self.store.database.listen(topic, lambda _: event.set()) for topic in topics]
        self._watchers.add(watcher)
        try:
            while not self.closing:
                yield True
                await event.wait()
                event.clear()
        finally:
            self._watchers.discard(watcher)
            for stop in stops:
                stop()

    # -- ends ---------------------------------------------------------------------------------

    async def fail(
        self, task_id: str, error: errors.ServiceError, *, seconds: float = 0.0, only_waiting: bool = False
    ) -> bool:
        state: State = "cancelled" if isinstance(error, errors.Cancelled) else "failed"
        ended = await self.store.end(
            task_id, state, error=error, engine_seconds=seconds, only_waiting=only_waiting
        )
        if ended or not only_waiting:
            live = self.drop(task_id)
            if live is not None:
                live.fail(error)
        return ended

    async def succeed(
        self, task_id: str, live: Live, outcome: Outcome, error: errors.ServiceError | None, seconds: float
    ) -> None:
        """Record a result, and with ``error`` that it is one of a call that failed."""
        # The store has the result before the caller hears of it.
        await self.store.end(
            task_id,
            "failed" if error is not None else "succeeded",
            outcome=without_images(outcome),
            error=error,
            engine_seconds=seconds,
        )
        self.drop(task_id)
        if error is not None:
            live.fail(error)
        else:
            live.succeed(outcome)

    def heard_end(self, task_id: str) -> None:
        """A task ended somewhere. Those that run here are told by who runs them."""
        waiting = [task_id] if task_id else list(self._live)
        for one in waiting:
            live = self._live.get(one)
            if live is not None and live.started is None:
                self.spawn(self._take_result(one))

    def heard_progress(self, task_id: str) -> None:
        """A task of another process began, got on, or waits again."""
        for one in [task_id] if task_id else list(self._live):
            live = self._live.get(one)
            if live is not None and live.started is None:
                live.tell()

    async def _take_result(self, task_id: str) -> None:
        looking = self._live.get(task_id)
        recorded = looking is None or looking.recorded
        task = await self.store.get(task_id)
        live = self._live.get(task_id)
        if live is None or live.started is not None or (task is not None and not task.over):
            return
        if task is None and not recorded:
            return  # it was not there yet: its end is yet to be announced
        self.drop(task_id)
        if task is None:
            live.fail(errors.TaskNotFound(f"no task {task_id!r}"))
        elif task.error is not None:
            live.fail(task.error)
        else:
            live.succeed(task.outcome or Outcome())

    # -- work of its own ----------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def settle(self, seconds: float) -> None:
        """Wait until all of it is done, but no longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._background and time.monotonic() < deadline:
            await asyncio.wait(self._background, timeout=deadline - time.monotonic())


def without_images(outcome: Outcome) -> Outcome:
    """The outcome as the store keeps it: paths, links, seeds and infotexts, no pixels."""
    bare: tuple[Picture, ...] = tuple(replace(p, image=None) for p in outcome.pictures)
    return replace(outcome, pictures=bare)
