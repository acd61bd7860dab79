from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sd_cloud.engines.webui_request import check_names
from sd_cloud.engines.webui_scripts import asked_scripts_run
from sd_cloud.errors import BadRequest, CheckpointNotFound, EngineFailed

RUNNER = SimpleNamespace(
    alwayson_scripts=[
        SimpleNamespace(filename="/ext/cn/controlnet.py", title=lambda: "ControlNet"),
        SimpleNamespace(filename="/ext/other/other.py", title=lambda: "Other"),
    ]
)
ASKING = {"alwayson_scripts": {"controlnet": {"args": []}}}


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of the webui's modules as is asked for: what it reported, whether it was interrupted."""
    modules: Any = ModuleType("modules")
    modules.reported = []
    modules.errors = SimpleNamespace(
        report=lambda message, *, exc_info=False: modules.reported.append(message)
    )
    modules.interrupted = []
    modules.shared = SimpleNamespace(
        state=SimpleNamespace(interrupt=lambda: modules.interrupted.append(True))
    )
    modules.sd_samplers = SimpleNamespace(all_samplers_map={}, all_samplers=[])
    modules.sd_schedulers = SimpleNamespace(schedulers_map={}, schedulers=[])
    monkeypatch.setitem(sys.modules, "modules", modules)
    return modules


def script_fails(webui: Any, file: str, failure: Exception) -> None:
    """As the webui's ScriptRunner does."""
    try:
        raise failure
    except Exception:
        webui.errors.report(f"Error running process: {file}", exc_info=True)


@pytest.mark.parametrize(
    ("failure", "kind"), [(RuntimeError("no model"), EngineFailed), (ValueError("bad\nunit"), BadRequest)]
)
def test_a_script_that_the_request_asks_for_and_that_fails_fails_the_job(
    webui: Any, failure: Exception, kind: type[Exception]
) -> None:
    before = webui.errors.report
    with pytest.raises(kind, match=r"no model|bad unit") as raised, asked_scripts_run(RUNNER, ASKING):
        script_fails(webui, "/ext/cn/controlnet.py", failure)
    assert raised.value.field == "alwayson_scripts.controlnet"  # type: ignore[attr-defined]
    assert webui.interrupted == [True] and len(webui.reported) == 1 and webui.errors.report is before


def test_a_script_that_the_request_does_not_name_may_fail_as_it_always_could(webui: Any) -> None:
    with asked_scripts_run(RUNNER, ASKING):
        script_fails(webui, "/ext/other/other.py", RuntimeError("x"))
    with asked_scripts_run(RUNNER, {}):
        script_fails(webui, "/ext/cn/controlnet.py", RuntimeError("x"))
    assert webui.interrupted == [] and len(webui.reported) == 2


def test_a_failure_in_another_thread_is_not_this_jobs(webui: Any) -> None:
    with asked_scripts_run(RUNNER, ASKING):
        thread = threading.Thread(
            target=script_fails, args=(webui, "/ext/cn/controlnet.py", RuntimeError("x"))
        )
        thread.start()
        thread.join()
    assert webui.interrupted == []


def test_an_unknown_controlnet_model_is_refused_by_name_after_another_look(
    webui: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension: Any = ModuleType("scripts.global_state")
    extension.cn_models = {"None": None, "canny [1234]": "/m/canny.safetensors"}
    extension.cn_models_names = {"canny": "canny [1234]"}
    extension.update_cn_models = lambda: extension.cn_models_names.setdefault("late", "late [5678]")
    monkeypatch.setitem(sys.modules, "scripts.global_state", extension)

    def check(**unit: Any) -> None:
        check_names({"alwayson_scripts": {"ControlNet": {"args": [True, unit]}}})

    for name in ("canny [1234]", "Canny", "ann", "late", "None"):
        check(model=name)
    check(model="nope", enabled=False)
    with pytest.raises(CheckpointNotFound, match=r"'nope'; there are: canny \[1234\]") as raised:
        check(model="nope")
    assert raised.value.field == "alwayson_scripts.ControlNet.args[1].model"
