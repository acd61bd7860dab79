"""Euler sampling with CFG, in the webui's own formulas: enough to look at a model in training."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

SCALE_FACTOR = 0.18215


def alphas_cumprod() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def sigma_steps(steps: int) -> tuple[Tensor, Tensor]:
    """Sigmas (with a last 0) and the fractional timesteps they stand for."""
    alphas = alphas_cumprod()
    log_sigmas = (((1 - alphas) / alphas) ** 0.5).log()
    times = torch.linspace(999, 0, steps, dtype=torch.float64)
    low = times.floor().long().clamp(max=998)
    between = times - low
    sigmas = ((1 - between) * log_sigmas[low] + between * log_sigmas[low + 1]).exp()
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)]).float(), times.float()


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    context: Tensor,
    negative: Tensor,
    seeds: list[int],
    steps: int = 20,
    cfg_scale: float = 3.0,
    side: int = 8,
) -> Tensor:
    """Latents [n, 4, side, side], one per row of `context` and per seed."""
    noise = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    sigmas, times = sigma_steps(steps)
    x = torch.stack(noise) * (1 + sigmas[0] ** 2) ** 0.5
    both = torch.cat([context, negative.expand_as(context)])
    for index, time in enumerate(times):
        sigma, following = sigmas[index], sigmas[index + 1]
        scaled = x / (sigma**2 + 1) ** 0.5
        wanted, plain = unet(torch.cat([scaled, scaled]), time, both).sample.chunk(2)
        x = x + (plain + cfg_scale * (wanted - plain)) * (following - sigma)
    return x


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Pictures, uint8 [n, h, w, 3]; `latents` in the U-Net's scale."""
    pixels = torch.cat([vae.decode(chunk / SCALE_FACTOR).sample for chunk in torch.split(latents, 32)])
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
