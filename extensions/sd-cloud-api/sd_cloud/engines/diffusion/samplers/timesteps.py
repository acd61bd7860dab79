"""Samplers over the model's own timesteps: DDIM, its CFG++ form, and PLMS.

Their model gives the noise it sees (epsilon) in a latent that keeps unit variance. They take
``timesteps`` [S] rising and walk down from the last but one to the first, so S steps call the
model S - 1 times, as the webui does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Epsilon = Callable[[Tensor, Tensor], Tensor]
"""``(x [B, C, H, W], timestep [B]) -> noise [B, C, H, W]``, guidance included."""


@dataclass(frozen=True)
class Walk:
    """``alphas_cumprod`` [N] of the model; ``last_uncond`` the unguided noise of the last call."""

    alphas_cumprod: Tensor
    noise: Callable[[], Tensor]
    on_step: Callable[[int], None] = field(default=lambda step: None)
    eta: float = 0.0
    last_uncond: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class _Table:
    """Square roots and spreads at each timestep, as floats."""

    alphas: list[float]
    before: list[float]
    spreads: list[float]
    rest_roots: list[float]

    @classmethod
    def of(cls, walk: Walk, timesteps: Tensor) -> _Table:
        table = walk.alphas_cumprod.cpu()
        alphas = table[timesteps]
        before = table[torch.nn.functional.pad(timesteps[:-1], pad=(1, 0))].double()
        spreads = walk.eta * ((1 - before) / (1 - alphas) * (1 - alphas / before)).sqrt()
        return cls(alphas.tolist(), before.tolist(), spreads.tolist(), (1 - alphas).sqrt().tolist())

    def picture(self, x: Tensor, epsilon: Tensor, i: int) -> Tensor:
        return (x - self.rest_roots[i] * epsilon) / self._root(self.alphas[i], x)

    def move(self, picture: Tensor, direction: Tensor, i: int, noise: Tensor | None = None) -> Tensor:
        spread = self.spreads[i]
        rest = self._root(1.0 - self.before[i] - spread**2, picture)
        moved = self._root(self.before[i], picture) * picture + rest * direction
        return moved if noise is None else moved + spread * noise

    @staticmethod
    def _root(value: float, like: Tensor) -> Tensor:
        return like.new_tensor(value).sqrt()


def ddim(epsilon: Epsilon, x: Tensor, timesteps: Tensor, walk: Walk) -> Tensor:
    """DDIM (Song et al. 2020, equation 12)."""
    return _ddim(epsilon, x, timesteps, walk, plus=False)


def ddim_cfgpp(epsilon: Epsilon, x: Tensor, timesteps: Tensor, walk: Walk) -> Tensor:
    """CFG++ (Chung et al. 2024): the direction back to the noise is the unguided one."""
    return _ddim(epsilon, x, timesteps, walk, plus=True)


def _ddim(epsilon: Epsilon, x: Tensor, timesteps: Tensor, walk: Walk, *, plus: bool) -> Tensor:
    table = _Table.of(walk, timesteps)
    ones = x.new_ones([x.shape[0]])
    for step, i in enumerate(range(len(timesteps) - 1, 0, -1)):
        guided = epsilon(x, float(timesteps[i]) * ones)
        direction = walk.last_uncond() if plus and walk.last_uncond else guided
        noise = walk.noise() if walk.eta else None
        x = table.move(table.picture(x, guided, i), direction, i, noise)
        walk.on_step(step)
    return x


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(epsilon: Epsilon, x: Tensor, timesteps: Tensor, walk: Walk) -> Tensor:
    """PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds")."""
    table = _Table.of(replace(walk, eta=0.0), timesteps)
    ones = x.new_ones([x.shape[0]])
    seen: list[Tensor] = []
    for step, i in enumerate(range(len(timesteps) - 1, 0, -1)):
        here = epsilon(x, float(timesteps[i]) * ones)
        if not seen:
            ahead = table.move(table.picture(x, here, i), here, i)
            combined = (here + epsilon(ahead, float(timesteps[max(i - 1, 0)]) * ones)) / 2
        else:
            recent = [here, *reversed(seen)]
            weights = ADAMS_BASHFORTH[len(recent) - 1]
            combined = sum((w * e for w, e in zip(weights, recent, strict=True)), torch.zeros_like(x))
        x = table.move(table.picture(x, combined, i), combined, i)
        seen = [*seen, here][-3:]
        walk.on_step(step)
    return x
