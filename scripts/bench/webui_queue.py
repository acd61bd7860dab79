"""Inside a real webui (SD_WEBUI_DIR): how fast others are answered while 100 EAS requests wait."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import figures
import httpx
from tests.webui.real import NO_WEBUI, WEBUI, Running, data_dir, webui

SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 20}
ROUTES = ("/healthz", "/sdapi/v1/progress", "/sd-cloud/v1/tasks?limit=25", "/sd-cloud/v1/browse?path=models")


@contextmanager
def waiting(running: Running, count: int, body: dict[str, Any]) -> Iterator[None]:
    """``count`` of our requests waiting at once behind one that runs; they are cancelled at the end."""
    with httpx.Client(
        base_url=running.url, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None)
    ) as client:
        threads = [
            threading.Thread(target=client.post, args=("/sdapi/v1/txt2img",), kwargs={"json": body})
            for _ in range(count + 1)
        ]
        for thread in threads:
            thread.start()
        while client.get("/sd-cloud/v1/tasks").json()["waiting"] < count:
            time.sleep(0.2)
        try:
            yield
        finally:
            while any(thread.is_alive() for thread in threads):
                for task in client.get("/sd-cloud/v1/tasks?limit=200").json()["tasks"]:
                    if task["state"] in ("pending", "running"):
                        client.post(f"/sd-cloud/v1/tasks/{task['id']}/cancel")


def latencies_ms(client: httpx.Client, path: str, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        client.get(path).raise_for_status()
        taken.append(1000 * (time.perf_counter() - started))
        time.sleep(0.02)
    return taken


def tell(running: Running, title: str, count: int) -> None:
    with running.client() as client:
        for path in ROUTES:
            taken = latencies_ms(client, path, count)
            p50, p99 = (figures.percentile(taken, share) for share in (0.5, 0.99))
            print(f"{title + ' ' + path:64}{p50:8.1f}{p99:8.1f}{max(taken):8.1f}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=100, help="requests per route")
    given = arguments.parse_args()
    if not WEBUI.is_dir():
        raise SystemExit(NO_WEBUI)
    print(figures.machine())
    with (
        tempfile.TemporaryDirectory() as folder,
        webui(data_dir(Path(folder)), "--filebrowser", ui=True) as running,
    ):
        measure(running, given.count)


def measure(running: Running, count: int) -> None:
    print(f"{'ms per request':64}{'p50':>8}{'p99':>8}{'max':>8}   ({count} each)")
    tell(running, "idle", count)
    slow = {**SMALL, "steps": 150, "alwayson_scripts": {"save_dir": "b"}}
    with waiting(running, 1, slow):
        tell(running, "1 of ours waits", count)
    with waiting(running, 100, slow):
        tell(running, "100 of ours wait", count)


if __name__ == "__main__":
    main()
