from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sd_cloud import errors
from sd_cloud.engines.base import EngineDied
from sd_cloud.engines.child import ChildEngine
from sd_cloud.job import Job, Outcome, Progress
from sd_cloud.settings import settings_below
from tests.fakes import MEMORY, scan


def job(prompt: str = "a cat", **payload: object) -> Job:
    return Job("txt2img", {"prompt": prompt, "seed": 7, **payload})


def unheard(progress: Progress) -> None:
    pass


async def running(engine: ChildEngine, **payload: object) -> asyncio.Task[Outcome]:
    """A job that has begun."""
    begun = asyncio.Event()
    task = asyncio.create_task(engine.run(job(**payload), lambda progress: begun.set()))
    await begun.wait()
    return task


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ChildEngine]:
    engine = ChildEngine("tests.fakes:create", settings_below(tmp_path), scan=scan)
    engine.start()
    yield engine
    await engine.stop()


async def test_a_job_runs_in_another_process_and_reports_its_steps(engine: ChildEngine) -> None:
    heard: list[Progress] = []
    outcome = await engine.run(job(steps=3), heard.append)
    assert outcome.pictures[0].image is not None
    assert [p.step for p in heard] == [0, 1, 2] and heard[0].preview is not None
    assert engine.pid not in (None, os.getpid())


async def test_a_failing_job_leaves_the_engine_able_to_serve_the_next(engine: ChildEngine) -> None:
    with pytest.raises(errors.EngineFailed, match="asked to fail"):
        await engine.run(job("fail"), unheard)
    with pytest.raises(errors.OutOfMemory):
        await engine.run(job("memory"), unheard)
    assert (await engine.run(job(), unheard)).pictures


async def test_the_child_tells_of_its_device_also_while_it_works(engine: ChildEngine) -> None:
    assert "has not started" in (await engine.memory())["error"]
    working = asyncio.create_task(engine.run(job(steps=5, step_seconds=0.05), unheard))
    while not engine.ready:
        await asyncio.sleep(0.01)
    assert await asyncio.gather(engine.memory(), engine.memory()) == [MEMORY, MEMORY]
    assert (await working).pictures
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    asked = asyncio.create_task(engine.memory())
    await asyncio.sleep(0.05)
    os.kill(engine.pid, signal.SIGKILL)
    assert "the engine's process" in (await asked)["error"]


async def test_unloading_waits_for_the_running_job_and_is_done_before_the_next(engine: ChildEngine) -> None:
    first = await running(engine, steps=5, step_seconds=0.05)
    await engine.unload()
    assert (await first).info["unloaded"] == 0
    assert (await engine.run(job(), unheard)).info["unloaded"] == 1


async def test_an_engine_that_dies_takes_its_job_along_and_is_started_again(engine: ChildEngine) -> None:
    with pytest.raises(EngineDied, match="exit code 3"):
        await engine.run(job("crash"), unheard)
    assert (await engine.run(job(), unheard)).pictures


async def test_an_engine_that_is_killed_is_started_again(engine: ChildEngine) -> None:
    long = await running(engine, steps=10_000, step_seconds=0.01)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match="SIGKILL"):
        await long
    assert (await engine.run(job(), unheard)).pictures


async def test_an_engine_that_is_restarted_serves_and_is_watched_as_before(engine: ChildEngine) -> None:
    long = await running(engine, steps=10_000, step_seconds=0.01)
    first = engine.pid
    await engine.restart()
    with pytest.raises(EngineDied, match="SIGTERM"):
        await long
    assert (await engine.run(job(), unheard)).pictures and engine.pid != first
    with pytest.raises(EngineDied, match="exit code 3"):
        await engine.run(job("crash"), unheard)
    assert (await engine.run(job(), unheard)).pictures


async def test_a_running_job_is_cancelled_and_interrupted_by_its_id(engine: ChildEngine) -> None:
    started = asyncio.Event()
    long = job(steps=10_000, step_seconds=0.01)
    running = asyncio.create_task(engine.run(long, lambda p: started.set()))
    await started.wait()
    assert not await engine.cancel("another")
    assert await engine.cancel(long.id)
    with pytest.raises(errors.Cancelled):
        await running

    started.clear()
    long = job(steps=10_000, step_seconds=0.01)
    running = asyncio.create_task(engine.run(long, lambda p: started.set()))
    await started.wait()
    assert await engine.interrupt(long.id)
    assert (await running).interrupted


async def test_a_job_can_be_cancelled_while_the_engine_is_still_starting(engine: ChildEngine) -> None:
    early = job(steps=10_000, step_seconds=0.01)
    running = asyncio.create_task(engine.run(early, unheard))
    await asyncio.sleep(0)
    assert not engine.ready and await engine.cancel(early.id)
    with pytest.raises(errors.Cancelled):
        await running


async def test_a_job_cancelled_while_it_is_on_its_way_to_the_engine_does_not_run_there(
    engine: ChildEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_its_way, go_on, send = asyncio.Event(), threading.Event(), engine._send
    loop = asyncio.get_running_loop()

    def slowly(message: tuple[Any, ...]) -> None:
        if message[0] == "run":
            loop.call_soon_threadsafe(on_its_way.set)
            go_on.wait()
        send(message)

    monkeypatch.setattr(engine, "_send", slowly)
    endless = job(steps=1_000_000, step_seconds=0.01)
    cancelled = asyncio.create_task(engine.run(endless, unheard))
    await on_its_way.wait()
    assert await engine.cancel(endless.id)
    go_on.set()
    with pytest.raises(errors.Cancelled):
        await cancelled
    assert (await engine.run(job(), unheard)).pictures


async def test_an_engine_that_does_not_come_up_says_how_it_ended(tmp_path: Path) -> None:
    engine = ChildEngine("tests.no_such_module:create", settings_below(tmp_path), scan=scan)
    engine.start()
    while engine.trouble is None:
        await asyncio.sleep(0.05)
    assert "exit code 1" in engine.trouble and not engine.ready
    await engine.stop()
