"""A webui behind --api-auth, with a queue: who is let in, who waits, who is served together."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.webui.real import Running, data_dir, webui

pytestmark = pytest.mark.engine

SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 3, "subseed": 3}
SLOW = {"width": 64, "height": 64, "steps": 150}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = data_dir(tmp_path_factory.mktemp("data"))
    flags = ("--filebrowser", "--sd-dynamic-cache", "--min-ram-reserved", "0.5", "--time-log")
    flags += ("--async-service", "pictures", "--queue-payload-kib", "64")
    with webui(root, *flags, api_auth="anna:secret") as started:
        yield started


def eas(client: httpx.Client, body: dict[str, Any], **scripts: str) -> httpx.Response:
    scripts = {"save_dir": "served", **scripts}
    return client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "alwayson_scripts": scripts, **body})


def tasks(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/sd-cloud/v1/tasks?limit=200").json()["tasks"]
    return found


def wait_for(state: str, label: str, client: httpx.Client, count: int = 1) -> list[str]:
    """The ids of the tasks with this label, once ``count`` of them are in that state."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = [
            t["id"] for t in tasks(client) if t["labels"].get("id_task") == label and t["state"] == state
        ]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} tasks {label!r} became {state}: {tasks(client)}")


def test_nobody_gets_past_the_webuis_own_authentication(running: Running) -> None:
    requests: list[tuple[str, str, Any]] = [
        ("POST", "/sdapi/v1/txt2img", {"alwayson_scripts": {"save_dir": "x"}, **SMALL}),
        ("POST", "/sdapi/v1/txt2img", SMALL),
        ("GET", "/sd-cloud/v1/tasks", None),
        ("GET", "/sd-cloud/v1/browse?path=models", None),
        ("PUT", "/sd-cloud/v1/browse/file?path=outputs/a.png", None),
        ("GET", "/sd-cloud/pages/jobs.html", None),
        ("POST", "/sd-cloud/v1/tasks/0/cancel", None),
        ("GET", "/tasks/0/result", None),
    ]
    for auth in (None, ("anna", "wrong"), ("nobody", "secret")):
        with httpx.Client(base_url=running.url, auth=auth, trust_env=False) as client:
            for method, path, body in requests:
                assert client.request(method, path, json=body).status_code == 401, (method, path, auth)
            assert client.get("/healthz").status_code == 200
    with running.client() as client:
        assert eas(client, SMALL).status_code == 200
        assert client.get("/sd-cloud/v1/tasks").status_code == 200


def test_others_are_answered_while_a_hundred_of_ours_wait(running: Running) -> None:
    with ThreadPoolExecutor(101) as pool, running.client() as client:
        first = pool.submit(eas, client, SLOW, id_task="first of a hundred")
        [slow] = wait_for("running", "first of a hundred", client)
        limits = httpx.Limits(max_connections=None)
        options = {"headers": running.headers, "timeout": 300, "trust_env": False, "limits": limits}
        with httpx.Client(base_url=running.url, **options) as many:  # type: ignore[arg-type]
            sent = [pool.submit(eas, many, SMALL, id_task="hundred") for _ in range(100)]
            waiting = wait_for("pending", "hundred", client, 100)
            for path in (
                "/sdapi/v1/progress",
                "/healthz",
                "/sd-cloud/v1/browse?path=models",
                "/sdapi/v1/options",
            ):
                assert client.get(path, timeout=10).status_code == 200
            assert client.get("/sdapi/v1/progress").json()["state"]["job"]
            for one in (*waiting, slow):
                assert client.post(f"/sd-cloud/v1/tasks/{one}/cancel").status_code == 200
            assert {answer.result().status_code for answer in sent} == {409}
        assert first.result().json()["parameters"]["status"] == 7
        assert eas(client, SMALL).status_code == 200


