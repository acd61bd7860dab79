"""A service in a process of its own, made to be killed: it tells its parent what it promised."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from sd_cloud.engines.base import Report
from sd_cloud.job import Job, Outcome, Target
from sd_cloud.service import Service
from sd_cloud.settings import settings_below
from sd_cloud.store.sql import open_store
from tests.fakes import PaintEngine


@dataclass(frozen=True)
class Life:
    """What one process is to do: take ``jobs``, and end by itself only when ``drains``."""

    data_dir: Path
    database_url: str | None
    jobs: tuple[Job, ...]
    max_delivery: int = 1000
    drains: bool = False
    slots: int = 2


def job(prompt: str, seed: int) -> Job:
    steps = {"steps": 1 + seed % 4, "step_seconds": 0.004}
    payload = {"prompt": prompt, "seed": seed, "width": 8, "height": 8, **steps}
    return Job("txt2img", payload, owner=f"owner {seed % 3}", target=Target("task"))


class Engine(PaintEngine):
    async def run(self, job: Job, report: Report) -> Outcome:
        if job.payload["prompt"] == "kill the service":
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().run(job, report)


class Inputs:
    def check_paths(self, job: Job) -> None:
        pass

    async def resolve(self, job: Job) -> Job:
        if job.payload["prompt"] == "kill the service while its inputs are fetched":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.002)
        return job


class Outputs:
    async def save(self, job: Job, outcome: Outcome) -> Outcome:
        await asyncio.sleep(0.002)
        return outcome


def live(life: Life, parent: Connection) -> None:
    asyncio.run(_live(life, parent))


async def _live(life: Life, parent: Connection) -> None:
    settings = settings_below(life.data_dir, database_url=life.database_url)
    store = open_store(settings)
    service = Service(
        Engine(slots=life.slots),
        store=store,
        inputs=Inputs(),
        outputs=Outputs(),
        max_delivery=life.max_delivery,
    )
    service.start()
    parent.send(("up", ""))

    async def tell_when_done(task_id: str) -> None:
        await service.result(task_id)
        parent.send(("done", task_id))

    telling = []
    for one in life.jobs:
        task_id = await service.submit(one)
        parent.send(("accepted", task_id))
        telling.append(asyncio.create_task(tell_when_done(task_id)))
    while not life.drains or await store.find(states=("pending", "running"), limit=1):
        await asyncio.sleep(0.02)
    await asyncio.gather(*telling)
    await service.stop()
    store.database.close()
