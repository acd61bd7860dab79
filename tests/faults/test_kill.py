"""``kill -9`` at random moments: no accepted task and no finished result is lost."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from sd_cloud.settings import settings_below
from sd_cloud.store.base import Task
from sd_cloud.store.sql import open_store
from tests.faults.victim import Life, job, live
from tests.store import postgres

JOBS_PER_LIFE = 6
LONGEST_LIFE_SECONDS = 0.3
LONGEST_UP_SECONDS = 0.9
DRAIN_SECONDS = 100


@dataclass
class Told:
    """What the processes promised."""

    accepted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def hear(self, kind: str, task_id: str) -> None:
        if kind == "accepted":
            self.accepted.add(task_id)
        elif kind == "done":
            self.done.add(task_id)


@pytest.fixture(scope="module")
def nursery() -> ForkServerContext:
    """Processes that begin with everything imported: they are real ones, and quick to make."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.faults.victim", "sd_cloud.store.sql", "alembic.command", "psycopg"]
    )
    return context


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    programs = postgres.binaries()
    if programs is None:
        pytest.skip(postgres.WHERE_FROM)
    with postgres.running(programs) as url:
        yield url


def live_and_die(
    context: ForkServerContext, life: Life, told: Told, dies_after: float | None, *, grown_up: bool = False
) -> int | None:
    """One life; its exit code. ``dies_after``: seconds from its birth to its ``kill -9``, or from when
    it was up (``grown_up``): a busy machine takes long to get there."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(life, there))
    process.start()
    there.close()
    if grown_up and here.poll(DRAIN_SECONDS):
        told.hear(*here.recv())
    if dies_after is not None:
        time.sleep(dies_after)
        process.kill()
    deadline = time.monotonic() + DRAIN_SECONDS
    try:
        while here.poll(max(deadline - time.monotonic(), 0)):
            told.hear(*here.recv())
    except EOFError:
        pass
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"it was not done after {DRAIN_SECONDS} seconds")
    here.close()
    return process.exitcode


async def records(data_dir: Path, url: str | None) -> list[Task]:
    store = open_store(settings_below(data_dir, database_url=url))
    try:
        return await store.find(limit=10_000)
    finally:
        store.database.close()


async def test_fifty_kills_lose_no_accepted_task_and_no_finished_result(
    nursery: ForkServerContext, database_url: str | None, tmp_path: Path
) -> None:
    kills = 50 if database_url is None else 15
    moments = random.Random(20240607)
    seeds = itertools.count()
    told = Told()
    for number in range(kills):
        jobs = tuple(job("a cat", next(seeds)) for _ in range(JOBS_PER_LIFE))
        grown_up = number % 3 > 0
        moment = moments.uniform(0, LONGEST_LIFE_SECONDS if not grown_up else LONGEST_UP_SECONDS)
        life = Life(tmp_path, database_url, jobs)
        code = live_and_die(nursery, life, told, moment, grown_up=grown_up)
        assert code == -signal.SIGKILL
    assert live_and_die(nursery, Life(tmp_path, database_url, (), drains=True), told, None) == 0
    tasks = await records(tmp_path, database_url)
    by_id = {task.id: task for task in tasks}
    assert told.accepted and told.accepted <= by_id.keys()
    assert told.done <= told.accepted
    for task in tasks:
        assert task.state == "succeeded", (task.state, task.error)
        assert task.outcome is not None and task.outcome.pictures[0].seed == task.job.payload["seed"]
    # The kills did hit work under way: something was delivered more than once.
    assert any(task.attempts > 1 for task in tasks)


@pytest.mark.parametrize("max_delivery", [1, 2])
@pytest.mark.parametrize("prompt", ["kill the service", "kill the service while its inputs are fetched"])
async def test_a_task_that_kills_the_service_is_set_aside_and_the_others_are_served(
    nursery: ForkServerContext, tmp_path: Path, prompt: str, max_delivery: int
) -> None:
    told = Told()
    jobs = (job("first", 1), job(prompt, 2), job("last", 3))
    life = Life(tmp_path, None, jobs, max_delivery=max_delivery, slots=1)
    codes = [live_and_die(nursery, life, told, None)]
    while codes[-1] == -signal.SIGKILL and len(codes) < 6:
        codes.append(live_and_die(nursery, replace(life, jobs=(), drains=True), told, None))
    assert codes[-1] == 0 and len(codes) <= max_delivery + 1  # so many deliveries, then it is served
    tasks = await records(tmp_path, None)
    for task in tasks:
        if task.job.payload["prompt"] == prompt:
            assert task.attempts <= max_delivery
            assert task.state == "failed" and "not tried again" in str(task.error)
        elif max_delivery == 1:
            # It may have been under way, too, when the service ended: never again means it as well.
            assert task.state == "succeeded" or "not tried again" in str(task.error)
        else:
            assert task.state == "succeeded"