def test_what_a_job_overrides_is_seen_by_nobody_else(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool, running.client() as client:
        before = client.get("/sdapi/v1/options").json()
        body = {
            **SLOW,
            "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "tiny-vae.safetensors"},
        }
        answer = pool.submit(eas, client, body, sd_model_checkpoint="tiny-b", id_task="overriding")
        [slow] = wait_for("running", "overriding", client)
        while not client.get("/sdapi/v1/progress").json()["state"]["sampling_step"]:
            time.sleep(0.05)
        assert client.get("/sdapi/v1/options").json() == before
        # What somebody sets meanwhile stays set.
        client.post("/sdapi/v1/options", json={"n_rows": 3})
        client.post(f"/sd-cloud/v1/tasks/{slow}/cancel")
        assert answer.result().status_code == 409
        assert client.get("/sdapi/v1/options").json() == {**before, "n_rows": 3}
        assert "tiny-b" not in (running.data_dir / "config.json").read_text()
        client.post("/sdapi/v1/options", json={"n_rows": -1})


def test_waiting_jobs_are_grouped_by_checkpoint(running: Running) -> None:
    with ThreadPoolExecutor(13) as pool, running.client() as client:
        slow = pool.submit(eas, client, SLOW, sd_model_checkpoint="tiny-a", id_task="before the groups")
        wait_for("running", "before the groups", client)
        for number in range(12):
            label = f"grouped {number}"
            pool.submit(
                eas, client, SMALL, sd_model_checkpoint=("tiny-a", "tiny-b")[number % 2], id_task=label
            )
            wait_for("pending", label, client)
        assert slow.result().status_code == 200
        for number in range(12):
            wait_for("succeeded", f"grouped {number}", client)
        done = [t for t in tasks(client) if t["labels"].get("id_task", "").startswith("grouped")]
        order = [t["checkpoint"] for t in sorted(done, key=lambda t: t["scheduled"])]
        switches = sum(one != other for one, other in pairwise(order))
        assert len(order) == 12 and switches <= 4, order
        # Fairness: the first for the other checkpoint did not wait for all of them.
        assert "tiny-b.safetensors" in order[:6]


def test_a_second_switch_between_two_checkpoints_does_not_read_the_disk(running: Running) -> None:
    def picture(client: httpx.Client, checkpoint: str) -> str:
        answer = eas(client, SMALL, sd_model_checkpoint=checkpoint).json()
        path = Path(answer["parameters"]["image_url"])
        return hashlib.sha256(path.read_bytes()).hexdigest()

    names = ("tiny-a", "tiny-b")
    with running.client() as client:
        before = [picture(client, name) for name in names]
        files = [running.data_dir / f"models/Stable-diffusion/{name}.safetensors" for name in names]
        whole = [file.read_bytes() for file in files]
        try:
            for file in files:  # other bytes, in a file that looks the same
                made = file.stat()
                with file.open("r+b") as out:
                    out.write(os.urandom(made.st_size))
                os.utime(file, ns=(made.st_atime_ns, made.st_mtime_ns))
            assert [picture(client, name) for name in (*names, *names)] == before * 2
        finally:
            for file, content in zip(files, whole, strict=True):
                file.write_bytes(content)


def test_the_serverless_task_api_works_on_the_webuis_own_packages(running: Running) -> None:
    with running.client() as client:
        body = {"stable_diffusion_model": "tiny-b.safetensors", "prompt": "a cat", **SMALL}
        later = client.post("/txt2img", json=body, headers={"Request-Type": "async"}).json()
        assert later["status"] == "submitted", later
        [task_id] = [later["taskId"]]
        deadline = time.monotonic() + 60
        while client.get(f"/tasks/{task_id}/result").json().get("status") != "succeeded":
            assert time.monotonic() < deadline, client.get(f"/tasks/{task_id}/result").text
            time.sleep(0.1)
        told = client.get(f"/tasks/{task_id}/result").json()
        assert told["images"] == [f"images/anna/{task_id}_1.png"]
        assert (running.data_dir / "outputs" / told["images"][0]).is_file()
        flagged = client.post(
            "/sdapi/v1/txt2img", json={"prompt": "x", **SMALL}, headers={"Task-Flag": "true"}
        )
        assert flagged.status_code == 200 and flagged.headers["taskId"] and flagged.json()["images"]


def test_the_eas_queue_runs_the_webuis_own_routes(running: Running) -> None:
    """Ours as jobs, the webui's others as they are, behind its authentication."""
    queue = "/api/predict/pictures"
    body = {"prompt": "a cat", "alwayson_scripts": {"save_dir": "queued"}, **SMALL}
    with running.client() as client:
        put = client.post(f"{queue}/sdapi/v1/txt2img", params={"task_id": "txt2img_0"}, json=body)
        assert put.status_code == 200, put.text
        request_id = put.headers["X-Eas-Queueservice-Request-Id"]
        [message] = client.get(f"{queue}/sink", params={"_timeout_": "60s", "_auto_delete_": "true"}).json()
        assert message["tags"] == {"task_id": "txt2img_0", "requestId": request_id}
        told = json.loads(base64.b64decode(message["data"]))["parameters"]
        assert told["status"] == 0 and Path(told["image_url"]).is_file()
        picture = base64.b64encode(Path(told["image_url"]).read_bytes()).decode()
        put = client.post(f"{queue}/sdapi/v1/png-info", json={"image": picture})
        assert put.status_code == 200, put.text
        [message] = client.get(f"{queue}/sink", params={"_timeout_": "60s", "_auto_delete_": "true"}).json()
        assert json.loads(base64.b64decode(message["data"]))["info"].startswith("a cat")
        del client.headers["Authorization"]
        assert client.post(f"{queue}/sdapi/v1/txt2img", json=body).status_code == 401


def test_dashscope_works_on_the_webuis_own_packages(running: Running) -> None:
    submit = "/api/v1/services/aigc/text2image/image-synthesis"
    body = {
        "model": "stable-diffusion-v1.5",
        "input": {"prompt": "a running cat", "negative_prompt": "yellow cat"},
        "parameters": {"size": "512*512", "n": 1, "seed": 42, "steps": 1},
    }
    with running.client() as client:
        asked = client.post(submit, json=body, headers={"X-DashScope-Async": "enable"})
        assert asked.status_code == 200, asked.text
        task_id = asked.json()["output"]["task_id"]
        deadline = time.monotonic() + 120
        while (output := client.get(f"/api/v1/tasks/{task_id}").json()["output"])[
            "task_status"
        ] != "SUCCEEDED":
            assert output["task_status"] in ("PENDING", "RUNNING"), output
            assert time.monotonic() < deadline, output
            time.sleep(0.1)
        [result] = output["results"]
        del client.headers["Authorization"]
        assert client.get(result["url"]).content.startswith(b"\x89PNG")
        assert client.post(submit, json=body, headers={"X-DashScope-Async": "enable"}).status_code == 401


def test_a_route_a_status_and_a_job_of_every_request_are_logged(running: Running) -> None:
    with running.client() as client:
        assert eas(client, SMALL).status_code == 200
        del client.headers["Authorization"]
        assert client.get("/sd-cloud/v1/browse").status_code == 401
        client.get("/healthz")  # by its answer the line before it is written
    assert re.search(r"^POST /sdapi/v1/txt2img 200 [\d.]+ s job=[0-9a-f]{32}$", running.said, re.MULTILINE)
    assert re.search(r"^GET /sd-cloud/v1/browse 401 [\d.]+ s job=-$", running.said, re.MULTILINE)
