"""reference_*: the U-Net sees a picture of the unit's own while it makes another, without a model.

Before each call the U-Net runs on the unit's image, noised like the picture being made, and keeps what
its self-attention reads (reference_only) or the mean and variance of its blocks' outputs
(reference_adain: Huang & Belongie, arXiv 1703.06868). The call itself then attends to both, or takes
over mean and variance. Which layers take part by which weight is sd-webui-controlnet's choice
(``hook.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted

ATTENDING = ("reference_only", "reference_adain+attn")
NORMING = ("reference_adain", "reference_adain+attn")
SDXL_FIDELITY_POWER = 3.0
LEAST_VARIANCE = 1e-6
LEAST_FIDELITY = 1e-5
#: LDM's numbers of the blocks that take over mean and variance, with and without a fourth level.
ENCODER_BLOCKS = {4: (4, 5, 7, 8, 10, 11), 3: (4, 5, 7, 8)}
DECODER_BLOCKS = {4: 8, 3: 6}

Draw = Callable[[Sequence[int]], Tensor]
Mode = Literal["write", "read"]


@dataclass
class Reference(Hinted):
    """One reference unit. ``draw`` gives the noise of a shape, ``encode`` a latent of pixels in -1..1."""

    encode: Callable[[Tensor], Tensor]
    draw: Draw
    latents: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def attends(self) -> bool:
        return self.unit.module.name in ATTENDING

    @property
    def norms(self) -> bool:
        return self.unit.module.name in NORMING

    def fidelity(self, call: Call, *, is_sdxl: bool) -> float:
        """How far the negative prompt's rows are left as they are: 0 to 1."""
        if self.unit.only_on_prompt:
            return 1.0
        if self.unit.soft or call.hires:
            return 0.0
        own = min(max(float(self.unit.threshold_a), 0.0), 1.0)
        return float(own**SDXL_FIDELITY_POWER) if is_sdxl else own

    def settle(self, call: Call) -> None:
        self._latent(call)

    def _latent(self, call: Call) -> Tensor:
        hint = self.hint_for(call)
        size = tuple(hint.shape[-2:])
        if size not in self.latents:
            self.latents[size] = self.encode(hint[:, :3] * 2 - 1)
        return self.latents[size]

    def noised(self, call: Call, alphas_cumprod: Tensor) -> Tensor:
        """The unit's image as a latent, with as much noise as the picture has; rows as the call's."""
        latent = self._latent(call).to(call.latents).expand(call.latents.shape[0], -1, -1, -1)
        alpha = alphas_cumprod.to(latent.device)[call.timesteps.float().round().long()].float()
        alpha = alpha.view(-1, 1, 1, 1)
        noise = self.draw(latent.shape).to(latent.device)
        noisy = (alpha.sqrt() * latent.float() + (1 - alpha).sqrt() * noise).to(latent)
        if call.latents.shape[1] == 9:  # an inpainting model's: mask and masked picture
            noisy = torch.cat([noisy, torch.zeros_like(noisy[:, :1]), latent], dim=1)
        return noisy


@dataclass(eq=False)
class Attending:
    """A self-attention of the U-Net that reads what it kept. ``place``: 0 for the widest, below 1."""

    attention: Any
    place: float
    bank: list[Tensor] = field(default_factory=list)
    fidelities: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Norming:
    """A block whose output's mean and variance are kept and taken over, from a weight of ``place`` on."""

    place: float
    means: list[Tensor] = field(default_factory=list)
    variances: list[Tensor] = field(default_factory=list)
    fidelities: list[float] = field(default_factory=list)


