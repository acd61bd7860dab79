"""Server start time, resident memory, and how fast small routes answer while a picture is made."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import figures
import httpx
import psutil

ROUTES = ("/healthz", "/sdapi/v1/progress", "/sdapi/v1/progress?skip_current_image=true")
REQUEST = {"prompt": "a cat", "steps": 150, "width": 512, "height": 512, "sampler_name": "Euler"}


@contextmanager
def drawing(service: figures.Service) -> Iterator[threading.Event]:
    """One picture after the other until the block ends; the event is set once the first runs."""
    over, runs = threading.Event(), threading.Event()

    def draw() -> None:
        with service.client() as client:
            while not over.is_set():
                client.post("/sdapi/v1/txt2img", json=REQUEST)

    drawer = threading.Thread(target=draw)
    drawer.start()
    with service.client() as client:
        while client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] < 1:
            time.sleep(0.05)
        runs.set()
        yield runs
        over.set()
        client.post("/sdapi/v1/interrupt").raise_for_status()
    drawer.join()


def latencies(client: httpx.Client, path: str, count: int, pause_seconds: float) -> list[float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        client.get(path).raise_for_status()
        taken.append(time.perf_counter() - started)
        time.sleep(pause_seconds)
    return taken


def memory_mib(pid: int) -> dict[str, float]:
    """Proportional set sizes: memory that two processes share counts half for each."""
    parent = psutil.Process(pid)
    children = parent.children(recursive=True)
    mib = 1024**2
    return {
        "API process": parent.memory_full_info().pss / mib,
        "engine and the rest": sum(child.memory_full_info().pss for child in children) / mib,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data-dir", type=Path, help="with a checkpoint; without it a tiny random one")
    arguments.add_argument("--count", type=int, default=300, help="requests per route")
    given = arguments.parse_args()
    print(figures.machine())
    with tempfile.TemporaryDirectory() as folder:
        data_dir = figures.tiny_data_dir(given.data_dir or Path(folder))
        for name in ("first start", "second start"):
            with figures.service(data_dir) as service:
                opened, ready = service.open_seconds, service.start_seconds
                print(f"{name:24}{opened:8.2f} s to /healthz,{ready:8.2f} s to /readyz")
        with figures.service(data_dir) as service, service.client() as client:
            for name, mib in memory_mib(service.process.pid).items():
                print(f"{name:24}{mib:8.0f} MiB, idle")
            client.post("/sdapi/v1/txt2img", json={**REQUEST, "steps": 2}).raise_for_status()
            for name, mib in memory_mib(service.process.pid).items():
                print(f"{name:24}{mib:8.0f} MiB, one checkpoint loaded")
            print(f"{'ms per request':44}{'p50':>8}{'p99':>8}{'max':>8}   ({given.count} each)")
            with drawing(service):
                for path in ROUTES:
                    taken = [1000 * one for one in latencies(client, path, given.count, 0.02)]
                    p50, p99 = (figures.percentile(taken, share) for share in (0.5, 0.99))
                    print(f"{path:44}{p50:8.1f}{p99:8.1f}{max(taken):8.1f}")


if __name__ == "__main__":
    main()
