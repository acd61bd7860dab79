"""What a ControlNet sees of one call of the U-Net, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One call of the U-Net. ``latents``: [N, C, h, w] as the U-Net gets them; ``timesteps``: [N].

    ``context``: [N, tokens, width]; ``labels``: SDXL's [N, width]; ``positive``: [N] bool, False
    where the row is the negative prompt's. ``progress``: the number of the last step that the
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
    """What is added inside the U-Net: after each of its down blocks' layers, and after the middle."""

    down: tuple[Tensor, ...]
    middle: Tensor