class Injection:
    """A U-Net with its self-attentions and blocks watched, for one call."""

    def __init__(self, unet: UNet2DConditionModel, positive: Tensor) -> None:
        self.unet = unet
        self.negative = ~positive
        self.attentions: Mode = "read"
        self.norms: Mode = "read"
        self.weight = self.fidelity = 0.0
        self.is_sdxl = unet.config["projection_class_embeddings_input_dim"] is not None

    @contextmanager
    def installed(self) -> Iterator[Injection]:
        """Everything is as it was afterwards, whatever happens in between."""
        attentions = [Attending(one, place) for one, place in _attentions(self.unet)]
        before = [one.attention.processor for one in attentions]
        hooks = []
        try:
            for one in attentions:
                one.attention.processor = self._processor(one, one.attention.processor)
            for module, place in _blocks(self.unet):
                hooks.append(module.register_forward_hook(self._hook(Norming(place))))
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            for one, processor in zip(attentions, before, strict=True):
                one.attention.processor = processor

    def write(self, reference: Reference, call: Call, run: Callable[[], Tensor]) -> None:
        """The U-Net on the reference's image, for what it keeps of it.

        What this unit does not write is read, and forgotten: a reference_adain unit after a
        reference_only one leaves nothing of it, as in the extension.
        """
        self.attentions = "write" if reference.attends else "read"
        self.norms = "write" if reference.norms else "read"
        self.weight = reference.unit.weight
        self.fidelity = reference.fidelity(call, is_sdxl=self.is_sdxl)
        run()
        self.attentions = self.norms = "read"

    def _processor(self, kept: Attending, processor: Any) -> Any:
        def attend(attention: Any, hidden_states: Tensor, *rest: Any, **words: Any) -> Tensor:
            if self.attentions == "write":
                if self.weight > kept.place:
                    kept.bank.append(hidden_states.detach().clone())
                    kept.fidelities.append(self.fidelity)
            elif kept.bank:
                return self._shared(kept, processor, hidden_states)
            return torch.as_tensor(processor(attention, hidden_states, *rest, **words))

        return attend

    def _shared(self, kept: Attending, processor: Any, own: Tensor) -> Tensor:
        """Attention to its own and the kept tokens; less of the kept for the negative prompt's rows."""
        fidelity = sum(kept.fidelities) / len(kept.fidelities)
        seen = torch.cat([own, *kept.bank], dim=1)
        kept.bank, kept.fidelities = [], []
        both: Tensor = processor(kept.attention, own, encoder_hidden_states=seen)
        if not bool(self.negative.any()) or fidelity <= LEAST_FIDELITY:
            return both
        strict = both.clone()
        strict[self.negative] = processor(kept.attention, own[self.negative])
        return fidelity * strict + (1.0 - fidelity) * both

    def _hook(self, kept: Norming) -> Callable[[nn.Module, Any, Any], Any]:
        def normed(module: nn.Module, args: Any, out: Any) -> Any:
            made = out[0] if isinstance(out, tuple) else out
            if self.norms == "write":
                if self.weight > kept.place:
                    variance, mean = torch.var_mean(made, dim=(2, 3), keepdim=True, correction=0)
                    kept.means.append(mean)
                    kept.variances.append(variance)
                    kept.fidelities.append(self.fidelity)
                return None
            if not kept.means:
                return None
            taken = self._taken_over(kept, made).to(made)
            return (taken, *out[1:]) if isinstance(out, tuple) else taken

        return normed

    def _taken_over(self, kept: Norming, made: Tensor) -> Tensor:
        fidelity = sum(kept.fidelities) / len(kept.fidelities)
        variance, mean = torch.var_mean(made, dim=(2, 3), keepdim=True, correction=0)
        other_mean = torch.stack(kept.means).mean(dim=0)
        other_variance = torch.stack(kept.variances).mean(dim=0)
        kept.means, kept.variances, kept.fidelities = [], [], []
        spread, other_spread = (one.clamp_min(LEAST_VARIANCE).sqrt() for one in (variance, other_variance))
        moved = (made - mean) / spread * other_spread + other_mean
        if not bool(self.negative.any()) or fidelity <= LEAST_FIDELITY:
            return moved
        strict = moved.clone()
        strict[self.negative] = made[self.negative].to(moved)
        return fidelity * strict + (1.0 - fidelity) * moved


def _attentions(unet: UNet2DConditionModel) -> list[tuple[Any, float]]:
    """Self-attentions with their places from 0: the widest first, then in the order they run."""
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    blocks = [
        layer
        for part in parts
        for transformer in getattr(part, "attentions", ())
        for layer in transformer.transformer_blocks
    ]
    blocks.sort(key=lambda layer: -int(layer.norm1.normalized_shape[0]))
    return [(layer.attn1, number / len(blocks)) for number, layer in enumerate(blocks)]


def _blocks(unet: UNet2DConditionModel) -> list[tuple[nn.Module, float]]:
    """What ends LDM's numbered blocks, with the weight from which each takes part."""
    levels = len(unet.down_blocks)
    encoder = ENCODER_BLOCKS.get(levels, ENCODER_BLOCKS[4])
    decoder = DECODER_BLOCKS.get(levels, DECODER_BLOCKS[4])
    per_level = int(unet.config["layers_per_block"]) + 1
    found: list[tuple[nn.Module, float]] = [(unet.mid_block, 0.0)]
    for place, number in enumerate(encoder):
        level, layer = divmod(number - 1, per_level)
        found.append((_end(unet.down_blocks[level], layer), 2 * (1.0 - place / len(encoder))))
    for number in range(decoder):
        level, layer = divmod(number, per_level)
        block = unet.up_blocks[level]
        last = layer == per_level - 1 and getattr(block, "upsamplers", None)
        found.append((block.upsamplers[0] if last else _end(block, layer), 2 * number / decoder))
    return found


def _end(block: Any, layer: int) -> nn.Module:
    """The last module of a block's layer: its transformer, or its residual where it has none."""
    attentions = getattr(block, "attentions", None)
    module: nn.Module = attentions[layer] if attentions else block.resnets[layer]
    return module
