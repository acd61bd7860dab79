from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sd_cloud.engines.webui_options import OptionsData, on_top_of


def seen_elsewhere(opts: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What another thread reads, and that it writes to everybody's."""
    found: dict[str, Any] = {}

    def look() -> None:
        found.update({name: opts.data.get(name) for name in names if name in opts.data})
        opts.data["from elsewhere"] = 1

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def test_a_job_reads_and_sets_values_that_nobody_else_sees() -> None:
    opts = SimpleNamespace(data={"checkpoint": "a", "skip": 1})
    with on_top_of(opts, {"checkpoint": "b", "vae": "v"}):
        assert opts.data["checkpoint"] == "b" and "vae" in opts.data and opts.data.get("skip") == 1
        opts.data["skip"] = 2
        assert opts.data["skip"] == 2
        assert seen_elsewhere(opts, ("checkpoint", "vae", "skip")) == {"checkpoint": "a", "skip": 1}
        assert opts.data["from elsewhere"] == 1
    assert dict(opts.data) == {"checkpoint": "a", "skip": 1, "from elsewhere": 1}


def test_a_job_that_fails_leaves_nothing_behind() -> None:
    opts = SimpleNamespace(data={"checkpoint": "a"})
    with pytest.raises(RuntimeError), on_top_of(opts, {"checkpoint": "b"}):
        opts.data["checkpoint"] = "c"
        raise RuntimeError
    assert opts.data["checkpoint"] == "a" and json.loads(json.dumps(opts.data)) == {"checkpoint": "a"}


def test_what_is_saved_meanwhile_is_what_everybody_has() -> None:
    opts = SimpleNamespace(data={"checkpoint": "a"})
    with on_top_of(opts, {"checkpoint": "b"}):
        saved: list[str] = []
        thread = threading.Thread(target=lambda: saved.append(json.dumps(opts.data, indent=4)))
        thread.start()
        thread.join()
        assert json.loads(saved[0]) == {"checkpoint": "a"}


def test_the_options_are_taken_over_once() -> None:
    opts = SimpleNamespace(data={"checkpoint": "a"})
    with on_top_of(opts, {}):
        first = opts.data
    with on_top_of(opts, {}):
        assert opts.data is first and isinstance(first, OptionsData)
