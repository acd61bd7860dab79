"""The EAS queue's store on a Redis stream, for the benchmark alone: XADD, XREADGROUP, XACK, XDEL.

It stands in for `MessageStore` and `Pushing` below the same HTTP handler, and does only what putting
and watching need: no priorities, no search, no owners to count, no hand-over.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd_cloud.dialects import queue
from sd_cloud.store.queues import Consumer, Message, Queue

SEQUENCE_BITS = 20  # of an index; the rest is the id's milliseconds
FIRST = "0-0"


def why_not() -> str | None:
    if shutil.which("redis-server") is None:
        return "Redis is left out: no redis-server here (Debian's package redis-server)"
    try:
        import redis  # noqa: F401
    except ImportError:
        return "Redis is left out: no redis-py here (pip install redis)"
    return None


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """Kept as we keep: each put is written to the kernel at once and to the disk within a second."""
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "",
               "--appendonly", "yes", "--appendfsync", "everysec"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        import redis

        client = redis.Redis(port=port)
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def install(url: str) -> None:
    """From now on the queue's handler puts into Redis."""
    stream = _Stream(url)
    names: Any = queue
    names.MessageStore = lambda database: stream
    names.Pushing = lambda database: stream
    names.Results = _NoResults


class _NoResults:
    def __init__(self, *given: Any) -> None: ...

    async def run(self) -> None: ...


class _Stream:
    def __init__(self, url: str) -> None:
        import redis.asyncio

        self._redis = redis.asyncio.from_url(url)
        self._listening: dict[str, list[Callable[[], None]]] = {}

    async def put(
        self, queue: Queue, data: bytes, tags: Mapping[str, str], *, request_id: str, priority: int = 0
    ) -> int:
        fields: Any = {"data": data, "tags": json.dumps(dict(tags)), "priority": priority}
        index = _index(await self._redis.xadd(_key(queue), fields))
        for heard in self._listening.get(_key(queue), ()):
            heard()
        return index

    def listen(self, queue: Queue, heard: Callable[[], None]) -> Callable[[], None]:
        listening = self._listening.setdefault(_key(queue), [])
        listening.append(heard)
        return lambda: listening.remove(heard)

    async def arrive(self, consumer: Consumer) -> None:
        import redis

        try:
            await self._redis.xgroup_create(_key(consumer.queue), consumer.group, FIRST, mkstream=True)
        except redis.ResponseError:
            pass  # the group is there

    async def leave(self, consumer: Consumer) -> None: ...

    async def next_for(self, consumer: Consumer, *, refused: Iterable[int] = ()) -> list[Message]:
        key = _key(consumer.queue)
        found: Any = await self._redis.xreadgroup(
            consumer.group, consumer.uid, {key: ">"}, count=consumer.window
        )
        entries = (
            (found.get(key.encode()) or [[]])[0] if isinstance(found, dict) else found[0][1] if found else []
        )
        return [Message(_index(name), json.loads(each[b"tags"]), each[b"data"]) for name, each in entries]

    async def commit(self, queue: Queue, group: str, indexes: Sequence[int]) -> None:
        names = [f"{one >> SEQUENCE_BITS}-{one & (1 << SEQUENCE_BITS) - 1}" for one in indexes]
        async with self._redis.pipeline(transaction=True) as both:
            both.xack(_key(queue), group, *names)
            both.xdel(_key(queue), *names)
            await both.execute()

    async def ended(self, queue: Queue) -> tuple[bool, bool]:
        return False, False


def _key(queue: Queue) -> str:
    return f"{queue.name}:{queue.owner}"


def _index(name: bytes) -> int:
    milliseconds, _, sequence = name.partition(b"-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)
