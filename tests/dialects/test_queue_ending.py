"""What ends in the queue at the very moment something arrives: nothing is lost, and what is to stop stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sd_cloud.dialects.queue_results import Results
from sd_cloud.store.messages import MessageStore
from sd_cloud.store.queues import Message
from tests.dialects.sdapi_world import native

SINK = "/api/predict/sd_async/sink"

#: How many rounds of the event loop after the arrival: in each, others of what waits have been woken.
ROUNDS = (0, 1, 2, 3)


class Heard:
    """Listens in place of a database: what is said is said by the test."""

    def __init__(self) -> None:
        self.tell: Callable[..., Any] | None = None

    def listen(self, topic: object, hear: Callable[..., Any]) -> Callable[[], None]:
        self.tell = hear
        return lambda: None


async def after(rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


async def is_waiting(heard: Heard, looked: asyncio.Event) -> Callable[..., Any]:
    """Listening, and done with the first look."""
    await looked.wait()
    await after(10)
    assert heard.tell is not None
    return heard.tell


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_the_results_stop_when_the_service_does_also_as_one_arrives(rounds: int) -> None:
    looked = asyncio.Event()

    async def nothing(*_: object) -> tuple[()]:
        looked.set()
        return ()

    heard = Heard()
    store = SimpleNamespace(database=heard, get=lambda task_id: asyncio.sleep(0, None))
    seam: Any = SimpleNamespace(
        service=SimpleNamespace(store=store), settings=SimpleNamespace(async_service="sd_async")
    )
    messages: Any = SimpleNamespace(unfinished=nothing)
    running = asyncio.create_task(Results(seam, messages, SimpleNamespace(forget_dead=nothing)).run())  # type: ignore[arg-type]
    tell = await is_waiting(heard, looked)
    tell("a task")
    await after(rounds)
    running.cancel()
    await asyncio.wait({running}, timeout=5)
    assert running.cancelled()


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_a_reader_who_hangs_up_as_a_message_arrives_has_taken_nothing(
    rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, looked = Heard(), asyncio.Event()
    read = MessageStore.read

    async def seen(*asked: Any, **more: Any) -> list[Message]:
        found = await read(*asked, **more)
        looked.set()
        return found

    async with native(tmp_path) as world:
        monkeypatch.setattr(MessageStore, "listen", lambda store, queue, hear: heard.listen(queue, hear))
        monkeypatch.setattr(MessageStore, "read", seen)
        waits = {"_timeout_": "20s", "_auto_delete_": "true"}
        reading = asyncio.create_task(world.client.get(SINK, params=waits))
        tell = await is_waiting(heard, looked)
        assert (await world.client.post(SINK, content=b"kept")).status_code == 200
        tell()
        await after(rounds)
        reading.cancel()
        await asyncio.wait({reading}, timeout=30)
        assert reading.cancelled()
        left = await world.client.get(SINK, params={"_raw_": "true"})
        assert left.content == b"kept"
