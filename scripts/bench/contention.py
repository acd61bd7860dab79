"""What another busy process costs the engine, and what each remedy for it costs on an idle machine.

Each way of running is a process of its own, as the engine's is. In it, steps are timed in turn alone
and beside a process that keeps one core busy; the ratio of the two medians is what the neighbour costs.
The first way is measured again at the end: its second line says how far the figures can be trusted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import figures

if TYPE_CHECKING:
    from sd_cloud.engines.diffusion.threads import Threads

STEPS = 11
#: For how long the neighbour has been busy, or gone, before steps are timed.
SETTLING_SECONDS = 1.2


@dataclass(frozen=True)
class Way:
    """``threads`` 0 is one for each core, ``adapts`` asks the engine's own rule before each round."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    nice: int = 5
    adapts: bool = False


WAYS = (
    Way("as it comes, nice 5"),
    Way("as it comes, nice 0", nice=0),
    *(Way(f"GOMP_SPINCOUNT={count}", {"GOMP_SPINCOUNT": str(count)}) for count in (100, 1000, 3000, 10000)),
    Way("OMP_WAIT_POLICY=PASSIVE", {"OMP_WAIT_POLICY": "PASSIVE"}),
    Way("one thread", threads=1),
    Way("threads by the load", adapts=True),
)


# --- in the process that is measured --------------------------------------------------------------


def measured(what: str, size: int, way: Way) -> None:
    """Time steps whenever a line comes in, and say the seconds per step."""
    os.nice(way.nice)
    import torch

    from sd_cloud.engines.diffusion import threads

    if way.threads:
        torch.set_num_threads(way.threads)
    rule = threads.Threads().watch() if way.adapts else None
    with tempfile.TemporaryDirectory() as folder:
        take = _full_width(size, rule) if what == "full" else _engine(Path(what), Path(folder), size, rule)
        take()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps(take()), flush=True)


def _engine(checkpoint: Path, folder: Path, size: int, rule: Threads | None) -> Callable[[], float]:
    import steps

    place = folder / "models" / "Stable-diffusion"
    place.mkdir(parents=True)
    for file in (checkpoint, checkpoint.with_suffix(".yaml")):
        (place / file.name).symlink_to(file.resolve())
    ours = steps.Ours(checkpoint, folder, half=False)
    ours.worker.threads = rule
    return lambda: ours.seconds_per_step(STEPS, size)


def _full_width(size: int, rule: Threads | None) -> Callable[[], float]:
    """The U-Net of SD 1 (860 million weights, random) on both halves of the guidance."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    unet = unet.to_empty(device="cpu").eval()
    for parameter in unet.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    latents, context = torch.randn(2, 4, size // 8, size // 8), torch.randn(2, 77, 768)

    @torch.no_grad()
    def take() -> float:
        if rule is not None:
            rule.fit()
        started = time.perf_counter()
        unet(latents, torch.tensor(500), context)
        return time.perf_counter() - started

    return take


# --- in the process that asks -----------------------------------------------------------------------


@contextmanager
def running(what: str, size: int, way: Way) -> Iterator[Callable[[], float]]:
    command = [sys.executable, __file__, "--way", way.name, "--checkpoint", what, "--size", str(size)]
    pipe = subprocess.PIPE
    environment = {**os.environ, **way.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert child.stdin is not None and child.stdout is not None
    asked, said = child.stdin, child.stdout
    if said.readline().strip() != "ready":
        raise SystemExit(f"{way.name}: the process did not start")

    def take() -> float:
        asked.write("\n")
        asked.flush()
        return float(json.loads(said.readline()))

    try:
        yield take
    finally:
        asked.close()
        child.wait(60)


@contextmanager
def busy_core() -> Iterator[None]:
    neighbour = multiprocessing.get_context("fork").Process(target=_spin, args=(os.getpid(),), daemon=True)
    neighbour.start()
    time.sleep(SETTLING_SECONDS)
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.join()
        time.sleep(SETTLING_SECONDS)


def _spin(parent: int) -> None:
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--checkpoint", default="", help="an SD 1 file with its yaml, or `full`")
    arguments.add_argument("--size", type=int, default=64, help="sides of the picture, pixels")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="*", default=[], help="parts of the names of ways")
    arguments.add_argument("--way", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    checkpoint = given.checkpoint or str(figures.ROOT / "demo/models/Stable-diffusion/emoji.safetensors")
    if given.way:
        measured(checkpoint, given.size, next(way for way in WAYS if way.name == given.way))
        return
    print(figures.machine())
    print(f"{Path(checkpoint).name}, {given.size}x{given.size}, medians of {given.rounds} rounds in turn")
    print(f"{'':28}{'alone':>12}{'beside one busy':>18}{'ratio':>8}{'alone / first':>16}")
    ways = [way for way in WAYS if not given.only or any(part in way.name for part in given.only)]
    first = 0.0
    for way in (*ways, ways[0]):
        alone, beside = [], []
        with running(checkpoint, given.size, way) as take:
            for _ in range(given.rounds):
                alone.append(take())
                with busy_core():
                    beside.append(take())
        here, there = statistics.median(alone), statistics.median(beside)
        first = first or here
        print(
            f"{way.name:28}{here:10.4f} s{there:16.4f} s{there / here:8.1f}{here / first:16.2f}", flush=True
        )


if __name__ == "__main__":
    main()
