"""Stable Diffusion 3.5, which the webui cannot load, beside diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion import guidance
from sd_cloud.engines.diffusion.conditioning import at_step
from sd_cloud.engines.diffusion.engine import DiffusionWorker
from sd_cloud.job import Job
from sd_cloud.settings import settings_below
from tests.engines.diffusion.sd3_files import LAYOUTS, tiny_sd3, written

pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason="needs shared/reference beside the repository")

GUIDANCE = 4.5


class Seen:
    """What the engine's sampler was given: the noise, the levels, and the prompts' tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latents: list[torch.Tensor] = []
        self.levels: list[float] = []
        self.guided: guidance.Guided
        original = guidance.Guided.__call__

        def watched(guided: guidance.Guided, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            self.guided = guided
            self.latents.append(x.clone())
            self.levels.append(float(level[0]))
            return original(guided, x, level)

        monkeypatch.setattr(guidance.Guided, "__call__", watched)


@pytest.mark.parametrize("version", ["3.5-medium", "3.5-large"])
def test_a_picture_of_35_is_that_of_diffusers_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Query and key norms, medium's two attentions in a block, guidance, Euler's steps and the VAE."""
    settings = settings_below(tmp_path / "data", min_ram_reserved_gib=0.0)
    written(settings.folders.checkpoints[0] / "one.safetensors", tiny_sd3(version=version))
    seen = Seen(monkeypatch)
    request = {"prompt": "a red cat", "negative_prompt": "blurry", "steps": 4, "width": 64, "height": 96}
    job = Job("txt2img", {**request, "seed": 7, "cfg_scale": GUIDANCE, "sampler_name": "Euler"})
    made = DiffusionWorker(settings).run(job, lambda _: None, Control()).pictures[0].image
    assert made is not None

    model = seen.guided.model
    positive = at_step(seen.guided.encoded.positive[0][0].schedule, 0)
    negative = at_step(seen.guided.encoded.negative[0], 0)
    assert positive.vector is not None and negative.vector is not None
    model.vae.register_to_config(
        scaling_factor=model.layout.latent_scale, shift_factor=model.layout.latent_shift
    )
    parts: dict[str, Any] = dict.fromkeys(
        f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=model.unet.transformer,
        vae=model.vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),  # the levels below are shifted already
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=positive.cross[None],
        negative_prompt_embeds=negative.cross[None],
        pooled_prompt_embeds=positive.vector[None],
        negative_pooled_prompt_embeds=negative.vector[None],
        latents=seen.latents[0] / seen.levels[0],
        sigmas=seen.levels,
        num_inference_steps=len(seen.levels),
        guidance_scale=GUIDANCE,
        width=64,
        height=96,
        output_type="np",
    ).images[0]
    error = np.asarray(made) / 255 - np.clip(theirs, 0, 1)
    assert np.asarray(made).std() > 10
    assert np.abs(error).max() < 1.5 / 255  # pixels are cut to whole numbers
