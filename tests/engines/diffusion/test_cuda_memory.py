"""The device's memory in the webui's words; the figures are torch's own."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.cuda_memory import cuda_memory  # noqa: E402


def test_a_cuda_device_tells_what_is_free_and_what_torch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("active", "allocated", "reserved", "inactive_split")
    stats = {
        f"{kind}_bytes.all.{which}": 10 * place + (which == "peak")
        for place, kind in enumerate(kinds, 1)
        for which in ("current", "peak")
    }
    stats |= {"num_alloc_retries": 2, "num_ooms": 1}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert cuda_memory(torch.device("cuda", 0)) == {
        "system": {"free": 30, "used": 70, "total": 100},
        "active": {"current": 10, "peak": 11},
        "allocated": {"current": 20, "peak": 21},
        "reserved": {"current": 30, "peak": 31},
        "inactive": {"current": 40, "peak": 41},
        "events": {"retries": 2, "oom": 1},
    }


def test_without_cuda_it_is_unavailable_as_the_webui_says() -> None:
    assert cuda_memory(torch.device("cpu")) == {"error": "unavailable"}
