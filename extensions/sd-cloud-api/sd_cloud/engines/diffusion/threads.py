"""How many threads the engine computes with: one for each core that nobody else keeps busy.

OpenMP's threads (torch's CPU build brings GCC's) wait for each other after every operation, and they wait
spinning. Where one of them has to share its core with another process, all of them wait until it has
its turn again, thousands of times a second. `scripts/bench/contention.py` has figures.
"""

from __future__ import annotations

import os
import threading
import time

import psutil
import torch

from sd_cloud.engines.base import Report
from sd_cloud.job import Progress

SAMPLE_SECONDS = 0.5
#: A core counts as taken when others keep it busy for this share of the time or more.
TAKEN_SHARE = 0.3


class Threads:
    """Watches what other processes take of the cores that this one may run on."""

    def __init__(self) -> None:
        self._most = torch.get_num_threads()
        self._wanted = self._most
        self._cores = sorted(os.sched_getaffinity(0))

    def watch(self) -> Threads:
        """Begin to look at the cores, now and for good."""
        threading.Thread(target=self._watch, name="watch the cores", daemon=True).start()
        return self

    def fit(self) -> None:
        """Have torch compute with as many threads as there are free cores; on the thread that computes."""
        if self._wanted != torch.get_num_threads():
            torch.set_num_threads(self._wanted)

    def fitting(self, report: Report) -> Report:
        """A report of progress, which a job makes at each step, that looks at the cores as well."""

        def heard(progress: Progress) -> None:
            self.fit()
            report(progress)

        return heard

    def _watch(self) -> None:
        before = self._seconds()
        while True:
            time.sleep(SAMPLE_SECONDS)
            now = self._seconds()
            passed, busy, own = (new - old for new, old in zip(now, before, strict=True))
            before = now
            self._wanted = threads_for(len(self._cores), (busy - own) / passed, self._most)

    def _seconds(self) -> tuple[float, float, float]:
        """Of the clock, of all work on our cores, and of our own."""
        every = psutil.cpu_times(percpu=True)
        # A container may list its own cores only, under other numbers.
        ours = [every[number] for number in self._cores] if self._cores[-1] < len(every) else every
        busy = sum(
            core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in ours
        )
        own = psutil.Process().cpu_times()
        return time.monotonic(), busy, own.user + own.system


def threads_for(cores: int, by_others: float, most: int) -> int:
    """``by_others``: how many cores' worth of work other processes do."""
    taken = int(by_others + 1 - TAKEN_SHARE)
    return max(1, min(most, cores - taken))
