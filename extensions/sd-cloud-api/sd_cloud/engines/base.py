"""The seam between the service and whatever makes pictures."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sd_cloud.errors import EngineFailed
from sd_cloud.job import Job, Kind, Outcome, Progress

Report = Callable[[Progress], None]
Verdict = Literal["go", "skip", "interrupt", "cancel"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as ``/sdapi/v1/sd-models`` lists it.

    ``title`` is ``name [short hash]`` as in the webui; ``name`` the path below its folder;
    ``sha256`` is ``None`` until it has been computed.
    """

    title: str
    name: str
    filename: str
    hash: str | None = None
    sha256: str | None = None
    config: str | None = None
    legacy_hash: str | None = None  # the webui's 8 digits of before sha256; old requests name it


@dataclass(frozen=True)
class ModelFile:
    """Any other model file: VAE, LoRA, embedding, hypernetwork, upscaler, ControlNet."""

    name: str
    filename: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scheduler:
    name: str
    label: str
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False


@dataclass(frozen=True)
class ScriptArgument:
    """One of ``script_args``: its name in the script's source, and how a page shows it.

    ``kind``: ``number``, ``flag``, ``text`` (``lines`` of it), ``choice`` by its name, ``choices`` (several),
    ``place`` (a choice by its place in the list), ``axis`` (the same, of an X/Y/Z plot),
    ``values`` of such an axis in writing, ``list`` (the same, chosen from what there is), ``upscaler`` or
    ``note`` (no value at all).
    """

    name: str
    label: str
    default: Any
    kind: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    lines: int = 1


@dataclass(frozen=True)
class ScriptInfo:
    """A script that a request may select by its ``title``, in any case: its arguments in the order of
    ``script_args``, for each kind of job that it is for."""

    title: str
    arguments: Mapping[Kind, tuple[ScriptArgument, ...]]

    @property
    def name(self) -> str:
        """As ``/sdapi/v1/scripts`` lists it."""
        return self.title.lower()


@dataclass(frozen=True)
class Catalogue:
    """What an engine can be asked for. Building it loads no weights."""

    checkpoints: tuple[Checkpoint, ...] = ()
    vaes: tuple[ModelFile, ...] = ()
    loras: tuple[ModelFile, ...] = ()
    embeddings: tuple[ModelFile, ...] = ()
    hypernetworks: tuple[ModelFile, ...] = ()
    controlnets: tuple[ModelFile, ...] = ()
    upscalers: tuple[ModelFile, ...] = ()
    samplers: tuple[Sampler, ...] = ()
    schedulers: tuple[Scheduler, ...] = ()
    scripts: tuple[ScriptInfo, ...] = ()

    def checkpoint(self, wanted: str) -> Checkpoint | None:
        """The checkpoint a caller means: by title, name, name without ending, file name or hash.

        The same aliases that the webui's ``sd_model_checkpoint`` understands.
        """
        for one in self.checkpoints:
            if wanted in checkpoint_aliases(one):
                return one
        return None

    def unhashed_remark(self, wanted: str) -> str:
        """Said with a name that is not there: what looks like a hash may be of a file that has none yet."""
        unhashed = sum(one.sha256 is None for one in self.checkpoints)
        if not unhashed or not HASH.search(wanted):
            return ""
        return f" ({unhashed} of them have no hash yet: a file is hashed when it is first used by its name)"


#: A short or whole sha256, by itself or in the brackets of a title.
HASH = re.compile(r"(?:^|\[)(?:[0-9a-f]{10}|[0-9a-f]{64})\]?$")


def checkpoint_aliases(one: Checkpoint) -> set[str]:
    stem = one.name.rsplit(".", 1)[0]
    base = one.name.rsplit("/", 1)[-1]
    aliases = {one.title, one.name, stem, base, base.rsplit(".", 1)[0], one.filename}
    if one.sha256:
        short = one.sha256[:10]
        aliases |= {one.sha256, short, f"{one.name} [{short}]", f"{stem} [{short}]"}
    if one.hash:
        aliases.add(one.hash)
    if one.legacy_hash:
        aliases |= {one.legacy_hash, f"{one.name} [{one.legacy_hash}]"}
    return aliases


class Engine(Protocol):
    """What the service runs jobs on. All of it is called on the event loop."""

    slots: int

    async def run(self, job: Job, report: Report) -> Outcome:
        """Make the pictures. Raises a ServiceError; `Cancelled` after :meth:`cancel`."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Stop that job before its next step and drop what it made. False: not running here."""
        ...

    async def interrupt(self, job_id: str) -> bool:
        """Stop that job before its next step and keep what is there, as the webui does."""
        ...

    async def skip(self, job_id: str) -> bool:
        """Go on to the job's next batch."""
        ...

    def catalogue(self) -> Catalogue:
        """What can be asked for, as last looked up; cheap."""
        ...

    async def refresh(self) -> Catalogue:
        """Look the folders up again."""
        ...

    async def unload(self) -> None:
        """Let go of every loaded model once the running job is over; the next job loads its own."""
        ...

    async def memory(self) -> Mapping[str, Any]:
        """Bytes of the GPU as the webui's ``/sdapi/v1/memory`` words them, or ``error`` and why not."""
        ...


class EngineDied(EngineFailed):
    """The engine's process ended under a job. The job may be delivered again."""


class Control:
    """What a person has asked of a running job; the worker looks at it between two steps."""

    def __init__(self) -> None:
        self._verdict: Verdict = "go"
        self._lock = threading.Lock()

    @property
    def verdict(self) -> Verdict:
        return self._verdict

    @property
    def cancelled(self) -> bool:
        return self._verdict == "cancel"

    def ask(self, verdict: Verdict) -> None:
        """The strongest request wins: cancel over interrupt over skip."""
        order: tuple[Verdict, ...] = ("go", "skip", "interrupt", "cancel")
        with self._lock:
            if order.index(verdict) > order.index(self._verdict):
                self._verdict = verdict

    def take_skip(self) -> bool:
        """True once per skip: the caller goes on to its next batch."""
        with self._lock:
            if self._verdict == "skip":
                self._verdict = "go"
                return True
            return False


class Worker(Protocol):
    """A synchronous engine that lives in a child process (see :mod:`sd_cloud.engines.child`)."""

    def run(self, job: Job, report: Report, control: Control) -> Outcome:
        """Make the pictures; raises a ServiceError. Must leave itself able to run the next job."""
        ...

    def unload(self) -> None:
        """Let go of every loaded model. Never called while a job runs."""
        ...

    def memory(self) -> Mapping[str, Any]:
        """Bytes of the GPU, or ``error`` and why not. Called at any time, not from a job's thread."""
        ...
