"""Noise levels (sigmas) of a model, and the schedules that pick some of them.

Sigma is the standard deviation of the noise in a latent whose picture has its own scale, as in
Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models"; formulas
as in k-diffusion (``sampling.py``, ``external.py``) and, for the later ones, their papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor


class Levels:
    """The discrete noise levels of a model and the continuous line through them.

    ``sigmas``: [N] rising. Timesteps are positions on that line, fractional ones included.
    """

    def __init__(self, alphas_cumprod: Tensor, *, quantize: bool = False) -> None:
        self.alphas_cumprod = alphas_cumprod.float()
        # A flow's come in float64: near 1, float32 would lose its lowest levels.
        self.sigmas = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).float()
        self.log_sigmas = self.sigmas.log()
        self._quantize = quantize

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timesteps of sigmas, by interpolation in log sigma (or the nearest, when quantizing)."""
        log_sigma = sigma.log()
        distances = log_sigma - self.log_sigmas[:, None]
        if self._quantize:
            return distances.abs().argmin(dim=0).view(sigma.shape)
        low = distances.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=len(self.log_sigmas) - 2)
        low_log, high_log = self.log_sigmas[low], self.log_sigmas[low + 1]
        share = ((low_log - log_sigma) / (low_log - high_log)).clamp(0, 1)
        return ((1 - share) * low + share * (low + 1)).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> Tensor:
        timestep = timestep.float()
        low, high, share = timestep.floor().long(), timestep.ceil().long(), timestep.frac()
        return ((1 - share) * self.log_sigmas[low] + share * self.log_sigmas[high]).exp()

    def evenly(self, count: int) -> Tensor:
        """[count + 1] sigmas at even timesteps, the last one 0."""
        return with_zero(self.sigma(torch.linspace(len(self.sigmas) - 1, 0, count)))


class ConsistencyLevels(Levels):
    """The 50 levels a latent consistency model was distilled at (Luo et al. 2023)."""

    ORIGINAL_STEPS = 50

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self._stride = len(alphas_cumprod) // self.ORIGINAL_STEPS
        places = torch.arange(self.ORIGINAL_STEPS) * self._stride + self._stride - 1
        super().__init__(alphas_cumprod[places])

    def timestep(self, sigma: Tensor) -> Tensor:
        distances = sigma.log() - self.log_sigmas[:, None]
        nearest = distances.abs().argmin(dim=0).view(sigma.shape)
        return nearest * self._stride + (self._stride - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        place = ((timestep - (self._stride - 1)) / self._stride).float()
        return super().sigma(place.clamp(0, len(self.sigmas) - 1))

    def evenly(self, count: int) -> Tensor:
        start, end = (float(self.timestep(self.sigmas[place])) for place in (-1, 0))
        return with_zero(self.sigma(torch.linspace(start, end, count)))


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Levels rescaled to end in pure noise (Lin et al. 2023, "Common Diffusion Noise Schedules …")."""
    roots = alphas_cumprod.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    rescaled = ((roots - last) * (first / (first - last))) ** 2
    rescaled[-1] = 4.8973451890853435e-08  # zero would make the last sigma infinite
    return rescaled


def with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros([1])])


@dataclass(frozen=True)
class Range:
    """What a schedule spans, and what its formula can be told. ``rho=None``: the formula's own."""

    lowest: float
    highest: float
    levels: Levels
    rho: float | None = None
    beta_alpha: float = 0.6
    beta_beta: float = 0.6
    is_sdxl: bool = False


def uniform(n: int, span: Range) -> Tensor:
    return span.levels.evenly(n)


def karras(n: int, span: Range) -> Tensor:
    """Even in ``sigma ** (1 / rho)``; equation 5 of Karras et al. 2022."""
    rho = 7.0 if span.rho is None else span.rho
    ramp = torch.linspace(0, 1, n)
    low, high = span.lowest ** (1 / rho), span.highest ** (1 / rho)
    return with_zero((high + ramp * (low - high)) ** rho)


def exponential(n: int, span: Range) -> Tensor:
    """Even in log sigma."""
    return with_zero(torch.linspace(math.log(span.highest), math.log(span.lowest), n).exp())


def polyexponential(n: int, span: Range) -> Tensor:
    """A power of an even ramp in log sigma."""
    ramp = torch.linspace(1, 0, n) ** (1.0 if span.rho is None else span.rho)
    low, high = math.log(span.lowest), math.log(span.highest)
    return with_zero(torch.exp(ramp * (high - low) + low))


def sgm_uniform(n: int, span: Range) -> Tensor:
    """Even timesteps that stop a step before the end (Stability-AI/generative-models)."""
    return _at_timesteps(_timesteps(n + 1, span)[:-1], span)


def normal(n: int, span: Range) -> Tensor:
    """Even timesteps between the edges."""
    return _at_timesteps(_timesteps(n, span), span)


def _timesteps(count: int, span: Range) -> Tensor:
    start, end = (span.levels.timestep(torch.tensor(edge)) for edge in (span.highest, span.lowest))
    return torch.linspace(float(start), float(end), count)


def _at_timesteps(timesteps: Tensor, span: Range) -> Tensor:
    return with_zero(torch.stack([span.levels.sigma(one) for one in timesteps]).float())


def kl_optimal(n: int, span: Range) -> Tensor:
    """Even angles (Sabour et al. 2024, "Align Your Steps", section on the KL-optimal schedule)."""
    low, high = (torch.arctan(torch.tensor(edge)) for edge in (span.lowest, span.highest))
    step = torch.arange(n + 1)
    return torch.tan(step / n * low + (1.0 - step / n) * high)


ALIGNED_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def align_your_steps(n: int, span: Range) -> Tensor:
    """The published levels (Sabour et al. 2024), log-linearly interpolated to another count."""
    levels = np.array(ALIGNED_SDXL if span.is_sdxl else ALIGNED_SD1)
    if n != len(levels):
        places = np.linspace(0, 1, len(levels))
        levels = np.exp(np.interp(np.linspace(0, 1, n), places, np.log(levels[::-1])))[::-1].copy()
    return torch.tensor([*levels.tolist(), 0.0], dtype=torch.float32)


def simple(n: int, span: Range) -> Tensor:
    """Every ``N / n``-th level from the top."""
    sigmas = span.levels.sigmas
    stride = len(sigmas) / n
    return torch.tensor([*(float(sigmas[-(1 + int(i * stride))]) for i in range(n)), 0.0])


def ddim(n: int, span: Range) -> Tensor:
    """The levels DDIM visits: every ``N // n``-th, from the second on."""
    sigmas = span.levels.sigmas
    picked = [float(sigmas[i]) for i in range(1, len(sigmas), max(len(sigmas) // n, 1))]
    return torch.tensor([*reversed(picked), 0.0])


def beta(n: int, span: Range) -> Tensor:
    """Quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You Need")."""
    shares = stats.beta.ppf(1 - np.linspace(0, 1, n), span.beta_alpha, span.beta_beta)
    low, high = span.lowest, span.highest
    return torch.tensor([*(low + float(share) * (high - low) for share in shares), 0.0], dtype=torch.float32)


SCHEDULES: Mapping[str, Callable[[int, Range], Tensor]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "simple": simple,
    "normal": normal,
    "ddim": ddim,
    "beta": beta,
}
"""By the webui's scheduler name. ``automatic`` is the sampler's own, or even timesteps."""
