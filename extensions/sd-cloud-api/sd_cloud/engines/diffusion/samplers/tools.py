"""What every sampler is given, and the two formulas they share.

Samplers are functions ``(denoise, x, sigmas, knobs) -> x``: ``x`` [B, C, H, W] at the noise level
``sigmas[0]``, ``sigmas`` [steps + 1] falling to 0. Formulas follow k-diffusion's ``sampling.py``
(MIT), the names its functions have there, and the papers each docstring names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``(x [B, C, H, W], sigma [B]) -> denoised [B, C, H, W]``, guidance included."""


@dataclass(frozen=True)
class Knobs:
    """``noise`` draws noise for a step, ``between`` noise for the step between two sigmas.

    ``on_step`` hears of each step as it is taken, counted from 0. ``lowest``/``highest`` are the
    edges for the samplers that choose their own levels, and ``steps`` how many calls they have.
    """

    noise: Callable[[], Tensor]
    between: Callable[[Tensor, Tensor], Tensor]
    on_step: Callable[[int], None] = field(default=lambda step: None)
    eta: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    lowest: float = 0.0
    highest: float = 0.0
    steps: int = 0
    second_form: bool = False


def at(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    """Denoise a batch at one noise level."""
    return denoise(x, sigma * x.new_ones([x.shape[0]]))


def slope(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The derivative of the probability flow ODE at ``sigma``."""
    return (x - denoised) / sigma


def split_ancestral(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """A step to ``sigma_next`` as a step down and the noise to add after it."""
    if not eta:
        return sigma_next, torch.zeros_like(sigma_next)
    up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    up = torch.minimum(sigma_next, up)
    return (sigma_next**2 - up**2) ** 0.5, up


def churned(x: Tensor, sigma: Tensor, steps: int, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Raise the noise level before a step (algorithm 2 of Karras et al. 2022)."""
    if knobs.s_churn <= 0:
        return x, sigma
    noise = knobs.noise() * knobs.s_noise
    if not knobs.s_tmin <= float(sigma) <= knobs.s_tmax:
        return x, sigma
    raised = sigma * (1 + min(knobs.s_churn / steps, 2**0.5 - 1))
    return x + noise * (raised**2 - sigma**2) ** 0.5, raised
