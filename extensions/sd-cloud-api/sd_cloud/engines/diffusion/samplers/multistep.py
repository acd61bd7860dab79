"""Samplers that remember what earlier steps saw."""

from __future__ import annotations

import torch
from scipy import integrate
from torch import Tensor

from sd_cloud.engines.diffusion.samplers.tools import Denoise, Knobs, at, slope


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_lms``: linear multistep (Adams-Bashforth over sigma), order 4."""
    order = 4
    levels = sigmas.detach().cpu().numpy()
    slopes: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        slopes.append(slope(x, sigmas[i], at(denoise, x, sigmas[i])))
        slopes = slopes[-order:]
        knobs.on_step(i)
        count = min(i + 1, order)
        for j, one in zip(range(count), reversed(slopes), strict=True):
            x = x + _lagrange_integral(count, levels, i, j) * one
    return x


def _lagrange_integral(order: int, levels: object, i: int, j: int) -> float:
    """Integral over step ``i`` of the polynomial that is 1 at level ``i - j`` and 0 at the others."""
    grid = levels

    def basis(tau: float) -> float:
        product = 1.0
        for k in range(order):
            if k != j:
                product *= (tau - grid[i - k]) / (grid[i - j] - grid[i - k])  # type: ignore[index]
        return product

    return float(integrate.quad(basis, grid[i], grid[i + 1], epsrel=1e-4)[0])  # type: ignore[index]


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpmpp_2m``: DPM-Solver++(2M), Lu et al. 2022b."""
    before: Tensor | None = None
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        knobs.on_step(i)
        time, target = -sigmas[i].log(), -sigmas[i + 1].log()
        step = target - time
        guess = denoised
        if before is not None and sigmas[i + 1] != 0:
            ratio = (time + sigmas[i - 1].log()) / step
            guess = (1 + 1 / (2 * ratio)) * denoised - (1 / (2 * ratio)) * before
        x = ((-target).exp() / (-time).exp()) * x - (-step).expm1() * guess
        before = denoised
    return x


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpmpp_2m_sde``; ``knobs.second_form`` is its ``solver_type='heun'``."""
    before: Tensor | None = None
    last_step = sigmas[0]
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        knobs.on_step(i)
        if sigmas[i + 1] == 0:
            return denoised
        step = sigmas[i].log() - sigmas[i + 1].log()
        noisy = knobs.eta * step
        gain = (-step - noisy).expm1().neg()
        x = sigmas[i + 1] / sigmas[i] * (-noisy).exp() * x + gain * denoised
        if before is not None:
            change = (denoised - before) / (last_step / step)
            x = x + (gain / (-step - noisy) + 1 if knobs.second_form else 0.5 * gain) * change
        if knobs.eta:
            spread = (-2 * noisy).expm1().neg().sqrt()
            x = x + knobs.between(sigmas[i], sigmas[i + 1]) * sigmas[i + 1] * spread * knobs.s_noise
        before, last_step = denoised, step
    return x


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """``sample_dpmpp_3m_sde``: third order differences of what two steps before saw."""
    seen: list[Tensor] = []
    steps: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        denoised = at(denoise, x, sigmas[i])
        knobs.on_step(i)
        if sigmas[i + 1] == 0:
            return denoised
        step = sigmas[i].log() - sigmas[i + 1].log()
        long = step * (knobs.eta + 1)
        x = torch.exp(-long) * x + (-long).expm1().neg() * denoised
        phi_2 = long.neg().expm1() / long + 1
        if len(seen) == 2:
            near, far = steps[-1] / step, steps[-2] / step
            first, second = (denoised - seen[-1]) / near, (seen[-1] - seen[-2]) / far
            bend = (first - second) / (near + far)
            x = x + phi_2 * (first + bend * near) - (phi_2 / long - 0.5) * bend
        elif seen:
            x = x + phi_2 * (denoised - seen[-1]) / (steps[-1] / step)
        if knobs.eta:
            spread = (-2 * step * knobs.eta).expm1().neg().sqrt()
            x = x + knobs.between(sigmas[i], sigmas[i + 1]) * sigmas[i + 1] * spread * knobs.s_noise
        seen, steps = [*seen, denoised][-2:], [*steps, step][-2:]
    return x
