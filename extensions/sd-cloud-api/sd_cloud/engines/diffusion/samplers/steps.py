"""Samplers that look at one or two noise levels in each step."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sd_cloud.engines.diffusion.noise_levels import Range, karras
from sd_cloud.engines.diffusion.samplers.tools import Denoise, Knobs, at, churned, slope, split_ancestral


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_euler``: algorithm 2 of Karras et al. 2022 with Euler steps."""
    for i in range(len(sigmas) - 1):
        x, sigma = churned(x, sigmas[i], len(sigmas) - 1, knobs)
        denoised = at(denoise, x, sigma)
        knobs.on_step(i)
        x = x + slope(x, sigma, denoised) * (sigmas[i + 1] - sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_euler_ancestral``."""
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        down, up = split_ancestral(sigmas[i], sigmas[i + 1], knobs.eta)
        knobs.on_step(i)
        x = x + slope(x, sigmas[i], denoised) * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + knobs.noise() * knobs.s_noise * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_heun``: algorithm 2 of Karras et al. 2022."""
    for i in range(len(sigmas) - 1):
        x, sigma = churned(x, sigmas[i], len(sigmas) - 1, knobs)
        denoised = at(denoise, x, sigma)
        knobs.on_step(i)
        x = _heun_step(denoise, x, sigma, sigmas[i + 1], denoised)
    return x


def _heun_step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, denoised: Tensor) -> Tensor:
    first = slope(x, sigma, denoised)
    step = sigma_next - sigma
    if sigma_next == 0:
        return x + first * step
    ahead = x + first * step
    second = slope(ahead, sigma_next, at(denoise, ahead, sigma_next))
    return x + (first + second) / 2 * step


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpm_2``: the midpoint in log sigma (DPM-Solver-2, Lu et al. 2022)."""
    for i in range(len(sigmas) - 1):
        x, sigma = churned(x, sigmas[i], len(sigmas) - 1, knobs)
        denoised = at(denoise, x, sigma)
        knobs.on_step(i)
        x = _midpoint_step(denoise, x, sigma, sigmas[i + 1], denoised)
    return x


def _midpoint_step(denoise: Denoise, x: Tensor, sigma: Tensor, target: Tensor, denoised: Tensor) -> Tensor:
    first = slope(x, sigma, denoised)
    if target == 0:
        return x + first * (target - sigma)
    middle = sigma.log().lerp(target.log(), 0.5).exp()
    ahead = x + first * (middle - sigma)
    return x + slope(ahead, middle, at(denoise, ahead, middle)) * (target - sigma)


def dpm_2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpm_2_ancestral``."""
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        down, up = split_ancestral(sigmas[i], sigmas[i + 1], knobs.eta)
        knobs.on_step(i)
        x = _midpoint_step(denoise, x, sigmas[i], down, denoised)
        if down != 0:
            x = x + knobs.noise() * knobs.s_noise * up
    return x


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpmpp_2s_ancestral``: DPM-Solver++(2S), Lu et al. 2022b."""
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        down, up = split_ancestral(sigmas[i], sigmas[i + 1], knobs.eta)
        knobs.on_step(i)
        if down == 0:
            x = x + slope(x, sigmas[i], denoised) * (down - sigmas[i])
        else:
            time, target = -sigmas[i].log(), -down.log()
            step = target - time
            middle = time + step / 2
            ahead = ((-middle).exp() / (-time).exp()) * x - (-step * 0.5).expm1() * denoised
            second = at(denoise, ahead, (-middle).exp())
            x = ((-target).exp() / (-time).exp()) * x - (-step).expm1() * second
        if sigmas[i + 1] > 0:
            x = x + knobs.noise() * knobs.s_noise * up
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpmpp_sde``: DPM-Solver++ on the SDE, with a look at the middle of each step."""
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        knobs.on_step(i)
        if sigmas[i + 1] == 0:
            x = x + slope(x, sigmas[i], denoised) * (sigmas[i + 1] - sigmas[i])
            continue
        time, target = -sigmas[i].log(), -sigmas[i + 1].log()
        middle = time + (target - time) * 0.5
        ahead = _sde_move(x, denoised, time, middle, knobs)
        second = at(denoise, ahead, (-middle).exp())
        # The share of the second look is 1 / (2 r) with r = 1/2: all of it.
        x = _sde_move(x, second, time, target, knobs)
    return x


def _sde_move(x: Tensor, denoised: Tensor, time: Tensor, target: Tensor, knobs: Knobs) -> Tensor:
    sigma, sigma_target = (-time).exp(), (-target).exp()
    down, up = split_ancestral(sigma, sigma_target, knobs.eta)
    landing = -down.log()
    x = ((-landing).exp() / sigma) * x - (time - landing).expm1() * denoised
    return x + knobs.between(sigma, sigma_target) * knobs.s_noise * up


def consistency(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """LCM (Luo et al. 2023): denoise fully, then add the noise of the next level."""
    for i in range(len(sigmas) - 1):
        x = at(denoise, x, sigmas[i])
        knobs.on_step(i)
        if sigmas[i + 1] > 0:
            x = x + sigmas[i + 1] * knobs.noise()
    return x


def restart(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """Restart sampling (Xu et al. 2023, "Restart Sampling for Improving Generative Processes").

    Heun steps; from 20 steps on, some of them are spent on going back from 0.1 to 2 in noise.
    """
    last: Tensor | None = None
    for step, (sigma, target) in enumerate(_restarted(sigmas)):
        if last is not None and last < sigma:
            x = x + knobs.noise() * knobs.s_noise * (sigma**2 - last**2) ** 0.5
        denoised = at(denoise, x, sigma)
        knobs.on_step(step)
        x = _heun_step(denoise, x, sigma, target, denoised)
        last = target
    return x


def _restarted(sigmas: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The steps, with the repeated stretch put in where it belongs."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(itertools.pairwise(sigmas))
    stretch, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    sigmas = _karras(steps - stretch * times, float(sigmas[-2]), float(sigmas[0]))
    low = int(torch.argmin((sigmas - 0.1).abs()))
    pairs = []
    for i in range(len(sigmas) - 1):
        pairs.append((sigmas[i], sigmas[i + 1]))
        high = int(torch.argmin((sigmas - 2).abs()))
        if i + 1 == low and high < low:
            again = _karras(stretch + 1, float(sigmas[low]), float(sigmas[high]))[:-1]
            pairs += list(itertools.pairwise(again)) * times
    return pairs


def _karras(count: int, lowest: float, highest: float) -> Tensor:
    return karras(count, Range(lowest, highest, levels=None))  # type: ignore[arg-type]
