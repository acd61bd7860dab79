"""A webui with its page: our tabs in it, hidden ones not, and all of it again after "Reload UI"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.webui.real import Running, data_dir, wait_until_started, webui

pytestmark = pytest.mark.engine

SMALL = {"width": 64, "height": 64, "steps": 1}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = data_dir(tmp_path_factory.mktemp("data"))
    flags = ("--filebrowser", "--enable-nsfw-censor", "--always-hide-tabs", "train", "PNG Info")
    with webui(root, *flags, "--subpath", "pictures", ui=True) as started:
        yield started


def config_of(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/config").json()
    return found


def tabs_of(client: httpx.Client) -> set[str]:
    components = config_of(client)["components"]
    return {c["props"]["label"] for c in components if c["type"] == "tabitem" and c["props"].get("label")}


def test_our_tabs_are_there_and_hidden_ones_are_not(running: Running) -> None:
    with running.client() as client:
        tabs = tabs_of(client)
        assert {"txt2img", "Jobs", "Files", "Settings"} <= tabs
        assert not tabs & {"Train", "PNG Info"}
        # The saved option is its owner's.
        assert "PNG Info" not in client.get("/sdapi/v1/options").json().get("hidden_tabs", [])


def test_a_tab_is_a_frame_with_an_address_relative_to_the_page(running: Running) -> None:
    with running.client() as client:
        html = [c["props"]["value"] for c in config_of(client)["components"] if c["type"] == "html"]
        frames = [one for one in html if isinstance(one, str) and "<iframe" in one]
        assert len(frames) == 2 and all('src="sd-cloud/pages/' in one for one in frames)
        for name in ("jobs.html", "jobs.js", "files.html", "files.js", "service.js", "style.css"):
            answer = client.get(f"/sd-cloud/pages/{name}")
            assert answer.status_code == 200, name
            assert (
                'src="/' not in answer.text
                and 'href="/' not in answer.text
                and "fetch(" not in (answer.text if name != "service.js" else "")
            )
        for name in ("nope.html", "..%2Fpreload.py", "style.txt"):
            assert client.get(f"/sd-cloud/pages/{name}").status_code in (404, 422), name


def test_the_answer_says_which_picture_was_censored(running: Running) -> None:
    """With the real detector, which finds nothing in these."""
    with running.client() as client:
        native = client.post("/sdapi/v1/txt2img", json={"prompt": "x", "n_iter": 2, **SMALL}).json()
        info = json.loads(native["info"])
        assert info["extra_generation_params"]["nsfw_censored"] == [False, False]
        body = {"prompt": "x", "n_iter": 2, "alwayson_scripts": {"save_dir": "checked"}, **SMALL}
        ours = client.post("/sdapi/v1/txt2img", json=body).json()
        assert json.loads(ours["info"])["nsfw_censored"] == [False, False, False]  # the grid is the first
        assert "could not be checked" not in running.said


def test_everything_of_ours_is_there_again_after_reload_ui(running: Running) -> None:
    """And the queue that waited in the first app's service is not lost with it."""
    with running.client() as client:
        before = tabs_of(client)
        first = client.post(
            "/sdapi/v1/txt2img", json={"prompt": "x", "alwayson_scripts": {"save_dir": "a"}, **SMALL}
        )
        assert first.status_code == 200
        told = [task["id"] for task in client.get("/sd-cloud/v1/tasks").json()["tasks"]]
        reload_ui(client)
    for times in (2, 3):
        wait_until_started(running, times)
        with running.client() as client:
            assert tabs_of(client) == before
            body = {"prompt": "x", "alwayson_scripts": {"save_dir": "again", "id_task": "7"}, **SMALL}
            answer = client.post("/sdapi/v1/txt2img", json=body)
            assert answer.status_code == 200 and answer.json()["parameters"]["id_task"] == "7"
            assert json.loads(answer.json()["info"])["nsfw_censored"] == [False]
            assert client.get("/healthz").status_code == 200
            listed = [task["id"] for task in client.get("/sd-cloud/v1/tasks").json()["tasks"]]
            assert set(told) <= set(listed) and len(listed) == len(told) + times - 1
            if times == 2:
                reload_ui(client)
    assert "sd-cloud-api:" not in running.said and "Error executing callback" not in running.said


def reload_ui(client: httpx.Client) -> None:
    """What the page's "Reload UI" does when it is clicked."""
    config = config_of(client)
    [button] = [
        c["id"] for c in config["components"] if c["props"].get("elem_id") == "settings_restart_gradio"
    ]
    [index] = [i for i, d in enumerate(config["dependencies"]) if button in d["targets"]]
    answer = client.post("/run/predict", json={"fn_index": index, "data": [], "session_hash": "reload"})
    assert answer.status_code == 200
