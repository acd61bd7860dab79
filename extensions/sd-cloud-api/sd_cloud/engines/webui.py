"""The webui we live in, as an engine: its own handlers, one at a time, its options left as they were.

A job is the native request again: it is run by the webui's own endpoint, which takes the webui's
queue lock, so that our jobs and the requests that pass us by have one order. What the EAS
parameters ask for travels as ``override_settings`` of that one request.

Written against stable-diffusion-webui 1.10.1 (``modules/api/api.py``, ``modules/processing.py``).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image

from sd_cloud.engines.base import Catalogue, Checkpoint, Control, ModelFile, Report, Sampler, Scheduler
from sd_cloud.errors import (
    BadRequest,
    Cancelled,
    CheckpointNotFound,
    EngineFailed,
    NotImplementedHere,
    OutOfMemory,
    ServiceError,
)
from sd_cloud.job import Job, Kind, Outcome, Picture, Progress

log = logging.getLogger(__name__)

#: How often the webui's state is looked at while one of our jobs runs.
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Endpoint:
    """One of the webui's own handlers and the request model it takes."""

    call: Callable[[Any], Any]
    model: Callable[..., Any]


@dataclass
class _Running:
    control: Control = field(default_factory=Control)


class WebuiEngine:
    """Runs jobs on the webui's own endpoints, in a thread of its own.

    The thread is not one of the 40 that serve the webui's synchronous routes: a hundred waiting
    requests of ours hold none of those.
    """

    slots = 1
    ready = True

    def __init__(self, endpoints: Mapping[Kind, Endpoint]) -> None:
        self._endpoints = endpoints
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sd-cloud engine")
        self._jobs: dict[str, _Running] = {}
        self._catalogue: Catalogue | None = None

    async def run(self, job: Job, report: Report) -> Outcome:
        if job.kind not in self._endpoints:
            raise NotImplementedHere(f"jobs of kind {job.kind} are not run inside the webui")
        running = self._jobs[job.id] = _Running()
        watching = asyncio.ensure_future(self._watch(job, running.control, report))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._run, job, running.control)
        finally:
            watching.cancel()
            del self._jobs[job.id]

    async def cancel(self, job_id: str) -> bool:
        return self._ask(job_id, "cancel")

    async def interrupt(self, job_id: str) -> bool:
        return self._ask(job_id, "interrupt")

    async def skip(self, job_id: str) -> bool:
        return self._ask(job_id, "skip")

    def _ask(self, job_id: str, verdict: Any) -> bool:
        if job_id not in self._jobs:
            return False
        control = self._jobs[job_id].control
        control.ask(verdict)
        _obey(job_id, control)
        return True

    def catalogue(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = catalogue()
        return self._catalogue

    async def refresh(self) -> Catalogue:
        from modules import sd_models

        await asyncio.to_thread(sd_models.list_models)
        self._catalogue = catalogue()
        return self._catalogue

    async def _watch(self, job: Job, control: Control, report: Report) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if _is_current(job.id):
                report(_progress())
                _obey(job.id, control)

    def _run(self, job: Job, control: Control) -> Outcome:
        if control.cancelled:
            raise Cancelled("the task was cancelled while it waited")
        endpoint = self._endpoints[job.kind]
        payload = native_payload(job)
        try:
            answer = endpoint.call(endpoint.model(**payload))
        except Exception as error:
            raise _named(error) from error
        if control.cancelled:
            raise Cancelled("the task was cancelled while it ran")
        return _outcome(answer, interrupted=control.verdict == "interrupt")


# -- the request ----------------------------------------------------------------------------------


def native_payload(job: Job) -> dict[str, Any]:
    """The native request of a job. Raises CheckpointNotFound, BadRequest for names not there.

    The webui itself falls back in silence for an unknown checkpoint, VAE or sampler.
    """
    payload = dict(job.payload)
    override = dict(payload.get("override_settings") or {})
    checkpoint = job.checkpoint or override.get("sd_model_checkpoint")
    if checkpoint is not None:
        override["sd_model_checkpoint"] = _checkpoint_title(checkpoint)
    vae = job.vae or override.get("sd_vae")
    if vae is not None:
        override["sd_vae"] = _vae_name(vae)
    _check_sampler(payload)
    _make_restorable(override)
    payload["override_settings"] = override
    payload["override_settings_restore_afterwards"] = True
    payload["force_task_id"] = job.id
    # Saving is ours, and the webui's answer must carry the pictures for it.
    payload["save_images"] = False
    payload["send_images"] = True
    return payload


def _make_restorable(names: Iterable[str]) -> None:
    """Give each option an explicit value, since the webui restores only those that have one."""
    from modules.shared import opts

    for name in names:
        if name in opts.data_labels and name not in opts.data:
            opts.data[name] = opts.get_default(name)


def _checkpoint_title(name: str) -> str:
    from modules import sd_models

    found = sd_models.checkpoint_aliases.get(name)
    if found is None:
        titles = ", ".join(sd_models.checkpoints_list) or "none"
        raise CheckpointNotFound(f"no checkpoint {name!r}; installed: {titles}", field="sd_model_checkpoint")
    return cast(str, found.title)


def _vae_name(name: str) -> str:
    from modules import sd_vae

    if name in ("Automatic", "None"):
        return name
    for known in sd_vae.vae_dict:
        if name in (known, known.rsplit(".", 1)[0]):
            return cast(str, known)
    raise CheckpointNotFound(
        f"no VAE {name!r}; installed: Automatic, None, {', '.join(sd_vae.vae_dict)}", field="sd_vae"
    )


def _check_sampler(payload: Mapping[str, Any]) -> None:
    from modules import sd_samplers, sd_schedulers

    name = payload.get("sampler_name") or payload.get("sampler_index")
    if name:
        sampler, _ = sd_samplers.get_sampler_and_scheduler(name, payload.get("scheduler"))
        if sampler not in sd_samplers.all_samplers_map:
            known = ", ".join(sd_samplers.all_samplers_map)
            raise BadRequest(f"no sampler {name!r}; there are: {known}", field="sampler_name")
    scheduler = payload.get("scheduler")
    if scheduler and scheduler not in sd_schedulers.schedulers_map:
        known = ", ".join(one.label for one in sd_schedulers.schedulers)
        raise BadRequest(f"no scheduler {scheduler!r}; there are: {known}", field="scheduler")


# -- the answer -----------------------------------------------------------------------------------


def _outcome(answer: Any, *, interrupted: bool) -> Outcome:
    info = json.loads(answer.info)
    images = [_decoded(text) for text in answer.images]
    infotexts = info.get("infotexts") or []
    seeds = info.get("all_seeds") or []
    subseeds = info.get("all_subseeds") or []
    pictures: list[Picture] = []
    for index, image in enumerate(images):
        made = index < len(seeds)
        pictures.append(
            Picture(
                image,
                role="image" if made else "control_map",
                seed=seeds[index] if made else None,
                subseed=subseeds[index] if made and index < len(subseeds) else None,
                infotext=infotexts[index] if index < len(infotexts) else "",
            )
        )
    grid = _grid([p for p in pictures if p.role == "image"], int(info.get("batch_size") or 1))
    return Outcome((*grid, *pictures), info, interrupted=interrupted)


def _grid(pictures: list[Picture], batch_size: int) -> tuple[Picture, ...]:
    """The grid as the webui would have made it, had it been asked to save."""
    from modules import images
    from modules.shared import opts

    if not opts.grid_save or (len(pictures) < 2 and opts.grid_only_if_multiple):
        return ()
    image = images.image_grid([p.image for p in pictures], batch_size)
    return (Picture(image, role="grid", infotext=pictures[0].infotext),)


def _decoded(text: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        image.load()
    except (binascii.Error, OSError) as error:
        raise EngineFailed(f"the webui answered with a picture that does not open: {error}") from error
    return image


def _named(error: Exception) -> ServiceError:
    """The error of ours that a failure inside the webui is."""
    if isinstance(error, ServiceError):
        return error
    detail = getattr(error, "detail", None)
    status = getattr(error, "status_code", None)
    if status is not None and 400 <= status < 500:
        return BadRequest(str(detail))
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return OutOfMemory(f"the webui ran out of memory: {error}")
    return EngineFailed(f"{type(error).__name__}: {error}")


# -- the webui's state ----------------------------------------------------------------------------


def _is_current(job_id: str) -> bool:
    from modules import progress

    return bool(progress.current_task == job_id)


def _obey(job_id: str, control: Control) -> None:
    """Pass on what was asked of the job, if the webui is at it: its switches are everybody's."""
    from modules import shared

    if not _is_current(job_id):
        return
    if control.verdict in ("cancel", "interrupt"):
        shared.state.interrupt()
    elif control.take_skip():
        shared.state.skip()


def _progress() -> Progress:
    from modules import shared

    state = shared.state
    return Progress(
        step=max(state.sampling_step, 0),
        steps=max(state.sampling_steps, 0),
        job_no=max(state.job_no, 0),
        job_count=max(state.job_count, 1),
        stage=state.textinfo or "",
    )


def catalogue() -> Catalogue:
    """What the webui lists."""
    from modules import sd_models, sd_samplers, sd_schedulers, sd_vae, shared

    return Catalogue(
        checkpoints=tuple(
            Checkpoint(
                title=one.title,
                name=one.name,
                filename=one.filename,
                hash=one.shorthash,
                sha256=one.sha256,
            )
            for one in sd_models.checkpoints_list.values()
        ),
        vaes=tuple(ModelFile(name, path) for name, path in sd_vae.vae_dict.items()),
        upscalers=tuple(ModelFile(one.name, one.data_path or "") for one in shared.sd_upscalers),
        samplers=tuple(
            Sampler(one.name, tuple(one.aliases), dict(one.options)) for one in sd_samplers.all_samplers
        ),
        schedulers=tuple(
            Scheduler(one.name, one.label, tuple(one.aliases or ())) for one in sd_schedulers.schedulers
        ),
    )
