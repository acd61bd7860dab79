"""The EAS queue: puts per second, and how long a message takes from its put to a watching consumer.

The same HTTP handler in front of SQLite, PostgreSQL (where a server is installed) and a Redis stream
(where redis-server and redis-py are), each in a process of its own, asked in turn over loopback by 1,
8 and 64 producers that each put one message after the other, while one consumer watches. A ratio is
of two figures of one round; of all rounds the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import figures
import httpx
import websockets

PATH = "/api/predict/sd_async/sink"
PRODUCERS = (1, 8, 64)
#: A put as the guide's: a small JSON body and one tag.
FILLING = b'{"prompt": "cute dog", "steps": 20, "alwayson_scripts": {"save_dir": "outputs"}}'
WARM_UP_SECONDS = 0.5


@dataclass
class Figures:
    puts_per_second: float
    p50: float  # seconds
    p99: float


# -- asking ---------------------------------------------------------------------------------------


async def measured(port: int, producers: int, seconds: float) -> Figures:
    """One watching consumer, and producers that put for that long."""
    url = f"ws://127.0.0.1:{port}{PATH}?_watch_=true&_index_=0&_window_=1000&_auto_commit_=true"
    headers = {"Accept": "application/json"}
    async with websockets.connect(url, proxy=None, additional_headers=headers, compression=None) as sink:
        for until in (WARM_UP_SECONDS, seconds):
            started = time.perf_counter()
            putting = [asyncio.create_task(_put(port, until)) for _ in range(producers)]
            watching = asyncio.create_task(_watch(sink, putting))
            count = sum(await asyncio.gather(*putting))
            took = time.perf_counter() - started
            latencies = await watching
    return Figures(count / took, statistics.median(latencies), figures.percentile(latencies, 0.99))


async def _watch(sink: websockets.ClientConnection, putting: Sequence[asyncio.Task[int]]) -> list[float]:
    """Seconds from each put to its arrival, until all that was put has arrived."""
    latencies: list[float] = []
    # Not wait_for, which can lose a frame that arrives as its time runs out (Python 3.11).
    receiving = asyncio.ensure_future(sink.recv())
    while not all(one.done() for one in putting) or len(latencies) < sum(one.result() for one in putting):
        done, _ = await asyncio.wait({receiving}, timeout=0.2)
        if done:
            frame = receiving.result()
            receiving = asyncio.ensure_future(sink.recv())
            sent = base64.b64decode(json.loads(frame)["data"]).partition(b" ")[0]
            latencies.append((time.perf_counter_ns() - int(sent)) / 1e9)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    return latencies


async def _put(port: int, seconds: float) -> int:
    """HTTP by hand: what a full client costs would hide what the service costs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        body = b"%d " % time.perf_counter_ns() + FILLING
        writer.write(
            b"POST %s?task_id=7 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s"
            % (PATH.encode(), len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a put was answered {head.decode()}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        count += 1
    writer.close()
    return count


# -- serving --------------------------------------------------------------------------------------


def serve(data_dir: Path, port: int, database_url: str | None, redis_url: str | None) -> None:
    import uvicorn
    from tests.fakes import PaintEngine

    from sd_cloud.host.app import build
    from sd_cloud.settings import settings_below

    if redis_url:
        import queue_redis

        queue_redis.install(redis_url)

    async def run() -> None:
        app = build(settings_below(data_dir, nowebui=True, database_url=database_url), engine=PaintEngine())
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")).serve()

    asyncio.run(run())


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, __file__, "--serve", str(folder), "--port", str(port), *flags]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def backends(stack: ExitStack, folder: Path) -> Iterator[tuple[str, int]]:
    import queue_redis
    from tests.store import postgres

    def new(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    why_not = queue_redis.why_not()
    if why_not is None:
        url = stack.enter_context(queue_redis.server(new("redis-data"), free_port()))
        yield "Redis", stack.enter_context(started(new("redis"), "--redis-url", url))
    else:
        print(why_not)
    yield "SQLite", stack.enter_context(started(new("sqlite")))
    programs = postgres.binaries()
    if programs is None:
        print(f"PostgreSQL is left out: {postgres.WHERE_FROM}")
        return
    url = stack.enter_context(postgres.running(programs, fsync=True))
    yield "PostgreSQL", stack.enter_context(started(new("postgresql"), "--database-url", url))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=2.0, help="of putting, per figure")
    arguments.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--database-url", help=argparse.SUPPRESS)
    arguments.add_argument("--redis-url", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve:
        serve(given.serve, given.port, given.database_url, given.redis_url)
        return
    print(figures.machine())
    taken: dict[tuple[str, int], list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = dict(backends(stack, Path(folder)))
        for _ in range(given.rounds):
            for producers in PRODUCERS:
                for name, port in ports.items():
                    one = asyncio.run(measured(port, producers, given.seconds))
                    taken.setdefault((name, producers), []).append(one)
    tell(taken, list(ports), given.rounds)


def tell(taken: dict[tuple[str, int], list[Figures]], names: list[str], rounds: int) -> None:
    print(
        f"{'median of ' + str(rounds) + ' rounds':24}{'puts/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'of Redis':>10}"
    )
    for producers in PRODUCERS:
        for name in names:
            each = taken[name, producers]
            puts, p50, p99 = (
                statistics.median(values)
                for values in (
                    [one.puts_per_second for one in each],
                    [one.p50 * 1000 for one in each],
                    [one.p99 * 1000 for one in each],
                )
            )
            ratio = ""
            if "Redis" in names:
                pairs = zip(each, taken["Redis", producers], strict=True)
                ratio = f"{statistics.median(a.puts_per_second / b.puts_per_second for a, b in pairs):10.2f}"
            print(f"{f'{producers} to {name}':24}{puts:9.0f}{p50:9.1f}{p99:9.1f}{ratio}")
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
