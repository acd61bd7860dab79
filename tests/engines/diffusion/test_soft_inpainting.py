"""Soft inpainting: what a request may say, how latents are mixed, and what lies over the result."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.soft_inpainting import (
    SoftInpainting,
    SoftMask,
    mixed,
    soft_inpainting_of,
    windowed_mean,
)
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import settings_below

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")


def asked(args: Any, mask: str | None = "…") -> dict[str, Any]:
    return {"mask": mask, "alwayson_scripts": {"Soft Inpainting": {"args": args}}}


def test_it_is_on_where_a_request_with_a_mask_says_so() -> None:
    assert soft_inpainting_of({"mask": "…"}) is None
    assert soft_inpainting_of(asked([False, 2])) is None
    assert soft_inpainting_of(asked([True], mask=None)) is None
    assert soft_inpainting_of(asked([True])) == SoftInpainting(1, 0.5, 4, 0, 0.5, 2)
    assert soft_inpainting_of(asked([True, 2, 3])) == SoftInpainting(2, 3)


@pytest.mark.parametrize(
    ("args", "field", "fact"),
    [
        ([True, "much"], r"args\[1\]", "schedule bias: 'much' is no number from 0 to 8"),
        ([True, 1, 1, 0], r"args\[3\]", "transition contrast boost: 0 is no number from 1 to 32"),
        ([True, *[1] * 7], "args", "expected a list of enabled, schedule bias"),
    ],
)
def test_wrong_numbers_are_named(args: list[Any], field: str, fact: str) -> None:
    with pytest.raises(BadRequest, match=rf"^alwayson_scripts\.soft inpainting\.{field}: ") as caught:
        soft_inpainting_of(asked(args))
    assert fact in str(caught.value)


def test_a_mixed_latent_keeps_the_length_of_its_vectors() -> None:
    old, new = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    share = torch.full((4, 3, 5), 0.5)
    made = mixed(old, new, share, 1.0)
    wanted = (old.norm(dim=1) + new.norm(dim=1)) / 2
    assert torch.allclose(made.norm(dim=1), wanted, atol=1e-3)
    assert torch.allclose(mixed(old, new, torch.ones(4, 3, 5), 4.0), new, atol=1e-4)


def test_less_noise_means_less_of_the_old_latent_and_the_end_keeps_the_new_one() -> None:
    old, new = torch.zeros(1, 4, 2, 2) + 1e-3, torch.ones(1, 4, 2, 2)
    grey = torch.full((4, 2, 2), 0.5)
    mask = SoftMask(1 - grey, grey, old, SoftInpainting(contrast_boost=1))
    much, little = mask.blend(new, torch.tensor([10.0])), mask.blend(new, torch.tensor([0.1]))
    assert much.mean() < 0.1 and little.mean() > 0.9
    assert mask.blend(new) is new


def test_a_part_of_the_neighbours_is_averaged() -> None:
    plane = np.zeros((9, 9), np.float32)
    plane[4, 4] = 1
    assert windowed_mean(plane, 0.9, 1.0)[4, 4] > 0.4
    assert (windowed_mean(plane, 0.25, 0.75) == 0).all()
    even = np.full((6, 4), 0.3, np.float32)
    assert np.allclose(windowed_mean(even, 0.9, 1.0), 0.3)


@needs_golden
def test_what_is_far_from_the_mask_stays_and_the_infotext_tells(tmp_path: Path) -> None:
    from sd_cloud.engines.diffusion.engine import DiffusionWorker

    settings = settings_below(tmp_path)
    folder = settings.folders.checkpoints[0]
    folder.mkdir(parents=True)
    for name in ("tiny-a.safetensors", "tiny-a.yaml"):
        (folder / name).symlink_to(GOLDEN / "checkpoints" / name)
    source = Image.open(GOLDEN / "cases" / "input.png").convert("RGB").resize((128, 128))
    mask = Image.new("L", source.size)
    ImageDraw.Draw(mask).ellipse((4, 4, 60, 60), fill=255)

    def make(soft: list[Any]) -> Outcome:
        payload = {
            **{"prompt": "a red cat", "steps": 2, "width": 128, "height": 128, "seed": 4},
            **{"init_images": [encoded(source)], "inpaint_full_res": False, "denoising_strength": 0.9},
            **asked(soft, encoded(mask.filter(ImageFilter.GaussianBlur(8)))),
            "override_settings": {"return_mask": True},
        }
        return DiffusionWorker(settings).run(Job("img2img", payload), lambda _: None, Control())

    soft, hard = make([True]), make([False])
    assert "Soft inpainting enabled: True, Soft inpainting schedule bias: 1" in soft.pictures[0].infotext
    assert "Soft inpainting" not in hard.pictures[0].infotext
    picture, shown, plain = (np.asarray(one.image, int) for one in (*soft.pictures, hard.pictures[0]))
    changed = np.abs(picture - np.asarray(source, int)).max(axis=2)
    assert changed[20:40, 20:40].mean() > 3 * changed[100:, 100:].mean()
    assert len(np.unique(shown)) > 10 and not (picture == plain).all()


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
