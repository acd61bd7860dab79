"""The task store in the process's memory: nothing survives a restart."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, replace

from sd_cloud.errors import QueueFull, ServiceError
from sd_cloud.job import Job, Outcome
from sd_cloud.store.base import ENDED, MOVES, OVERTAKES, State, Task


@dataclass
class _Entry:
    task: Task
    number: int
    ready: bool = False
    overtaken: int = 0


class MemoryStore:
    """Keeps every waiting task and the last ``keep`` that ended. Used from one event loop."""

    durable = False

    def __init__(self, *, keep: int = 1000) -> None:
        self._keep = keep
        self._entries: dict[str, _Entry] = {}
        self._served: dict[str, int] = {}  # owner -> when last served, as a running number
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._announced = asyncio.Event()

    async def add(self, job: Job, *, limit: int) -> Task:
        if await self.waiting() >= limit:
            raise QueueFull(f"{limit} tasks are waiting already; send it again in a few seconds")
        task = Task(job, submitted=time.time())
        self._entries[job.id] = _Entry(task, next(self._numbers))
        self._forget_old()
        return task

    async def ready(self, task_id: str) -> None:
        entry = self._entries.get(task_id)
        if entry is not None:
            entry.ready = True
            self._announced.set()

    async def claim(self, *, loaded: str | None = None) -> Task | None:
        busy = {e.task.job.order_key for e in self._entries.values() if e.task.state == "running"} - {None}
        eligible = sorted(
            (
                e
                for e in self._entries.values()
                if e.ready and e.task.state == "pending" and e.task.job.order_key not in busy
            ),
            key=lambda e: (-e.task.job.priority, self._served.get(e.task.job.owner, -1), e.number),
        )
        if not eligible:
            return None
        chosen = self._with_affinity(eligible, loaded)
        self._served[chosen.task.job.owner] = next(self._turns)
        task = replace(chosen.task, attempts=chosen.task.attempts + 1, scheduled=time.time())
        return self._move(task, "running")

    @staticmethod
    def _with_affinity(eligible: list[_Entry], loaded: str | None) -> _Entry:
        first = eligible[0]
        if loaded is None or first.task.job.checkpoint == loaded or first.overtaken >= OVERTAKES:
            return first
        for other in eligible[1:]:
            if other.task.job.checkpoint == loaded and other.task.job.priority == first.task.job.priority:
                first.overtaken += 1
                return other
        return first

    async def requeue(self, task_id: str) -> None:
        self._move(self._entries[task_id].task, "pending")
        self._announced.set()

    async def end(
        self, task_id: str, state: State, *, outcome: Outcome | None = None, error: ServiceError | None = None
    ) -> bool:
        task = self._entries[task_id].task
        if task.over:
            return False
        self._move(replace(task, outcome=outcome, error=error, ended=time.time()), state)
        self._announced.set()  # its order_key may have held others back
        return True

    async def get(self, task_id: str) -> Task | None:
        entry = self._entries.get(task_id)
        return entry.task if entry else None

    async def waiting(self) -> int:
        return sum(e.task.state == "pending" for e in self._entries.values())

    async def work(self) -> None:
        await self._announced.wait()
        self._announced.clear()

    def _move(self, task: Task, state: State) -> Task:
        if state not in MOVES[task.state]:
            raise RuntimeError(f"a task cannot go from {task.state} to {state}")
        moved = replace(task, state=state)
        self._entries[task.id].task = moved
        return moved

    def _forget_old(self) -> None:
        ended = [key for key, e in self._entries.items() if e.task.state in ENDED]
        for key in ended[: max(0, len(ended) - self._keep)]:
            del self._entries[key]
