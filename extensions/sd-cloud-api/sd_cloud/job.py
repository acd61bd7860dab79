"""The work and what comes of it, as plain data that every room passes on.

Nothing here imports a host, an engine or a wire format. The native payload is the common
currency: the fields of the webui's ``txt2img`` / ``img2img`` / ``extra-*`` requests, JSON all
through, pictures in it as base64 once :mod:`sd_cloud.inputs` has been over it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

Kind = Literal["txt2img", "img2img", "extras", "detect", "interrogate", "call"]
Role = Literal["image", "grid", "control_map", "mask", "mask_composite", "first_pass"]

KINDS: tuple[Kind, ...] = ("txt2img", "img2img", "extras", "detect", "interrogate", "call")
#: Kinds that look at pictures and answer: what comes of them is never saved, nor counted as a picture made.
LOOKING: frozenset[Kind] = frozenset({"detect", "interrogate"})
#: The owner of what the operator's own callers do: loopback, a configured token, `--no-auth`.
OPERATOR = "local"


def new_id() -> str:
    """A fresh task id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Target:
    """Where pictures are to be saved, and under which naming.

    ``save_dir`` is as the caller wrote it (absolute, relative, ``oss://``); ``None`` means the
    naming's own folders. ``naming`` is ``webui`` (the options' folders and filename patterns),
    ``eas`` (``<save_dir>/<kind>-images/<date>/<time>-<uuid>-<seed>.png``) or ``task``
    (``images/<user>/<task id>_<n>.png``).
    """

    naming: Literal["webui", "eas", "task"] = "webui"
    save_dir: str | None = None


@dataclass(frozen=True)
class Job:
    """One piece of work, on its way from a dialect to an engine.

    ``payload``: the native request body without the keys a dialect adds to it.
    ``checkpoint`` / ``vae``: the names asked for; ``None`` means what the options say.
    ``target``: ``None`` means that nothing is saved.
    ``options``: a snapshot of the host's options, filled in by the service when it takes the
    job, so that a later change of the options does not reach a waiting job.
    ``labels``: what the caller wants back (``id_task``, ``uid``, tags). They select nothing.
    ``family``: what some model families need beside the native fields (``shift`` of SD 3, …).
    ``callback_url``: whom to tell, by a signed POST, when the task is over.
    """

    kind: Kind
    payload: Mapping[str, Any]
    id: str = field(default_factory=new_id)
    owner: str = OPERATOR
    dialect: str = "sdapi"
    checkpoint: str | None = None
    vae: str | None = None
    target: Target | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    order_key: str | None = None
    priority: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    family: Mapping[str, Any] = field(default_factory=dict)
    callback_url: str | None = None

    def with_payload(self, payload: Mapping[str, Any]) -> Job:
        return replace(self, payload=payload)

    def option(self, name: str, default: Any = None) -> Any:
        """An option as this job sees it: its own ``override_settings`` over the snapshot."""
        own = self.payload.get("override_settings") or {}
        return own.get(name, self.options.get(name, default))


@dataclass(frozen=True)
class Picture:
    """An image with its metadata.

    ``image`` is what the engine made (mode RGB or RGBA). ``path`` and ``link`` are filled in by
    :mod:`sd_cloud.outputs` once it is saved: ``path`` is the file (or ``oss://`` address) that
    the caller is told. ``oss_address`` is the ``oss://`` address of that file where it is on OSS or
    on a mounted bucket. ``error`` says why this one picture of an otherwise good job is missing.
    """

    image: Image.Image | None
    role: Role = "image"
    seed: int | None = None
    subseed: int | None = None
    infotext: str = ""
    path: str | None = None
    link: str | None = None
    error: str | None = None
    oss_address: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a replayed HTTP call answered (kind ``call``)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    ``pictures`` are in the webui's order: the grid first when there is one, then the pictures,
    then ControlNet maps. ``info`` is the webui's ``info`` object (not yet a JSON string); of a job that
    only looks at pictures, what it found, as JSON.
    ``interrupted`` means that a person stopped it and these are the pictures so far.
    """

    pictures: tuple[Picture, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0
    reply: Reply | None = None

    def of_role(self, *roles: Role) -> tuple[Picture, ...]:
        return tuple(p for p in self.pictures if p.role in roles)


@dataclass(frozen=True)
class Progress:
    """How far a running job is.

    ``step`` of ``steps`` in the current pass, pass ``job_no`` of ``job_count`` (counted from 0,
    as the webui does). ``preview`` is a small approximate picture of the present latent.
    """

    step: int = 0
    steps: int = 0
    job_no: int = 0
    job_count: int = 1
    stage: str = ""
    preview: Image.Image | None = None

    @property
    def fraction(self) -> float:
        """0.0 to 1.0 over all passes."""
        passes = max(self.job_count, 1)
        within = self.step / self.steps if self.steps else 0.0
        return min((self.job_no + within) / passes, 1.0)

    def seconds_left(self, seconds: float) -> float | None:
        """How long it will still take, when it took ``seconds`` so far; None before the first step."""
        return seconds / self.fraction * (1 - self.fraction) if self.fraction > 0 else None
