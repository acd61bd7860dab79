"""UniPC (Zhao et al. 2023, "A Unified Predictor-Corrector Framework"), multistep, predicting x0.

Time runs from 0 to 1 over the model's levels; ``lambda`` is half the log of the signal-to-noise
ratio. Equations and names (B(h), phi, rho) are the paper's, section 3 and appendix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sd_cloud.engines.diffusion.samplers.timesteps import Epsilon, Walk

VARIANTS = ("bh1", "bh2", "vary_coeff")
SPACINGS = ("time_uniform", "time_quadratic", "logSNR")


@dataclass(frozen=True)
class UniPCKnobs:
    """The webui's ``uni_pc_*`` options. ``start``: where to begin in time (1: pure noise)."""

    variant: str = "bh1"
    spacing: str = "time_uniform"
    order: int = 3
    lower_order_final: bool = True
    start: float = 1.0


class _Line:
    """log(alpha) of the model as a piecewise linear function of time, and back."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.logs = 0.5 * alphas_cumprod.cpu().float().log()
        self.count = len(self.logs)
        self.times = torch.linspace(0.0, 1.0, self.count + 1)[1:]

    def log_alpha(self, time: Tensor) -> Tensor:
        return _interpolate(time, self.times, self.logs)

    def alpha(self, time: Tensor) -> Tensor:
        return self.log_alpha(time).exp()

    def sigma(self, time: Tensor) -> Tensor:
        return (1.0 - (2.0 * self.log_alpha(time)).exp()).sqrt()

    def half_log_snr(self, time: Tensor) -> Tensor:
        logs = self.log_alpha(time)
        return logs - 0.5 * (1.0 - (2.0 * logs).exp()).log()

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        logs = -0.5 * torch.logaddexp(torch.zeros(1), -2.0 * half_log_snr)
        return _interpolate(logs, self.logs.flip(0), self.times.flip(0))


def _interpolate(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear, carried on beyond both ends."""
    right = torch.searchsorted(xs, at.reshape(-1).contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return (y0 + (at.reshape(-1) - x0) * (y1 - y0) / (x1 - x0)).reshape(at.shape)


@dataclass
class _Seen:
    time: Tensor
    picture: Tensor


def unipc(epsilon: Epsilon, x: Tensor, steps: int, walk: Walk, knobs: UniPCKnobs) -> Tensor:
    """``steps`` steps; the model is called as often. Needs at least ``knobs.order`` steps."""
    line = _Line(walk.alphas_cumprod)
    times = _spaced(line, knobs, steps)
    ones = x.new_ones([x.shape[0]])

    def picture(latent: Tensor, time: Tensor) -> Tensor:
        noise = epsilon(latent, float((time - 1.0 / line.count) * 1000.0) * ones)
        return (latent - line.sigma(time).item() * noise) / line.alpha(time).item()

    seen = [_Seen(times[0], picture(x, times[0]))]
    for step in range(1, steps + 1):
        order = min(step, knobs.order)
        if knobs.lower_order_final and step >= knobs.order:
            order = min(order, steps + 1 - step)
        move = _Move(line, seen, times[step], order, knobs.variant)
        x = move.predict(x)
        if step < steps:
            model = picture(x, times[step])
            x = move.correct(model)
            seen = [*seen, _Seen(times[step], model)][-knobs.order :]
        walk.on_step(step - 1)
    return x


def _spaced(line: _Line, knobs: UniPCKnobs, steps: int) -> Tensor:
    first, last = knobs.start, 1.0 / line.count
    if knobs.spacing == "time_uniform":
        return torch.linspace(first, last, steps + 1)
    if knobs.spacing == "time_quadratic":
        return torch.linspace(first**0.5, last**0.5, steps + 1) ** 2
    edges = [float(line.half_log_snr(torch.tensor(edge))) for edge in (first, last)]
    return line.time_of(torch.linspace(edges[0], edges[1], steps + 1))


class _Move:
    """One step: the prediction from what was seen, then the correction by what is seen there."""

    def __init__(self, line: _Line, seen: list[_Seen], target: Tensor, order: int, variant: str) -> None:
        self._variant = variant
        now = seen[-1]
        self._now = now.picture
        start = line.half_log_snr(now.time)
        self._step = line.half_log_snr(target) - start
        self._alpha = line.alpha(target).item()
        self._shrink = (line.sigma(target) / line.sigma(now.time)).item()
        earlier = [seen[-(i + 1)] for i in range(1, order)]
        ratios = [(line.half_log_snr(one.time) - start) / self._step for one in earlier]
        self._ratios = torch.stack([*ratios, torch.ones(())])
        self._changes = [
            (one.picture - now.picture) / ratio.item() for one, ratio in zip(earlier, ratios, strict=True)
        ]
        self._base = torch.empty(0)
        if variant == "vary_coeff":
            self._before, self._after = self._varying()
        else:
            self._before, self._after = self._through_b()

    def predict(self, x: Tensor) -> Tensor:
        growth = torch.expm1(-self._step).item()
        self._base = self._shrink * x - self._alpha * growth * self._now
        return self._base - self._alpha * _weighed(self._before, self._changes, self._now)

    def correct(self, model: Tensor) -> Tensor:
        changes = [*self._changes, model - self._now]
        return self._base - self._alpha * _weighed(self._after, changes, self._now)

    def _through_b(self) -> tuple[list[float], list[float]]:
        """Weights of the B(h) forms: ``rho`` solves a Vandermonde system against the phi functions."""
        step = -self._step
        scale = step if self._variant == "bh1" else torch.expm1(step)
        order = len(self._ratios)
        phi = torch.expm1(step) / step - 1
        factorial = 1
        wanted = []
        for i in range(1, order + 1):
            wanted.append(phi * factorial / scale)
            factorial *= i + 1
            phi = phi / step - 1 / factorial
        matrix = torch.stack([self._ratios**i for i in range(order)])
        right = torch.stack(wanted)
        half = torch.tensor([0.5])
        if order == 1:
            before, after = torch.empty(0), half
        else:
            before = half if order == 2 else torch.linalg.solve(matrix[:-1, :-1], right[:-1])
            after = torch.linalg.solve(matrix, right)
        return (before * scale).tolist(), (after * scale).tolist()

    def _varying(self) -> tuple[list[float], list[float]]:
        """Weights with coefficients that vary with the step (the paper's UniPC-v)."""
        step = -self._step
        count = len(self._ratios)
        columns, column = [], torch.ones_like(self._ratios)
        for k in range(1, count + 1):
            columns.append(column)
            column = column * self._ratios / (k + 1)
        matrix = torch.stack(columns, dim=1)
        phis, phi, factorial = [], torch.expm1(step), 1
        for k in range(1, count + 2):
            phis.append(phi)
            phi = phi / step - 1 / factorial
            factorial *= k + 1
        after_rows = torch.linalg.inv(matrix)
        before = torch.zeros(count - 1)
        if count > 1:
            rows = torch.linalg.inv(matrix[:-1, :-1])
            before = sum((phis[k + 1] * rows[k] for k in range(count - 1)), before)
        after = torch.zeros(count)
        for k in range(count - 1):
            after[:-1] += phis[k + 1] * after_rows[k][:-1]
        # The reference takes the newest look's weight from the last row its loop came to.
        after[-1] += phis[count] * after_rows[max(count - 2, 0)][-1]
        return before.tolist(), after.tolist()


def _weighed(weights: list[float], changes: list[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for weight, change in zip(weights, changes, strict=True):
        total = total + weight * change
    return total
