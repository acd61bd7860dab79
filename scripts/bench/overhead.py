"""What the EAS path costs over the native route: same app, same service, an engine that costs nothing.

Requests go through the whole app in this process, native and EAS taking turns. Both answer one
64x64 picture: the native route as base64, the EAS path as a saved file and its link.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import figures
import httpx
from tests.fakes import PaintEngine

from sd_cloud.host.app import build
from sd_cloud.settings import settings_below

REQUESTS = 400
WARM_UP = 40
NATIVE = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}
EAS = {**NATIVE, "alwayson_scripts": {"sd_model_checkpoint": "first", "save_dir": "bench", "id_task": "1"}}


async def measure(data_dir: Path) -> dict[str, list[float]]:
    app = build(settings_below(data_dir, no_auth=True), engine=PaintEngine())
    seconds: dict[str, list[float]] = {"native": [], "EAS": []}
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        for number in range(REQUESTS + WARM_UP):
            for name, body in (("native", NATIVE), ("EAS", EAS)):
                started = time.perf_counter()
                answer = await client.post("/sdapi/v1/txt2img", json=body)
                took = time.perf_counter() - started
                answer.raise_for_status()
                if number >= WARM_UP:
                    seconds[name].append(took)
    return seconds


def main() -> None:
    print(figures.machine())
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(Path(folder)))
    rows = {
        name: [figures.percentile(taken, p) * 1000 for p in (0.5, 0.99)] for name, taken in seconds.items()
    }
    rows["EAS - native"] = [eas - native for eas, native in zip(rows["EAS"], rows["native"], strict=True)]
    print(f"{'ms per request':16}{'p50':>8}{'p99':>8}   ({REQUESTS} requests each)")
    for name, (p50, p99) in rows.items():
        print(f"{name:16}{p50:8.2f}{p99:8.2f}")


if __name__ == "__main__":
    main()
