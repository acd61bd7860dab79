"""An engine that paints flat colours: quick, deterministic, and as obedient as the real one.

`PaintWorker` follows the `Worker` protocol, so it runs in the real child process; `PaintEngine`
follows `Engine` and runs in this one. A job steers them through its payload: ``steps`` sleeps of
``step_seconds``; a prompt of ``fail`` / ``memory`` / ``crash`` / ``hang`` does as it says.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from sd_cloud.engines.base import Catalogue, Checkpoint, Control, Report, Sampler
from sd_cloud.errors import Cancelled, EngineFailed, OutOfMemory
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.settings import Settings

CATALOGUE = Catalogue(
    checkpoints=tuple(
        Checkpoint(title=f"{n}.safetensors", name=f"{n}.safetensors", filename=f"/models/{n}.safetensors")
        for n in ("first", "second")
    ),
    samplers=(Sampler("Euler a", ("k_euler_a",)), Sampler("Euler", ("k_euler",))),
)


def colour(job: Job, seed: int) -> tuple[int, int, int]:
    """The colour that this job's picture has: its checkpoint, prompt and seed decide."""
    checkpoint = job.checkpoint or job.option("sd_model_checkpoint") or "first.safetensors"
    digest = hashlib.sha256(f"{checkpoint}|{job.payload.get('prompt')}|{seed}".encode()).digest()
    return digest[0], digest[1], digest[2]


def paint(job: Job) -> Outcome:
    payload = job.payload
    count = int(payload.get("batch_size") or 1) * int(payload.get("n_iter") or 1)
    first = int(payload.get("seed", 0))
    first = 1000 if first == -1 else first
    size = (int(payload.get("width") or 64), int(payload.get("height") or 64))
    pictures = [
        Picture(Image.new("RGB", size, colour(job, first + i)), seed=first + i, infotext=f"Seed: {first + i}")
        for i in range(count)
    ]
    if count > 1 and payload.get("save_images"):
        pictures.insert(0, Picture(Image.new("RGB", size), role="grid", infotext=pictures[0].infotext))
    info: dict[str, Any] = {
        "prompt": payload.get("prompt", ""),
        "seed": first,
        "all_seeds": [p.seed for p in pictures if p.role == "image"],
        "infotexts": [p.infotext for p in pictures],
    }
    return Outcome(tuple(pictures), info)


def step_seconds(job: Job) -> float:
    return float(job.payload.get("step_seconds") or 0.0)


#: What the fake device has to tell of itself.
MEMORY: dict[str, Any] = {"error": "a test has no device"}


class PaintWorker:
    unloaded = 0

    def run(self, job: Job, report: Report, control: Control) -> Outcome:
        prompt = job.payload.get("prompt")
        if prompt == "fail":
            raise RuntimeError("asked to fail")
        if prompt == "memory":
            raise OutOfMemory("asked to run out of memory")
        if prompt == "crash":
            os._exit(3)
        steps = int(job.payload.get("steps") or 1)
        for step in range(steps):
            if control.verdict == "cancel":
                raise Cancelled("cancelled between two steps")
            if control.verdict == "interrupt":
                done = paint(job)
                return Outcome(done.pictures, done.info, interrupted=True)
            report(Progress(step=step, steps=steps, preview=Image.new("RGB", (8, 8))))
            time.sleep(step_seconds(job))
        outcome = paint(job)
        return Outcome(outcome.pictures, {**outcome.info, "unloaded": self.unloaded})

    def unload(self) -> None:
        self.unloaded += 1

    def memory(self) -> dict[str, Any]:
        return MEMORY


def create(settings: Settings) -> PaintWorker:
    return PaintWorker()


def scan(settings: Settings) -> Catalogue:
    return CATALOGUE


class PaintEngine:
    """The same, in this process; ``started`` lists the jobs in the order they were taken."""

    ready = True

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.started: list[Job] = []
        self.unloaded = 0
        self._controls: dict[str, Control] = {}
        self.before: Callable[[Job], None] = lambda job: None

    async def run(self, job: Job, report: Report) -> Outcome:
        self.started.append(job)
        control = self._controls[job.id] = Control()
        try:
            self.before(job)
            if job.payload.get("prompt") == "fail":
                raise EngineFailed("asked to fail")
            steps = int(job.payload.get("steps") or 1)
            for step in range(steps):
                if control.verdict == "cancel":
                    raise Cancelled("cancelled between two steps")
                if control.verdict == "interrupt":
                    done = paint(job)
                    return Outcome(done.pictures, done.info, interrupted=True)
                report(Progress(step=step, steps=steps, preview=Image.new("RGB", (8, 8), (step % 256, 0, 0))))
                await asyncio.sleep(step_seconds(job))
            return paint(job)
        finally:
            del self._controls[job.id]

    async def cancel(self, job_id: str) -> bool:
        return self._ask(job_id, "cancel")

    async def interrupt(self, job_id: str) -> bool:
        return self._ask(job_id, "interrupt")

    async def skip(self, job_id: str) -> bool:
        return self._ask(job_id, "skip")

    def _ask(self, job_id: str, verdict: Any) -> bool:
        if job_id in self._controls:
            self._controls[job_id].ask(verdict)
        return job_id in self._controls

    def catalogue(self) -> Catalogue:
        return CATALOGUE

    async def refresh(self) -> Catalogue:
        return CATALOGUE

    async def unload(self) -> None:
        self.unloaded += 1

    async def memory(self) -> dict[str, Any]:
        return MEMORY
