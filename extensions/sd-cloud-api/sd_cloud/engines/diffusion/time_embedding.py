"""Sinusoidal embedding of numbers (Vaswani et al. 2017, as DDPM uses it for timesteps)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoid(values: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """[N] numbers, fractional ones too, to [N, width]: cosines first, then sines."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(longest) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    )
    angles = values[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
