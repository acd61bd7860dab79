"""What the service asks of its task store. Two implementations: memory, and SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from sd_cloud.errors import ServiceError
from sd_cloud.job import Job, Outcome

State = Literal["pending", "running", "suspended", "succeeded", "failed", "cancelled"]

#: From which state a task may go to which. Everything else is a bug in the caller.
MOVES: dict[State, tuple[State, ...]] = {
    "pending": ("running", "suspended", "failed", "cancelled"),
    "suspended": ("pending", "cancelled"),
    "running": ("pending", "succeeded", "failed", "cancelled"),
    "succeeded": (),
    "failed": (),
    "cancelled": (),
}

ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Task:
    """The record of a job. Times are seconds since the epoch.

    ``attempts`` counts deliveries to an engine. ``outcome`` carries no image data: pictures are
    in their files, and with whoever waited for the job.
    """

    job: Job
    state: State = "pending"
    attempts: int = 0
    submitted: float = 0.0
    scheduled: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    error: ServiceError | None = None

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def over(self) -> bool:
        return self.state in ENDED


class Store(Protocol):
    """Tasks and their order. A task is added, made ready once its inputs are there, claimed, ended."""

    durable: bool  # do waiting tasks survive the process?

    async def add(self, job: Job, *, limit: int) -> Task:
        """Record a job as pending. Raises QueueFull when ``limit`` tasks are already waiting."""
        ...

    async def ready(self, task_id: str) -> None:
        """The task's inputs are there: from now on it can be claimed."""
        ...

    async def claim(self, *, loaded: str | None = None) -> Task | None:
        """Take the next task: highest priority, then the least recently served owner, then age.

        A task whose ``order_key`` is already running is not eligible. ``loaded`` is the checkpoint
        the engine holds: a task for it may go before its turn, but each task is overtaken at most
        `OVERTAKES` times.
        """
        ...

    async def requeue(self, task_id: str) -> None:
        """The engine died under this task: it is pending again, and keeps its place by age."""
        ...

    async def end(
        self, task_id: str, state: State, *, outcome: Outcome | None = None, error: ServiceError | None = None
    ) -> bool:
        """Record how a task ended. False when it had already ended: the first word stands."""
        ...

    async def get(self, task_id: str) -> Task | None: ...

    async def waiting(self) -> int:
        """How many tasks are pending."""
        ...

    async def work(self) -> None:
        """Return when a claim may have become possible since the last call."""
        ...


#: How often one waiting task may be overtaken for model affinity.
OVERTAKES = 4
