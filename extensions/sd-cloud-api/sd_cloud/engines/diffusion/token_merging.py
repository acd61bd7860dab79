"""Token merging: similar places of a picture share one query in self-attention (``token_merging_ratio``).

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion" (arXiv 2303.17604), as the webui asks for it:
self-attention at the U-Net's full resolution only, the top left place of every 2x2 stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

STRIDE = 2


@dataclass(frozen=True)
class Merge:
    """Which places [B, n, 1] stay, and which go into which of those that stay in any case.

    ``kept`` and ``gone`` count among the places that may go (``sources``), ``into`` among the others
    (``targets``).
    """

    sources: Tensor
    targets: Tensor
    kept: Tensor
    gone: Tensor
    into: Tensor

    def merged(self, x: Tensor) -> Tensor:
        """[B, N, C] with fewer places: those kept, then the targets as means of what went into them."""
        sources, targets = _taken(x, self.sources), _taken(x, self.targets)
        into = self.into.expand(-1, -1, x.shape[-1])
        targets = targets.scatter_reduce(-2, into, _taken(sources, self.gone), reduce="mean")
        return torch.cat([_taken(sources, self.kept), targets], dim=1)

    def spread(self, x: Tensor) -> Tensor:
        """Back to all places: what went has the value of what it went into."""
        kept, targets = x[:, : self.kept.shape[1]], x[:, self.kept.shape[1] :]
        count, width = self.sources.shape[1] + self.targets.shape[1], x.shape[-1]
        sources = self.sources.expand(x.shape[0], -1, -1)
        out = x.new_zeros(x.shape[0], count, width)
        for places, values in (
            (self.targets.expand(x.shape[0], -1, -1), targets),
            (sources.gather(1, self.kept), kept),
            (sources.gather(1, self.gone), _taken(targets, self.into)),
        ):
            out.scatter_(1, places.expand(-1, -1, width), values)
        return out


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places.expand(x.shape[0], -1, x.shape[-1]))


@torch.no_grad()
def plan(x: Tensor, height: int, width: int, count: int) -> Merge | None:
    """Merge ``count`` of the places of [B, height * width, C] into the most similar targets."""
    if count <= 0:
        return None
    stays = torch.zeros(height, width, dtype=torch.int64, device=x.device)
    stays[: height // STRIDE * STRIDE : STRIDE, : width // STRIDE * STRIDE : STRIDE] = -1
    order = stays.reshape(1, -1, 1).argsort(dim=1, stable=True)
    targets_count = (height // STRIDE) * (width // STRIDE)
    sources, targets = order[:, targets_count:], order[:, :targets_count]
    unit = x / x.norm(dim=-1, keepdim=True)
    likeness = _taken(unit, sources) @ _taken(unit, targets).transpose(-1, -2)
    count = min(sources.shape[1], count)
    most, most_like = likeness.max(dim=-1)
    ranked = most.argsort(dim=-1, descending=True)[..., None]
    gone = ranked[:, :count]
    return Merge(sources, targets, ranked[:, count:], gone, most_like[..., None].gather(-2, gone))


class _Block:
    """The hooks around one transformer block's self-attention."""

    def __init__(self, state: _Size, ratio: float) -> None:
        self.state = state
        self.ratio = ratio
        self.merge: Merge | None = None

    def enters(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x: Tensor = arguments[0]
        height, width = self.state.height, self.state.width
        full = x.shape[1] == height * width
        self.merge = plan(x, height, width, int(x.shape[1] * self.ratio)) if full else None

    def attends(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.merge is None else (self.merge.merged(arguments[0]), *arguments[1:])

    def attended(self, module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor | None:
        return None if self.merge is None else self.merge.spread(out)


@dataclass
class _Size:
    """Of the latent that the U-Net is at."""

    height: int = 0
    width: int = 0

    def sees(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.height, self.width = arguments[0].shape[-2:]


@contextmanager
def token_merging(unet: nn.Module, ratio: float) -> Iterator[None]:
    """Have a U-Net merge this share of its places (0 to 0.9) for a while."""
    if ratio <= 0:
        yield
        return
    size = _Size()
    hooks = [unet.register_forward_pre_hook(size.sees)]
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            one = _Block(size, ratio)
            hooks += [
                block.register_forward_pre_hook(one.enters),
                block.attn1.register_forward_pre_hook(one.attends),
                block.attn1.register_forward_hook(one.attended),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
