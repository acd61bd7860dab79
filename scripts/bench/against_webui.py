"""Seconds per denoising step: the same request on a real webui 1.10.1 and on our service, in turn.

Both are asked over HTTP for a picture of few and one of many steps; the difference of the two
times, by the difference of the steps, is a step's: encoding, decoding and HTTP are not in it. Give
both the same number of threads (``OMP_NUM_THREADS``). Aim: a ratio of at most 0.8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import figures
import httpx

REQUEST = {"prompt": "a red cat", "seed": 1, "subseed": 1, "sampler_name": "Euler", "cfg_scale": 7}


class Side:
    """One of the two services."""

    def __init__(self, url: str, checkpoint: str) -> None:
        self.client = httpx.Client(base_url=f"{url.rstrip('/')}/sdapi/v1", timeout=1200, trust_env=False)
        self.options = {"override_settings": {"sd_model_checkpoint": checkpoint}}

    def seconds(self, steps: int, side: int) -> float:
        request: dict[str, Any] = {**REQUEST, **self.options, "steps": steps, "width": side, "height": side}
        started = time.perf_counter()
        self.client.post("/txt2img", json=request).raise_for_status()
        return time.perf_counter() - started

    def seconds_per_step(self, few: int, many: int, side: int) -> float:
        return (self.seconds(many, side) - self.seconds(few, side)) / (many - few)


@contextmanager
def _ours(given: argparse.Namespace) -> Iterator[str]:
    if given.ours:
        yield given.ours
        return
    import sys

    sys.path.insert(0, str(figures.ROOT))
    from scripts.fidelity.models import prepare

    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), given.golden)
        flags = ("--use-cpu", "all", "--no-half", "--precision", "full")
        with figures.service(Path(folder), *flags) as started:
            yield started.url


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--webui", required=True, help="the address of a running webui")
    arguments.add_argument("--ours", help="of our service; without it one is started with the golden models")
    arguments.add_argument("--golden", type=Path, default=figures.ROOT.parent / "shared" / "golden")
    arguments.add_argument("--checkpoint", default="tiny-a", help="one that both have")
    arguments.add_argument("--size", type=int, default=512, help="sides of the picture, pixels")
    arguments.add_argument("--steps", type=int, nargs=2, default=(2, 12), metavar=("FEW", "MANY"))
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    print(figures.machine())
    with _ours(given) as url:
        sides = {"webui": Side(given.webui, given.checkpoint), "ours": Side(url, given.checkpoint)}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(given.rounds + 1):
            for name, side in sides.items():
                seconds = side.seconds_per_step(*given.steps, given.size)
                if number:  # the first round loads and warms up
                    taken[name].append(seconds)
    print(f"{given.checkpoint}, {given.size}x{given.size}, {given.rounds} rounds in turn")
    for name, each in taken.items():
        print(f"{name:6}{statistics.median(each):9.4f} s/step (median; {min(each):.4f} to {max(each):.4f})")
    ratios = [ours / webui for ours, webui in zip(taken["ours"], taken["webui"], strict=True)]
    print(f"ratio of the medians {statistics.median(taken['ours']) / statistics.median(taken['webui']):.3f}, "
          f"median of the rounds' ratios {statistics.median(ratios):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
