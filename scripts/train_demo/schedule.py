"""What every training stage here shares: seeds, the learning rate, and state that survives a stop."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

THREADS = 2
SEED = 1383


def generator(step: int) -> torch.Generator:
    """The randomness of one step depends on the step alone, so a resumed run repeats it."""
    return torch.Generator().manual_seed(SEED * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def hold_then_fall(step: int, steps: int, peak: float) -> float:
    """Constant but for the last fifth: a run can be prolonged before it without harm."""
    warmup = min(200, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.02, min(1.0, (steps - step) / (0.2 * steps)))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write beside the file and rename, so a stop in the middle loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Threads:
    """Two threads while nobody else computes, one when somebody does.

    A step waits for its slowest thread: at low priority beside another busy process, two threads
    on two cores were measured four times slower than one.
    """

    def __init__(self) -> None:
        self._before = self._times()
        torch.set_num_threads(1)

    @staticmethod
    def _times() -> tuple[float, float]:
        """(CPU seconds of everybody, CPU seconds of this process)."""
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system = (float(field) for field in fields[:3])
        own = os.times()
        return (user + nice + system) / os.sysconf("SC_CLK_TCK"), own.user + own.system

    def adapt(self) -> None:
        """Call now and then, every few seconds."""
        everybody, own = self._times()
        others = (everybody - self._before[0]) - (own - self._before[1])
        busy = others > 0.3 * max(0.5, own - self._before[1])
        self._before = everybody, own
        torch.set_num_threads(1 if busy else THREADS)


class Log:
    """A JSON line per report: what the loss curves are drawn from."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._since = time.monotonic()

    def write(self, **values: float) -> None:
        now = time.monotonic()
        line = {"seconds": round(now - self._since, 2), **values}
        self._since = now
        with self._path.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
