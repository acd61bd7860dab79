from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from sd_cloud import errors
from sd_cloud.engines.base import EngineDied
from sd_cloud.job import Job, Outcome
from sd_cloud.service import Service, housekeeping
from sd_cloud.store.database import in_memory
from sd_cloud.store.memory import MemoryStore
from sd_cloud.store.schema import tasks
from sd_cloud.store.sql import SqlStore
from tests.fakes import PaintEngine, colour


class NoInputs:
    async def resolve(self, job: Job) -> Job:
        if job.payload.get("prompt") == "bad link":
            raise errors.InputUnreachable("nobody answers", field="image_link")
        return job

    def check_paths(self, job: Job) -> None:
        if job.payload.get("prompt") == "bad path":
            raise errors.InputRefused("outside the output roots", field="save_dir")


class NoOutputs:
    async def save(self, job: Job, outcome: Outcome) -> Outcome:
        if job.payload.get("prompt") == "disk full":
            raise errors.SavingFailed("no space left on device")
        return outcome


def make(engine: PaintEngine, **changes: Any) -> Service:
    return Service(engine, store=MemoryStore(), inputs=NoInputs(), outputs=NoOutputs(), **changes)


@pytest.fixture
async def engine() -> PaintEngine:
    return PaintEngine()


@pytest.fixture
async def service(engine: PaintEngine) -> AsyncIterator[Service]:
    service = make(engine, options=lambda: {"sd_model_checkpoint": "first.safetensors"}, queue_limit=20)
    service.start()
    yield service
    await service.stop()


def job(prompt: str = "a cat", **changes: Any) -> Job:
    payload = {"prompt": prompt, "seed": 7, **changes.pop("payload", {})}
    return Job("txt2img", payload, **changes)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def ready(service: Service, count: int) -> None:
    """So many jobs wait for nothing but the engine."""
    waiting = select(func.count()).select_from(tasks).where(tasks.c.state == "pending", tasks.c.ready)
    while await service.store.database.read(lambda c: c.execute(waiting).scalar_one()) < count:
        await asyncio.sleep(0.002)


async def test_a_job_comes_back_with_its_picture(service: Service) -> None:
    asked = job()
    outcome = await service.run(asked)
    [picture] = outcome.pictures
    assert picture.image is not None
    assert picture.image.getpixel((0, 0)) == colour(replace(asked, checkpoint="first.safetensors"), 7)
    assert (await service.task(asked.id)).state == "succeeded"


async def test_the_store_keeps_no_pixels(service: Service) -> None:
    asked = job()
    await service.run(asked)
    kept = (await service.task(asked.id)).outcome
    assert kept is not None and kept.pictures[0].image is None and kept.pictures[0].seed == 7


async def test_each_job_gets_its_own_checkpoint_when_forty_are_interleaved(service: Service) -> None:
    service.queue_limit = 40
    jobs = [job(f"number {i}", checkpoint=(None, "first", "second")[i % 3]) for i in range(40)]
    outcomes = await asyncio.gather(*(service.run(j) for j in jobs))
    for i, (asked, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
        name = ("first", "first", "second")[i % 3] + ".safetensors"
        image = outcome.pictures[0].image
        assert image is not None and image.getpixel((0, 0)) == colour(replace(asked, checkpoint=name), 7)


async def test_an_unknown_checkpoint_is_refused_with_those_there_are(service: Service) -> None:
    with pytest.raises(errors.CheckpointNotFound, match=r"'third'.*first.safetensors, second.safetensors"):
        await service.run(job(checkpoint="third"))


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("fail", errors.EngineFailed),
        ("bad link", errors.InputUnreachable),
        ("bad path", errors.InputRefused),
        ("disk full", errors.SavingFailed),
    ],
)
async def test_a_job_that_fails_says_why_and_the_next_is_served(
    service: Service, prompt: str, kind: type[errors.ServiceError]
) -> None:
    with pytest.raises(kind):
        await service.run(job(prompt))
    assert (await service.run(job())).pictures


