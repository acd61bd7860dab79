"""What a process knows of a task while it is under way: who waits for it, how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from sd_cloud.errors import ServiceError
from sd_cloud.job import Job, Outcome, Progress


@dataclass
class Live:
    """A task that somebody waits for here, or that runs here.

    ``prepared``: its inputs are in ``job``. ``ours``: accepted or run by this process, else somebody
    asks here for a task of another one. ``recorded``: the store has it. ``started``: monotonic seconds
    when the engine took it; None while it waits or runs in another process. ``within`` and
    ``failed_within`` are what came of the jobs that a replayed call asked for. ``told`` is called, by any
    thread, whenever those who wait for a change are told of one.
    """

    job: Job
    done: asyncio.Future[Outcome]
    ours: bool = True
    recorded: bool = True
    askers: int = 0
    prepared: bool = False
    started: float | None = None
    cancelled: bool = False
    progress: Progress = field(default_factory=Progress)
    within: list[Outcome] = field(default_factory=list)
    failed_within: ServiceError | None = None
    running: asyncio.Future[Outcome] | None = None
    told: Callable[[], None] = lambda: None
    _watchers: set[asyncio.Event] = field(default_factory=set)

    @classmethod
    def of(cls, job: Job, told: Callable[[], None] = lambda: None) -> Live:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        done.add_done_callback(retrieved)
        return cls(job, done, told=told)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started if self.started is not None else 0.0

    def report(self, progress: Progress) -> None:
        """Take note of progress. Any thread may call it."""
        self.progress = progress
        self.tell()

    def tell(self) -> None:
        loop = self.done.get_loop()
        for event in list(self._watchers):
            loop.call_soon_threadsafe(event.set)
        self.told()

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yields at once, then whenever something changed; ends with the task. A slow reader
        misses what came between, never the last."""
        event = asyncio.Event()
        self._watchers.add(event)
        self.done.add_done_callback(lambda _: event.set())
        try:
            while not self.done.done():
                yield
                await event.wait()
                event.clear()
            yield
        finally:
            self._watchers.discard(event)

    def succeed(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)

    def fail(self, error: ServiceError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


#: The task whose call is being replayed in this context: what it asks for belongs to that task.
replaying: ContextVar[Live | None] = ContextVar("sd_cloud_replaying", default=None)


def retrieved(done: asyncio.Future[Outcome]) -> None:
    """A task nobody waits for is not an unhandled error."""
    if not done.cancelled():
        done.exception()
