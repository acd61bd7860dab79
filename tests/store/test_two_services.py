"""Two services on one store: what one runs, the other tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sd_cloud import errors
from sd_cloud.job import Job, Target
from sd_cloud.service import Service, delivery
from sd_cloud.store.sql import SqlStore
from tests.fakes import PaintEngine
from tests.store.conftest import Open
from tests.test_service import NoInputs, NoOutputs, until

Started = Callable[[PaintEngine], Service]


def job(**payload: object) -> Job:
    return Job("txt2img", {"prompt": "a cat", "seed": 7, **payload}, target=Target("task"))


@pytest.fixture
async def started(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Started]:
    """Services on one store, begun but for their first round of the event loop."""
    monkeypatch.setattr(delivery, "NOTED_SECONDS", 0.02)
    services: list[Service] = []

    def start(engine: PaintEngine) -> Service:
        services.append(Service(engine, store=SqlStore(open_one()), inputs=NoInputs(), outputs=NoOutputs()))
        services[-1].start()
        return services[-1]

    yield start
    for one in services:
        await one.stop()


@pytest.fixture
async def services(started: Started) -> tuple[Service, Service]:
    """One with an engine, one that only accepts and asks."""
    return started(PaintEngine()), started(PaintEngine(slots=0))


async def test_a_task_that_another_process_runs_is_followed_to_its_end(
    services: tuple[Service, Service],
) -> None:
    works, asks = services
    task_id = await works.submit(job(steps=100_000, step_seconds=0.01))
    seen: list[tuple[str, int | None]] = []
    async for task in asks.changes(task_id):
        progress = asks.progress_of(task)
        seen.append((task.state, progress.step if progress else None))
        if progress and progress.step > 3:
            await works.interrupt(task_id)
    steps = [step for state, step in seen if state == "running" and step is not None]
    assert seen[-1] == ("succeeded", None) and steps == sorted(steps) and max(steps) > 3
    assert asks._under_way.get(task_id) is None


async def test_a_task_accepted_here_and_run_there_has_its_result_and_previews_here(
    services: tuple[Service, Service],
) -> None:
    works, asks = services
    task_id = await asks.submit(job(steps=100_000, step_seconds=0.01))
    waiter = asyncio.create_task(asks.result(task_id))
    preview = None
    while preview is None and not waiter.done():
        progress = asks.progress_of(await asks.task(task_id))
        preview = progress.preview if progress else None
        await asyncio.sleep(0.01)
    assert preview is not None and preview.size == (8, 8)
    await works.interrupt(task_id)
    assert (await waiter).pictures[0].seed == 7
    assert works.engine.started and not asks.engine.started  # type: ignore[attr-defined]


async def test_a_task_is_cancelled_from_the_process_that_does_not_run_it(
    services: tuple[Service, Service],
) -> None:
    works, asks = services
    task_id = await works.submit(job(steps=100_000, step_seconds=0.01))
    waiter = asyncio.create_task(asks.result(task_id))
    await until(lambda: works.progress(task_id) is not None)
    assert await asks.cancel(task_id)
    with pytest.raises(errors.Cancelled):
        await waiter
    assert (await asks.task(task_id)).state == "cancelled"


async def test_a_task_cancelled_elsewhere_while_it_is_being_taken_is_cancelled(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, asks = started(PaintEngine()), started(PaintEngine(slots=0))
    claim, cancel = works.store.claim, works._delivery.cancel
    taken, heard = asyncio.Event(), asyncio.Event()

    async def claimed(**loaded: Any) -> Any:
        task = await claim(**loaded)
        if task is not None:
            taken.set()
            await heard.wait()
        return task

    async def cancelled(task_id: str) -> None:
        await cancel(task_id)
        heard.set()

    monkeypatch.setattr(works.store, "claim", claimed)
    monkeypatch.setattr(works._delivery, "cancel", cancelled)
    task_id = await asks.submit(job(steps=100_000, step_seconds=0.01))
    waiter = asyncio.create_task(asks.result(task_id))
    await taken.wait()
    assert await asks.cancel(task_id)
    with pytest.raises(errors.Cancelled):
        await waiter


async def test_who_stops_asking_leaves_nothing_behind(services: tuple[Service, Service]) -> None:
    works, asks = services
    task_id = await works.submit(job(steps=100_000, step_seconds=0.01))
    waiters = [asyncio.create_task(asks.result(task_id)) for _ in range(3)]
    await until(lambda: (live := asks._under_way.get(task_id)) and live.askers == 3)
    for one in waiters:
        one.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert asks._under_way.get(task_id) is None
    await works.cancel(task_id)
