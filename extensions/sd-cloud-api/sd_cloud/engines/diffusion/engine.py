"""The embedded engine: a worker that makes pictures in its own process."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sd_cloud.engines.base import Control, Report, Worker
from sd_cloud.engines.diffusion.cuda_memory import cuda_memory
from sd_cloud.engines.diffusion.detection import run_detection
from sd_cloud.engines.diffusion.extras import run_extras
from sd_cloud.engines.diffusion.interrogate.run import run_interrogation
from sd_cloud.engines.diffusion.job_run import JobRun
from sd_cloud.engines.diffusion.placement import placement_for
from sd_cloud.engines.diffusion.scripts.run import Before, asks_for_script, run_script
from sd_cloud.engines.diffusion.threads import Threads
from sd_cloud.engines.diffusion.unsupported import check_unsupported
from sd_cloud.engines.diffusion.workshop import Workshop
from sd_cloud.errors import EngineFailed, OutOfMemory, ServiceError
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import Settings

log = logging.getLogger(__name__)


class DiffusionWorker:
    """Runs txt2img, img2img, extras, detect and interrogate jobs, one at a time.

    ``threads``: told before a job and at each of its steps to see how many cores are free.
    """

    def __init__(self, settings: Settings, threads: Threads | None = None) -> None:
        self.workshop = Workshop(settings, placement_for(settings.precision))
        self.threads = threads

    def run(self, job: Job, report: Report, control: Control) -> Outcome:
        """Make the pictures; raises a ServiceError, and is ready for the next job either way."""
        if self.threads is not None:
            self.threads.fit()
            report = self.threads.fitting(report)
        try:
            if job.kind == "extras":
                return run_extras(
                    job, report, control, settings=self.workshop.settings, device=self.workshop.device
                )
            if job.kind == "interrogate":
                return self._interrogate(job, report, control)
            if job.kind == "detect":
                return run_detection(job, report, control, settings=self.workshop.settings)
            if job.kind in ("txt2img", "img2img") and asks_for_script(job):
                return run_script(
                    job,
                    report,
                    control,
                    lambda part, before, heard: self._make(part, heard, control, before),
                    settings=self.workshop.settings,
                    device=self.workshop.device,
                    describe=lambda job, model, image: self._describe(job, model, image, control),
                )
            if job.kind in ("txt2img", "img2img"):
                return self._make(job, report, control, Before())
            raise EngineFailed(f"jobs of kind {job.kind!r} are not the engine's")
        except ServiceError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            failure: ServiceError = self._out_of_memory(job, error)
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "not enough memory" in str(error):
                failure = self._out_of_memory(job, error)
            else:
                failure = self._failed(job, error)
        except Exception as error:  # whatever a library raises, the next job is to be served
            failure = self._failed(job, error)
        raise failure

    def _interrogate(self, job: Job, report: Report, control: Control) -> Outcome:
        shop = self.workshop
        return run_interrogation(job, report, control, settings=shop.settings, shelf=shop.interrogators)

    def _describe(self, job: Job, model: str, image: str, control: Control) -> str:
        asked = replace(job, kind="interrogate", payload={"model": model, "image": image})
        return str(self._interrogate(asked, lambda progress: None, control).info["caption"])

    def _make(self, job: Job, report: Report, control: Control, before: Before) -> Outcome:
        sentences = check_unsupported(job)
        one = JobRun(self.workshop, job, report, control, before)
        one.state.comments += sentences
        return one.run()

    def unload(self) -> None:
        self.workshop.clear()

    def memory(self) -> Mapping[str, Any]:
        return cuda_memory(self.workshop.device)

    def _out_of_memory(self, job: Job, error: BaseException) -> OutOfMemory:
        log.warning("job %s ran out of memory: %s", job.id, error)
        # The error's traceback holds the tensors that filled the memory.
        error.__traceback__ = None
        self.workshop.clear()
        return OutOfMemory(
            "the job needs more memory than there is: ask for a smaller or a smaller batch of pictures"
        )

    def _failed(self, job: Job, error: BaseException) -> EngineFailed:
        log.error("job %s failed", job.id, exc_info=error)
        return EngineFailed(f"{type(error).__name__}: {str(error)[:500]}")


def create(settings: Settings) -> Worker:
    """What the child process calls, with the settings, to have a worker."""
    worker = DiffusionWorker(settings, Threads().watch())
    # What is imported by now stays for good: collecting garbage need not look at it again.
    gc.collect()
    gc.freeze()
    return worker