async def test_a_full_queue_refuses_and_loses_nothing(service: Service) -> None:
    blocker = job("blocker", payload={"steps": 100_000, "step_seconds": 0.01})
    first = asyncio.create_task(service.run(blocker))
    await until(lambda: service.running)
    others = [asyncio.create_task(service.run(job(f"{i}"))) for i in range(25)]
    await until(lambda: sum(one.done() for one in others) == 5)
    await ready(service, 20)
    await service.interrupt(blocker.id)
    answers = await asyncio.gather(*others, return_exceptions=True)
    refused = [a for a in answers if isinstance(a, errors.QueueFull)]
    served = [a for a in answers if isinstance(a, Outcome)]
    assert (len(refused), len(served)) == (5, 20) and (await first).pictures


async def test_a_waiting_job_is_cancelled_without_touching_the_one_that_runs(
    service: Service, engine: PaintEngine
) -> None:
    running = job("running", payload={"steps": 100_000, "step_seconds": 0.01})
    waiting = job("waiting")
    first = asyncio.create_task(service.run(running))
    await until(lambda: engine.started)
    second = asyncio.create_task(service.run(waiting))
    await ready(service, 1)
    assert await service.cancel(waiting.id)
    with pytest.raises(errors.Cancelled):
        await second
    await service.interrupt(running.id)
    assert (await first).pictures
    assert [j.id for j in engine.started] == [running.id]
    assert not await service.cancel(running.id), "it is over"


async def test_a_running_job_is_cancelled_before_its_next_step(service: Service, engine: PaintEngine) -> None:
    long = job(payload={"steps": 10_000, "step_seconds": 0.01})
    waiter = asyncio.create_task(service.run(long))
    await until(lambda: service.progress(long.id) is not None)
    assert await service.cancel(long.id)
    with pytest.raises(errors.Cancelled):
        await waiter
    assert (await service.task(long.id)).state == "cancelled"


