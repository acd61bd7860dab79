"""The webui we live in, as an engine: its own handlers, one job at a time.

A job is the native request again: it is run by the webui's own endpoint, which takes the webui's
queue lock, so that our jobs and the requests that pass us by have one order. What the job asks for
travels as ``override_settings`` of that one request, on options that are the job's own
(:mod:`sd_cloud.engines.webui_options`).

Written against stable-diffusion-webui 1.10.1 (``modules/api/api.py``, ``modules/processing.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sd_cloud.engines.base import Catalogue, Control, Report, Verdict
from sd_cloud.engines.webui_answer import extras_outcome_of, named, outcome_of
from sd_cloud.engines.webui_catalogue import catalogue, look_again
from sd_cloud.engines.webui_options import on_top_of
from sd_cloud.engines.webui_request import native_payload, own_options
from sd_cloud.engines.webui_scripts import asked_scripts_run
from sd_cloud.errors import Cancelled, NotImplementedHere
from sd_cloud.job import Job, Kind, Outcome, Progress

#: How often the webui's state is looked at while one of our jobs runs.
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Endpoint:
    """One of the webui's own handlers and the request model it takes."""

    call: Callable[[Any], Any]
    model: Callable[..., Any]


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
        self._controls: dict[str, Control] = {}

    async def run(self, job: Job, report: Report) -> Outcome:
        if job.kind not in self._endpoints:
            raise NotImplementedHere(f"jobs of kind {job.kind} are not run inside the webui")
        control = self._controls[job.id] = Control()
        watching = asyncio.ensure_future(_watch(job.id, control, report))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._run, job, control)
        finally:
            watching.cancel()
            del self._controls[job.id]

    async def cancel(self, job_id: str) -> bool:
        return self._ask(job_id, "cancel")

    async def interrupt(self, job_id: str) -> bool:
        return self._ask(job_id, "interrupt")

    async def skip(self, job_id: str) -> bool:
        return self._ask(job_id, "skip")

    def catalogue(self) -> Catalogue:
        return catalogue()

    async def refresh(self) -> Catalogue:
        await asyncio.to_thread(look_again)
        return catalogue()

    async def unload(self) -> None:
        raise NotImplementedHere("the webui unloads its checkpoint itself: POST /sdapi/v1/unload-checkpoint")

    async def memory(self) -> Mapping[str, Any]:
        raise NotImplementedHere("the webui tells its memory itself: GET /sdapi/v1/memory")

    def close(self) -> None:
        """Take no further job; the one that runs goes on to its end."""
        self._thread.shutdown(wait=False)

    def _ask(self, job_id: str, verdict: Verdict) -> bool:
        control = self._controls.get(job_id)
        if control is None:
            return False
        control.ask(verdict)
        _obey(job_id, control)
        return True

    def _run(self, job: Job, control: Control) -> Outcome:
        if control.cancelled:
            raise Cancelled("the task was cancelled while it waited")
        endpoint = self._endpoints[job.kind]
        try:
            outcome = _extras(endpoint, job) if job.kind == "extras" else _made(endpoint, job, control)
        except Exception as error:
            raise named(error) from error
        if control.cancelled:
            raise Cancelled("the task was cancelled while it ran")
        return outcome


def _made(endpoint: Endpoint, job: Job, control: Control) -> Outcome:
    from modules import scripts
    from modules.shared import opts

    payload = native_payload(job)
    runner = scripts.scripts_img2img if job.kind == "img2img" else scripts.scripts_txt2img
    with on_top_of(opts, own_options(job, payload)), _known_to_the_webui(job.id):
        with asked_scripts_run(runner, payload):
            answer = endpoint.call(endpoint.model(**payload))
        return outcome_of(answer, interrupted=control.verdict == "interrupt")


def _extras(endpoint: Endpoint, job: Job) -> Outcome:
    from modules.shared import opts

    with on_top_of(opts, {**job.options, "samples_format": "png"}):
        return extras_outcome_of(endpoint.call(endpoint.model(**job.payload)))


@contextlib.contextmanager
def _known_to_the_webui(job_id: str) -> Iterator[None]:
    """The webui forgets a task that ended well; after a failure it would name it for ever."""
    from modules import progress

    try:
        yield
    except BaseException:
        progress.pending_tasks.pop(job_id, None)
        if progress.current_task == job_id:
            progress.finish_task(job_id)
        raise


# -- the webui's state ----------------------------------------------------------------------------


async def _watch(job_id: str, control: Control, report: Report) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if _is_current(job_id):
            report(_progress())
            _obey(job_id, control)


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
        preview=state.current_image,
    )
