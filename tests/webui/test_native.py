"""What the webui answers by itself is what it answered without us, byte for byte."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.world import base64_of, png_of
from tests.webui.real import Running, data_dir, help_of, webui

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 7, "subseed": 7}
POSTS: dict[str, tuple[str, Any]] = {
    "txt2img": ("/sdapi/v1/txt2img", {"prompt": "a cat", **SMALL, "batch_size": 2, "save_images": True}),
    "img2img": ("/sdapi/v1/img2img", {"prompt": "a dog", "init_images": [base64_of(png_of())], **SMALL}),
    "another checkpoint": (
        "/sdapi/v1/txt2img",
        {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": "tiny-b"}, **SMALL},
    ),
    "an unknown sampler": ("/sdapi/v1/txt2img", {"prompt": "a cat", "sampler_name": "Eular", **SMALL}),
    "an unknown script": ("/sdapi/v1/txt2img", {"alwayson_scripts": {"nope": {"args": []}}, **SMALL}),
    "our words in a prompt": ("/sdapi/v1/txt2img", {"prompt": '"save_dir" "uid"', **SMALL}),
    "a wrong type": ("/sdapi/v1/txt2img", {"prompt": "x", "steps": "many"}),
    "no JSON": ("/sdapi/v1/txt2img", None),
    "img2img without a picture": ("/sdapi/v1/img2img", {"prompt": "x"}),
    "extras": ("/sdapi/v1/extra-single-image", {"image": base64_of(png_of()), "upscaler_1": "Lanczos"}),
}
GETS = ("options", "samplers", "schedulers", "sd-models", "sd-vae", "scripts", "upscalers", "progress")


def answers(running: Running) -> dict[str, tuple[int, Any]]:
    found: dict[str, tuple[int, Any]] = {}
    with running.client() as client:
        for name, (path, body) in POSTS.items():
            content = b"{" if body is None else json.dumps(body).encode()
            answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
            found[name] = (answer.status_code, plain(running, answer.content))
        for name in GETS:
            answer = client.get(f"/sdapi/v1/{name}")
            found[name] = (answer.status_code, plain(running, answer.content))
        schema = client.get("/openapi.json").json()
        found["routes"] = (
            200,
            {path: schema["paths"][path] for path in schema["paths"] if path.startswith("/sdapi/")},
        )
    return found


def plain(running: Running, content: bytes) -> str:
    """The answer but for what no two runs share: times of day, and where this one keeps its data."""
    text = content.decode().replace(str(running.data_dir), "DATA")
    text = re.sub(r'"job_timestamp": ?"\d+"', '"job_timestamp": ""', text.replace('\\"', '"'))
    return text


def assert_same(found: dict[str, tuple[int, Any]], wanted: dict[str, tuple[int, Any]]) -> None:
    for name, answer in wanted.items():
        assert found[name] == answer, name


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Any]]:
    with webui(data_dir(tmp_path_factory.mktemp("without"), extension=False)) as running:
        return answers(running)


def test_native_answers_are_the_same_with_and_without_us(
    without: dict[str, tuple[int, Any]], tmp_path: Path
) -> None:
    with webui(data_dir(tmp_path), "--token", "not-for-these") as running:
        # Asked with a token alone: what the webui leaves open stays open.
        with_us = answers(running)
        assert_same(with_us, without)
        # After a failed and an ordinary request of ours everything is still as it was.
        with running.client() as client:
            for scripts in ({"sd_vae": "nope"}, {"sd_model_checkpoint": "tiny-b", "sd_vae": "tiny-vae"}):
                body = {
                    "alwayson_scripts": {"save_dir": "ours", **scripts},
                    "override_settings": {"CLIP_stop_at_last_layers": 2},
                    **SMALL,
                }
                client.post("/sdapi/v1/txt2img", json=body, headers={"Authorization": "not-for-these"})
        assert_same(answers(running), without)


def test_removing_the_folder_leaves_the_webui_as_it_was(
    without: dict[str, tuple[int, Any]], tmp_path: Path
) -> None:
    root = data_dir(tmp_path)
    with webui(root) as running, running.client() as client:
        body = {"alwayson_scripts": {"save_dir": "ours", "sd_model_checkpoint": "tiny-b"}, **SMALL}
        assert client.post("/sdapi/v1/txt2img", json=body).json()["parameters"]["status"] == 0
    shutil.rmtree(root / "extensions" / "sd-cloud-api")
    with webui(root) as running:
        assert_same(answers(running), without)
        with running.client() as client:
            assert client.get("/healthz").status_code == 404


def test_where_ours_fails_the_webui_starts_without_it_and_says_so(
    without: dict[str, tuple[int, Any]], tmp_path: Path
) -> None:
    """A state dir that cannot be one: there is no task store."""
    state_dir = tmp_path / "a file"
    state_dir.touch()
    with webui(data_dir(tmp_path), "--state-dir", str(state_dir)) as running:
        assert "sd-cloud-api: app_started failed; the webui goes on without its API" in running.said
        assert_same(answers(running), without)


def test_our_flags_are_in_the_webuis_help(tmp_path: Path) -> None:
    root = data_dir(tmp_path)
    said = help_of(root)
    for flag in ("--filebrowser", "--enable-nsfw-censor", "--sd-dynamic-cache", "--save-dir-root", "--token"):
        assert said.count(f"\n  {flag}") == 1, flag
    # What a built-in extension declares is still its own.
    assert said.count("\n  --lora-dir") == 1