async def test_a_job_cancelled_at_the_moment_it_is_taken_is_cancelled_and_said_to_be(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs by the store's word, and nobody here has it yet; when the answer is given it is over."""
    store, taken, asked = service.store, asyncio.Event(), asyncio.Event()
    claim, ask = store.claim, store.ask_cancel
    one = job(payload={"steps": 10_000, "step_seconds": 0.01})

    async def claimed(**loaded: Any) -> Any:
        task = await claim(**loaded)
        if task is not None:
            taken.set()
            await asked.wait()
        return task

    async def told(task_id: str) -> bool:
        done = await ask(task_id)
        asked.set()
        await until(lambda: waiter.done())
        return done

    monkeypatch.setattr(store, "claim", claimed)
    monkeypatch.setattr(store, "ask_cancel", told)
    waiter = asyncio.create_task(service.run(one))
    await taken.wait()
    assert await service.cancel(one.id)
    with pytest.raises(errors.Cancelled):
        await waiter
    assert (await service.task(one.id)).state == "cancelled"


async def test_a_job_that_begins_while_its_cancellation_looks_at_it_is_cancelled(
    service: Service, engine: PaintEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = job("blocker", payload={"steps": 100_000, "step_seconds": 0.01})
    one = job(payload={"steps": 100_000, "step_seconds": 0.01})
    await service.submit(blocker)
    await until(lambda: engine.started)
    waiter = asyncio.create_task(service.run(one))
    await ready(service, 1)
    get = service.store.get

    async def slowly(task_id: str) -> Any:
        found = await get(task_id)
        await service.interrupt(blocker.id)
        await until(lambda: len(engine.started) == 2)
        return found

    monkeypatch.setattr(service.store, "get", slowly)
    assert await service.cancel(one.id)
    with pytest.raises(errors.Cancelled):
        await waiter


async def test_a_job_whose_pictures_are_being_saved_is_not_cancelled_any_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, go_on = asyncio.Event(), asyncio.Event()

    async def save(asked: Job, outcome: Outcome) -> Outcome:
        saving.set()
        await go_on.wait()
        return outcome

    monkeypatch.setattr(service.outputs, "save", save)
    one = job()
    waiter = asyncio.create_task(service.run(one))
    await saving.wait()
    assert not await service.cancel(one.id)
    go_on.set()
    assert (await waiter).pictures
    assert (await service.task(one.id)).state == "succeeded"


async def test_a_job_that_is_being_recorded_when_news_may_have_been_missed_is_not_taken_for_gone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looked, waited_for = service.store, asyncio.Event(), asyncio.Event()
    add, get = store.add, store.get

    async def meanwhile(*asked: Any, **more: Any) -> Any:
        store.database._tell_all()  # as when the listening connection is opened
        await looked.wait()
        return await add(*asked, **more)

    async def slowly(task_id: str) -> Any:
        found = await get(task_id)
        looked.set()
        await waited_for.wait()
        return found

    monkeypatch.setattr(store, "add", meanwhile)
    monkeypatch.setattr(store, "get", slowly)
    task_id = await service.submit(job())
    waiter = asyncio.create_task(service.result(task_id))
    await asyncio.sleep(0)
    waited_for.set()
    assert (await waiter).pictures


async def test_an_interrupted_job_keeps_what_is_there(service: Service) -> None:
    long = job(payload={"steps": 10_000, "step_seconds": 0.01})
    waiter = asyncio.create_task(service.run(long))
    await until(lambda: service.progress(long.id) is not None)
    assert await service.interrupt()
    outcome = await waiter
    assert outcome.interrupted and outcome.pictures
    assert (await service.task(long.id)).state == "succeeded"


async def test_higher_priority_goes_first_then_the_owner_served_longest_ago_then_age(
    service: Service, engine: PaintEngine
) -> None:
    blocker = job("blocker", payload={"steps": 100_000, "step_seconds": 0.01}, owner="ann")
    waiting = [
        job("ann 1", owner="ann"),
        job("ann 2", owner="ann"),
        job("bob 1", owner="bob"),
        job("eve urgent", owner="eve", priority=5),
        job("bob 2", owner="bob"),
    ]
    first = asyncio.create_task(service.run(blocker))
    await until(lambda: engine.started)
    ids = [await service.submit(j) for j in waiting]
    await ready(service, 5)
    await service.interrupt(blocker.id)
    await asyncio.gather(first, *(service.result(one) for one in ids))
    order = [j.payload["prompt"] for j in engine.started]
    assert order == ["blocker", "eve urgent", "bob 1", "ann 1", "bob 2", "ann 2"]


async def test_jobs_of_one_order_key_never_run_at_once() -> None:
    engine = PaintEngine(slots=3)
    service = make(engine)
    service.start()
    busy: set[str] = set()
    clashes: list[str] = []

    original = engine.run

    async def watched(asked: Job, report: Any) -> Outcome:
        if asked.order_key in busy:
            clashes.append(asked.id)
        busy.add(asked.order_key or asked.id)
        try:
            return await original(asked, report)
        finally:
            busy.discard(asked.order_key or asked.id)

    engine.run = watched  # type: ignore[method-assign]
    jobs = [job(f"{i}", order_key=f"key {i % 2}", payload={"step_seconds": 0.005}) for i in range(12)]
    await asyncio.gather(*(service.run(j) for j in jobs))
    await service.stop()
    assert not clashes and len(engine.started) == 12


async def test_a_job_is_overtaken_for_its_checkpoint_only_a_bounded_number_of_times(
    service: Service, engine: PaintEngine
) -> None:
    blocker = job("blocker", checkpoint="first", payload={"steps": 100_000, "step_seconds": 0.01})
    other = job("other", checkpoint="second")
    same = [job(f"same {i}", checkpoint="first") for i in range(10)]
    first = asyncio.create_task(service.run(blocker))
    await until(lambda: engine.started)
    ids = [await service.submit(j) for j in (other, *same)]
    await ready(service, 11)
    await service.interrupt(blocker.id)
    await asyncio.gather(first, *(service.result(one) for one in ids))
    order = [j.payload["prompt"] for j in engine.started]
    assert order.index("other") == 5, order


async def test_a_job_whose_engine_dies_is_delivered_again_but_not_for_ever(engine: PaintEngine) -> None:
    service = make(engine, max_delivery=2)
    service.start()
    deaths = {"once": 1, "always": 99}

    def before(asked: Job) -> None:
        name = asked.payload["prompt"]
        if deaths.get(name, 0) > 0:
            deaths[name] -= 1
            raise EngineDied("the engine's process was ended by SIGKILL")

    engine.before = before
    assert (await service.run(job("once"))).pictures
    with pytest.raises(errors.EngineFailed, match="delivered 2 times"):
        await service.run(job("always"))
    await service.stop()


async def test_a_job_that_takes_too_long_is_stopped(engine: PaintEngine) -> None:
    service = make(engine, job_seconds=0.05)
    service.start()
    with pytest.raises(errors.TimedOut):
        await service.run(job(payload={"steps": 10_000, "step_seconds": 0.01}))
    service._delivery._job_seconds = 3600.0  # a quick one may take as long on a busy machine
    assert (await service.run(job())).pictures
    await service.stop()


async def test_stopping_lets_the_running_job_finish_and_fails_the_waiting(engine: PaintEngine) -> None:
    service = make(engine)
    service.start()
    longer = job(payload={"steps": 100_000, "step_seconds": 0.01})
    running = asyncio.create_task(service.run(longer))
    await until(lambda: engine.started)
    waiting = asyncio.create_task(service.run(job()))
    await ready(service, 1)
    stopping = asyncio.create_task(service.stop(drain_seconds=60))
    await until(lambda: waiting.done())
    assert not running.done()
    await service.interrupt(longer.id)
    await stopping
    assert (await running).pictures
    with pytest.raises(errors.ShuttingDown):
        await waiting
    with pytest.raises(errors.ShuttingDown):
        await service.submit(job())


async def test_stopping_cancels_what_does_not_finish_in_time(engine: PaintEngine) -> None:
    service = make(engine)
    service.start()
    running = asyncio.create_task(service.run(job(payload={"steps": 10_000, "step_seconds": 0.01})))
    await until(lambda: engine.started)
    await service.stop(drain_seconds=0.02)
    with pytest.raises(errors.Cancelled):
        await running


async def test_stopping_ends_what_runs_beside_even_if_it_loses_a_cancellation(engine: PaintEngine) -> None:
    service = make(engine)
    lost = []

    async def beside() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append("as wait_for does in Python 3.11")

    service.beside.append(beside)
    service.start()
    await asyncio.sleep(0)
    await service.stop()
    assert lost


async def test_what_expired_is_cleaned_in_batches_and_one_whose_pictures_stay_holds_up_no_other(
    engine: PaintEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "CLEANED_AT_ONCE", 2)
    removed: list[str] = []

    class Outputs(NoOutputs):
        async def remove(self, asked: Job, outcome: Outcome) -> None:
            if asked.payload["prompt"] == "in a bucket that is away":
                raise OSError("nobody answers")
            removed.append(asked.payload["prompt"])

    store = SqlStore(in_memory(), retention=lambda dialect: -1.0)
    service = Service(engine, store=store, inputs=NoInputs(), outputs=Outputs())
    names = ["in a bucket that is away", "1", "2", "3", "4"]
    for name in names:
        await service.run(job(name))
    assert await service.clean() == 4 and sorted(removed) == names[1:]
    assert await service.clean() == 0, "it is not looked at again at once"
    await service.stop()


async def test_a_change_of_the_options_does_not_reach_a_waiting_job(engine: PaintEngine) -> None:
    options = {"sd_model_checkpoint": "first.safetensors"}
    service = make(engine, options=lambda: options)
    service.start()
    blocker = asyncio.create_task(service.run(job("blocker", payload={"steps": 5, "step_seconds": 0.01})))
    await until(lambda: engine.started)
    waiting = asyncio.create_task(service.run(job("waiting")))
    await asyncio.sleep(0)
    options["sd_model_checkpoint"] = "second.safetensors"
    await asyncio.gather(blocker, waiting)
    assert engine.started[1].option("sd_model_checkpoint") == "first.safetensors"
    await service.stop()


async def test_the_safety_check_sees_every_picture_before_it_is_saved_and_previews_are_withheld(
    engine: PaintEngine,
) -> None:
    def check(outcome: Outcome) -> Outcome:
        return replace(outcome, info={**outcome.info, "nsfw_censored": [False]})

    service = make(engine, safety=check)
    service.start()
    asked = job(payload={"steps": 3, "step_seconds": 0.02})
    waiter = asyncio.create_task(service.run(asked))
    await until(lambda: service.progress(asked.id) is not None)
    progress = service.progress(asked.id)
    assert progress is not None and progress.preview is None
    assert (await waiter).info["nsfw_censored"] == [False]
    await service.stop()
