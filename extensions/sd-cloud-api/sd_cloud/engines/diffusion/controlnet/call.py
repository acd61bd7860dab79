"""What a ControlNet sees of one call of the U-Net, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MARK = 1024.0


@dataclass(frozen=True)
class Call:
    """One call of the U-Net. ``latents``: [N, C, h, w] as the U-Net gets them; ``timesteps``: [N].

    ``context``: [N, tokens, width]; ``labels``: SDXL's [N, width]; ``positive``: [N] bool, False
    where the row is known to be the negative prompt's. ``progress``: the number of the last step that the
    sampler has reported, as a share of its steps (0.0 in the first two steps, as in the webui).
    """

    latents: Tensor
    timesteps: Tensor
    context: Tensor
    labels: Tensor | None
    positive: Tensor
    progress: float = 0.0
    hires: bool = False

    @property
    def marks(self) -> Tensor:
        """[N, 1, 1, 1]: 1 for the prompt's rows, 0 for the negative prompt's."""
        return self.positive.to(self.latents).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Residuals:
    """What is added inside the U-Net.

    ``down`` and ``middle``: to what its encoder's layers hand over, and after the middle (ControlNets).
    ``levels``: at the end of each level of its encoder (T2I-Adapters).
    """

    down: tuple[Tensor, ...]
    middle: Tensor | None
    levels: tuple[Tensor, ...] = ()

    def __add__(self, other: Residuals) -> Residuals:
        middles = [one for one in (self.middle, other.middle) if one is not None]
        middle = sum(middles[1:], middles[0]) if middles else None
        return Residuals(_sums(self.down, other.down), middle, _sums(self.levels, other.levels))


def _sums(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True)) if one and other else one or other


def inpaint_hint(hint: Tensor) -> Tensor:
    """What inpainting models were trained on: the picture, and -1 where it is to be painted."""
    if hint.shape[1] != 4:
        return hint
    masked = (hint[:, 3:] > 0.5).to(hint)
    return hint[:, :3] * (1 - masked) - masked


def with_marks(call: Call) -> Call:
    """The call with the token in front by which sd-webui-controlnet tells its units whose prompt it is.

    They take it off again; a U-Net that they do not reach takes it for the prompt's own.
    """
    signs = torch.where(call.positive, MARK, -MARK).to(call.context)
    token = signs[:, None, None].expand(-1, 1, call.context.shape[2])
    return replace(call, context=torch.cat([token, call.context], dim=1))
