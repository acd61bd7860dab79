"""How many threads the engine computes with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sd_cloud.engines.diffusion.threads import Threads, threads_for
from sd_cloud.job import Progress


@pytest.mark.parametrize(
    ("cores", "by_others", "threads"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 0.5, 1), (2, 1.0, 1), (2, 2.0, 1), (8, 0.1, 8), (8, 3.4, 4), (8, 9.0, 1)],
)
def test_a_thread_for_each_core_that_nobody_else_keeps_busy(
    cores: int, by_others: float, threads: int
) -> None:
    assert threads_for(cores, by_others, most=cores) == threads


def test_never_more_threads_than_torch_was_given() -> None:
    assert threads_for(16, 0.0, most=4) == 4


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_jobs_steps_take_over_what_was_seen(torch_threads: None) -> None:
    threads, heard = Threads(), []
    threads._wanted = 3
    threads.fitting(heard.append)(Progress(step=1))
    assert torch.get_num_threads() == 3
    assert [one.step for one in heard] == [1]
