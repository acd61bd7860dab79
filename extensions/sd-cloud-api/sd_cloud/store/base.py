"""What a task is in the store, which ways it may go, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sd_cloud.errors import ServiceError
from sd_cloud.job import Job, Outcome, Progress

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

#: How often one waiting task may be overtaken for model affinity.
OVERTAKES = 4


@dataclass(frozen=True)
class Task:
    """The record of a job. Times are seconds since the epoch.

    ``attempts`` counts deliveries to an engine. ``outcome`` carries no image data: pictures are
    in their files, and with whoever waited for the job. ``process`` is the one that runs it;
    ``progress`` is how far it was when that process last wrote it down.
    """

    job: Job
    state: State = "pending"
    attempts: int = 0
    submitted: float = 0.0
    scheduled: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    error: ServiceError | None = None
    process: str | None = None
    progress: Progress | None = None

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Recovered:
    """What a look after dead processes found.

    ``unprepared``: waiting tasks whose inputs are not there yet and that no live process is
    preparing; the ``suspects`` were being prepared when a process died: one of them may be why.
    ``held``: tasks that were running then, which are not to be beside the suspects once more; none
    where there are no suspects, as they can be claimed at once. ``ended``: tasks that were set aside.
    """

    unprepared: tuple[Job, ...] = ()
    suspects: tuple[Job, ...] = ()
    held: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
