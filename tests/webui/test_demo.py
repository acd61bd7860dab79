"""The demo's checkpoint is a plain SD 1.x one: a real webui draws the same picture from it as we do."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.e2e.serving import standalone
from tests.webui.real import ROOT, webui

pytestmark = pytest.mark.engine

MODELS = ROOT / "demo" / "models"
INSTALLER = ROOT / "scripts" / "launch" / "demo_for_webui.py"
SAME_PICTURE = 60  # dB
CLIENT: dict[str, Any] = {"timeout": 300, "trust_env": False}
AS_TRAINED = {"width": 64, "height": 64, "steps": 20, "cfg_scale": 3, "sampler_name": "Euler", "seed": 3}
ASKED: dict[str, dict[str, Any]] = {
    "emoji": {"prompt": "a red apple"},
    "ink": {"prompt": "a house", "override_settings": {"sd_model_checkpoint": "ink.safetensors"}},
    "LoRA": {"prompt": "a rocket <lora:cyanotype:1>"},
}


def pictures(client: httpx.Client) -> dict[str, np.ndarray]:
    drawn = {}
    for name, body in ASKED.items():
        answer = client.post("/sdapi/v1/txt2img", json={**AS_TRAINED, **body})
        answer.raise_for_status()
        with Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))) as image:
            drawn[name] = np.asarray(image.convert("RGB"), dtype=float)
    return drawn


def decibels(made: np.ndarray, wanted: np.ndarray) -> float:
    error = float(((made - wanted) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def test_the_webui_draws_the_same_pictures_from_the_demos_models(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "webui", tmp_path / "standalone"
    (theirs / "models").mkdir(parents=True)
    ours.mkdir()
    subprocess.run([sys.executable, str(INSTALLER), str(theirs)], check=True)
    (theirs / "config.json").write_text('{"sd_model_checkpoint": "emoji.safetensors"}')
    with webui(theirs) as running, running.client() as client:
        wanted = pictures(client)
    folders = ("--ckpt-dir", str(MODELS / "Stable-diffusion"), "--lora-dir", str(MODELS / "Lora"))
    with standalone(ours, *folders, "--no-auth") as url, httpx.Client(**CLIENT, base_url=url) as client:
        made = pictures(client)
    for name in ASKED:
        assert decibels(made[name], wanted[name]) >= SAME_PICTURE, name
    assert decibels(made["emoji"], made["ink"]) < 30, "the pictures differ among themselves"
