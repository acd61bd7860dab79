"""DPM-Solver with its own choice of levels (Lu et al. 2022, arXiv:2206.00927).

``sample_dpm_fast`` and ``sample_dpm_adaptive`` of k-diffusion. Time is ``-log(sigma)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sd_cloud.engines.diffusion.samplers.tools import Denoise, Knobs, at, split_ancestral


@dataclass
class _Looks:
    """The model's noise estimates within one step; each is asked for once."""

    denoise: Denoise
    known: dict[str, Tensor] = field(default_factory=dict)

    def noise(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        if name not in self.known:
            sigma = (-time).exp()
            self.known[name] = (x - at(self.denoise, x, sigma)) / sigma
        return self.known[name]

    def first_order(self, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        here = self.noise("here", x, time)
        return x - (-target).exp() * (target - time).expm1() * here

    def second_order(self, x: Tensor, time: Tensor, target: Tensor, share: float = 0.5) -> Tensor:
        step = target - time
        here = self.noise("here", x, time)
        middle = time + share * step
        ahead = x - (-middle).exp() * (share * step).expm1() * here
        there = self.noise(f"at {share}", ahead, middle)
        sigma = (-target).exp()
        return x - sigma * step.expm1() * here - sigma / (2 * share) * step.expm1() * (there - here)

    def third_order(self, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        step = target - time
        near, far = 1 / 3, 2 / 3
        here = self.noise("here", x, time)
        first, second = time + near * step, time + far * step
        ahead = x - (-first).exp() * (near * step).expm1() * here
        there = self.noise(f"at {near}", ahead, first)
        bend = (far * step).expm1() / (far * step) - 1
        sigma = (-second).exp()
        ahead = x - sigma * (far * step).expm1() * here - sigma * (far / near) * bend * (there - here)
        beyond = self.noise(f"at {far}", ahead, second)
        sigma = (-target).exp()
        return x - sigma * step.expm1() * here - sigma / far * (step.expm1() / step - 1) * (beyond - here)


def _with_noise(time: Tensor, target: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Where to step without noise, and how much to add to be at ``target``."""
    if not eta:
        return target, torch.zeros_like(target)
    down, _ = split_ancestral((-time).exp(), (-target).exp(), eta)
    landing = torch.minimum(end, -down.log())
    return landing, ((-target).exp() ** 2 - (-landing).exp() ** 2) ** 0.5


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """A fixed number of model calls, three to a step as long as they last."""
    start, end = (-torch.tensor(edge).log() for edge in (knobs.highest, knobs.lowest))
    count = knobs.steps // 3 + 1
    rest = knobs.steps % 3
    orders = [3] * (count - 2) + [2, 1] if rest == 0 else [3] * (count - 1) + [rest]
    times = torch.linspace(float(start), float(end), count + 1)
    for i, order in enumerate(orders):
        looks = _Looks(denoise)
        time, target = times[i], times[i + 1]
        landing, up = _with_noise(time, target, end, knobs.eta)
        looks.noise("here", x, time)
        knobs.on_step(i)
        if order == 1:
            x = looks.first_order(x, time, landing)
        elif order == 2:
            x = looks.second_order(x, time, landing)
        else:
            x = looks.third_order(x, time, landing)
        x = x + up * knobs.s_noise * knobs.noise()
    return x


@dataclass
class _StepSize:
    """Proposes the next step from the errors of the last (a PID controller with an integral part)."""

    size: float
    order: float
    accepted_above: float = 0.81

    def judge(self, error: float) -> bool:
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.size *= factor
        return factor >= self.accepted_above


def dpm_adaptive(denoise: Denoise, x: Tensor, sigmas: Tensor, knobs: Knobs) -> Tensor:
    """Steps as long as a second and a third order step agree to within tolerances."""
    relative, absolute = 0.05, 0.0078
    start, end = (-torch.tensor(edge).log() for edge in (knobs.highest, knobs.lowest))
    size = _StepSize(0.05, 1.5 if knobs.eta else 3)
    time, before, taken = start, x, 0
    while time < end - 1e-5:
        looks = _Looks(denoise)
        target = torch.minimum(end, time + size.size)
        landing, up = _with_noise(time, target, end, knobs.eta)
        low = looks.second_order(x, time, landing, 1 / 3)
        high = looks.third_order(x, time, landing)
        tolerance = torch.maximum(torch.tensor(absolute), relative * torch.maximum(low.abs(), before.abs()))
        error = float(torch.linalg.norm((low - high) / tolerance)) / x.numel() ** 0.5
        if size.judge(error):
            before = low
            x = high + up * knobs.s_noise * knobs.noise()
            time = target
        knobs.on_step(taken)
        taken += 1
    return x
