"""Where randomness comes from: a generator per picture, so that a batch equals its pictures made singly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torchsde
from torch import Tensor

from sd_cloud.errors import BadRequest

LATENT_PIXELS = 8
NUMBERS_AT_ONCE = 1 << 20


class Source(Protocol):
    """A stream of normal numbers."""

    def randn(self, shape: Sequence[int]) -> Tensor: ...


class TorchSource:
    """torch's own generator on one device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        if not -(2**63) <= seed < 2**64:
            raise BadRequest(f"{seed} is more than the 64 bits of a generator's seed", field="seed")
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, device=self._device)


class PhiloxSource:
    """What CUDA's generator gives, on any device (``randn_source = NV``).

    Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), then
    Box-Muller, of which CUDA's ``normal_`` uses the sine here.
    """

    ROUNDS = 10
    MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
    WEYL = (0x9E3779B9, 0xBB67AE85)

    def __init__(self, seed: int) -> None:
        self._seed = seed & 0xFFFFFFFFFFFFFFFF
        self._drawn = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        first, second = self._integers(count)
        self._drawn += 1
        scale = np.float32(2.3283064e-10)
        turn = np.float32(2.3283064e-10 * 6.2831855)
        u = first * scale + scale / np.float32(2)
        v = second * turn + turn / np.float32(2)
        values = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
        return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))

    def _integers(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.uint64(0xFFFFFFFF)
        c0 = np.full(count, self._drawn, dtype=np.uint64)
        c1 = np.zeros(count, dtype=np.uint64)
        c2 = np.arange(count, dtype=np.uint64)
        c3 = np.zeros(count, dtype=np.uint64)
        k0, k1 = self._seed & 0xFFFFFFFF, self._seed >> 32
        for _ in range(self.ROUNDS):
            low = c0 * np.uint64(self.MULTIPLIERS[0])
            high = c2 * np.uint64(self.MULTIPLIERS[1])
            c0, c1, c2, c3 = (
                (high >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
                high & mask,
                (low >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
                low & mask,
            )
            k0, k1 = (k0 + self.WEYL[0]) & 0xFFFFFFFF, (k1 + self.WEYL[1]) & 0xFFFFFFFF
        return c0.astype(np.uint32), c1.astype(np.uint32)


class GlobalSource(TorchSource):
    """torch's own CPU generator, of which a process has one; here each job has its own.

    The VAE's encoder draws from it on every device and for every ``randn_source``, as in the LDM code
    that the webui encodes with. The noise of a batch seeds it with the last picture's seed, and
    whatever else draws from it in the webui moves it on.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed, torch.device("cpu"))

    def pass_over(self, count: int) -> None:
        """Go on as if ``count`` numbers had been drawn."""
        while count > 0:
            now = min(count, NUMBERS_AT_ONCE)
            torch.empty(now).uniform_(generator=self._generator)
            count -= now

    def copy(self) -> GlobalSource:
        """Another that draws the same numbers."""
        made = GlobalSource(0)
        made._generator.set_state(self._generator.get_state())
        return made

    def seed(self) -> int:
        """A seed, as k-diffusion draws one for noise that nobody gave a seed for."""
        return int(torch.randint(0, 2**63 - 1, [], generator=self._generator))


@dataclass(frozen=True)
class RandomKind:
    """``randn_source`` on a device: ``GPU`` (the device's own), ``CPU`` or ``NV``."""

    name: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in ("GPU", "CPU", "NV"):
            raise BadRequest(f"{self.name!r} is none of GPU, CPU, NV", field="override_settings.randn_source")

    def source(self, seed: int) -> Source:
        if self.name == "NV":
            return PhiloxSource(seed)
        return TorchSource(seed, self.device if self.name == "GPU" else torch.device("cpu"))


@dataclass(frozen=True)
class Variation:
    """``subseed``: how much of another seed's noise is blended in (0 to 1), and which seeds."""

    seeds: Sequence[int] = ()
    strength: float = 0.0


@dataclass(frozen=True)
class SeedSize:
    """``seed_resize_from``: the noise of a picture of another size (pixels), kept in the middle."""

    width: int = 0
    height: int = 0

    @property
    def given(self) -> bool:
        return self.width > 0 and self.height > 0


def blend_on_sphere(amount: float, low: Tensor, high: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985), over dimension 1 as the webui does it."""
    unit_low = low / low.norm(dim=1, keepdim=True)
    unit_high = high / high.norm(dim=1, keepdim=True)
    dot = (unit_low * unit_high).sum(1)
    if dot.mean() > 0.9995:
        return low * amount + high * (1 - amount)
    omega = dot.acos()
    sine = omega.sin()
    weight_low = (((1.0 - amount) * omega).sin() / sine).unsqueeze(1)
    weight_high = ((amount * omega).sin() / sine).unsqueeze(1)
    blended: Tensor = weight_low * low + weight_high * high
    return blended


class BatchNoise:
    """Noise for a batch of latents [B, C, H, W]: the starting noise first, then a draw per call."""

    def __init__(
        self,
        shape: Sequence[int],
        seeds: Sequence[int],
        kind: RandomKind,
        *,
        variation: Variation = Variation(),
        seed_size: SeedSize = SeedSize(),
        seed_delta: int = 0,
    ) -> None:
        self._shape = tuple(int(side) for side in shape)
        self._seeds = list(seeds)
        self._kind = kind
        self._variation = variation
        self._seed_size = seed_size
        self._seed_delta = seed_delta
        self._sources = [kind.source(seed) for seed in seeds]
        self._begun = False

    def draw(self) -> Tensor:
        if not self._begun:
            self._begun = True
            return self._first()
        return self._stack([source.randn(self._shape) for source in self._sources])

    def _first(self) -> Tensor:
        noises = [self._starting(number) for number in range(len(self._seeds))]
        if self._seed_delta:
            # ENSD: what is drawn while sampling comes from other seeds than the start.
            self._sources = [self._kind.source(seed + self._seed_delta) for seed in self._seeds]
        return self._stack(noises)

    def _starting(self, number: int) -> Tensor:
        seed, source = self._seeds[number], self._sources[number]
        size = self._seed_size
        resized = (self._shape[0], size.height // LATENT_PIXELS, size.width // LATENT_PIXELS)
        shape = resized if size.given else self._shape
        foreign = shape != self._shape
        noise = (self._kind.source(seed) if foreign else source).randn(shape)
        if self._variation.strength != 0:
            seeds = self._variation.seeds
            subseed = seeds[number] if number < len(seeds) else 0
            noise = blend_on_sphere(self._variation.strength, noise, self._kind.source(subseed).randn(shape))
        return _in_the_middle(noise, source.randn(self._shape)) if foreign else noise

    def _stack(self, noises: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(noises)).to(self._kind.device)


class Drawing(Protocol):
    """Noise for a batch, one draw after the other."""

    def draw(self) -> Tensor: ...


@dataclass(frozen=True)
class NoisyLatent:
    """Each draw is a latent [1, C, H, W] in noise, as far as ``alpha`` (its share of the variance) says."""

    noise: Drawing
    latent: Tensor
    alpha: float

    def draw(self) -> Tensor:
        drawn = self.noise.draw()
        if drawn.shape[2:] != self.latent.shape[2:]:
            return drawn
        return torch.as_tensor(self.alpha**0.5 * self.latent.to(drawn) + (1 - self.alpha) ** 0.5 * drawn)


def _in_the_middle(inner: Tensor, outer: Tensor) -> Tensor:
    """``outer`` [C, H, W] with ``inner`` in its middle, cut where it is larger."""
    for axis in (1, 2):
        spare = (outer.shape[axis] - inner.shape[axis]) // 2
        if spare < 0:
            inner = inner.narrow(axis, -spare, inner.shape[axis] + 2 * spare)
    top, left = (max((outer.shape[axis] - inner.shape[axis]) // 2, 0) for axis in (1, 2))
    height = min(inner.shape[1], outer.shape[1] - top)
    width = min(inner.shape[2], outer.shape[2] - left)
    outer[:, top : top + height, left : left + width] = inner[:, :height, :width]
    return outer


NoiseBetween = Callable[[Tensor, Tensor], Tensor]
"""Noise for the step from one sigma to another."""


class BrownianNoise:
    """Noise that depends on the two sigmas of a step, not on how many steps there are.

    torchsde's Brownian tree with a tree per picture, as k-diffusion's ``BrownianTreeNoiseSampler``
    uses it for the SDE samplers.
    """

    def __init__(self, x: Tensor, sigmas: Tensor, seeds: Sequence[int], kind: RandomKind) -> None:
        # torchsde draws on the device of ``w0``; CPU noise therefore means a tree on the CPU.
        own = x.device if kind.name == "GPU" else torch.device("cpu")
        low, high = (float(edge) for edge in (sigmas[sigmas > 0].min(), sigmas.max()))
        zero = torch.zeros_like(x[0], device=own)
        self._device = x.device
        self._draw = _philox_randn if kind.name == "NV" else None
        with _drawing_with(self._draw):
            self._trees = [
                torchsde.BrownianTree(torch.tensor(low), zero, torch.tensor(high), entropy=seed)
                for seed in seeds
            ]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        start, end = (torch.as_tensor(value).detach().cpu() for value in (sigma, sigma_next))
        sign = 1.0 if start < end else -1.0
        low, high = (start, end) if start < end else (end, start)
        with _drawing_with(self._draw), warnings.catch_warnings():
            # torchsde rounds its ends and says so when a sigma lies beyond by that much.
            warnings.simplefilter("ignore", UserWarning)
            rises = torch.stack([tree(low, high) for tree in self._trees]) * sign
        return rises.to(self._device) / (end - start).abs().sqrt()


def _philox_randn(size: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    return PhiloxSource(int(seed)).randn(size).to(device=device, dtype=dtype)


class _drawing_with:
    """Let torchsde draw from another source for a while. It has no parameter for it."""

    def __init__(self, draw: Callable[..., Tensor] | None) -> None:
        self._replacement = draw

    def __enter__(self) -> None:
        if self._replacement is not None:
            from torchsde._brownian import brownian_interval

            self._original = brownian_interval._randn
            brownian_interval._randn = self._replacement

    def __exit__(self, *_: object) -> None:
        if self._replacement is not None:
            from torchsde._brownian import brownian_interval

            brownian_interval._randn = self._original
