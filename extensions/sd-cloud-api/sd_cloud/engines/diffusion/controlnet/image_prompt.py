"""Image prompts at work in one job: IP-Adapters, T2I's style adapter, and Revision.

They change what the U-Net is told, not what is added in it: an IP-Adapter's tokens stand beside the
prompt in every cross attention, a style adapter's words at the prompt's end, Revision's picture in the
place of SDXL's pooled prompt. When each works follows sd-webui-controlnet's ``hook.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.ip_adapter import (
    IPAdapter,
    Tokens,
    cross_attentions,
    transformer_places,
)
from sd_cloud.engines.diffusion.controlnet.pulid import beside_only, with_empty
from sd_cloud.engines.diffusion.controlnet.reference import Draw
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.errors import BadRequest

POOLED = 1280
REVISION_BETAS = (1e-4, 2e-2)
DIFFUSION_STEPS = 1000


@dataclass
class Prompting:
    """One unit. ``in_hires`` asks it as a unit whose maps differ between passes."""

    unit: ControlUnit

    def works(self, call: Call, *, in_hires: bool = False) -> bool:
        del in_hires
        return self.unit.guidance_start <= call.progress <= self.unit.guidance_end


@dataclass
class Revising(Prompting):
    """Revision (Stability AI): ``embedding`` [1, 1280] is in the pooled prompt's place."""

    embedding: Tensor
    draw: Draw
    noised: Tensor | None = field(default=None, init=False)

    def pooled(self) -> Tensor:
        """With as much noise as the unit asks for, the same in all calls."""
        if self.noised is None:
            level = min(max(int(self.unit.threshold_a * DIFFUSION_STEPS), 0), DIFFUSION_STEPS - 1)
            kept = _kept_at(level)
            noise = self.draw(self.embedding.shape).to(self.embedding)
            self.noised = self.embedding * kept**0.5 + noise * (1.0 - kept) ** 0.5
        return self.noised * self.unit.weight


def _kept_at(level: int) -> float:
    """The share of the signal that is left (Ho et al., arXiv 2006.11239), betas linear in their roots."""
    first, last = (one**0.5 for one in REVISION_BETAS)
    betas = torch.linspace(first, last, DIFFUSION_STEPS, dtype=torch.float64) ** 2
    return float(torch.cumprod(1.0 - betas, dim=0)[level])


@dataclass
class Styling(Prompting):
    """A style adapter's words [1, tokens, width].

    As in the extension, units with one file ``say`` what the first of them does that works.
    """

    words: Tensor
    say: list[Tensor]

    def works(self, call: Call, *, in_hires: bool = False) -> bool:
        chosen = {"Low res only": not in_hires, "High res only": in_hires}.get(self.unit.hires, True)
        return chosen and super().works(call)

    def said(self, call: Call) -> Tensor:
        if not self.say:
            self.say.append(self.words)
        return self.say[0].to(call.context) * self.unit.weight * call.marks[:, :, :, 0]


@dataclass
class Adapting(Prompting):
    """One IP-Adapter. ``size``: (width, height) of the first pass's latent.

    As in the extension, keys and values are those of its first call for the whole job: a later call
    with more or fewer rows sees the first one's, dealt out anew.
    """

    adapter: IPAdapter
    tokens: Tokens
    size: tuple[int, int]
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def weights(self, unet: UNet2DConditionModel) -> list[float]:
        """Of each cross attention. Raises BadRequest when ``advanced_weighting`` has another count."""
        places, own = transformer_places(unet), self.unit.layer_weights
        if own is None:
            return [self.unit.weight] * len(places)
        if len(own) != max(places) + 1:
            raise BadRequest(
                f"has {len(own)} numbers; an IP-Adapter has {max(places) + 1} here, one a transformer",
                field=f"{self.unit.field}.advanced_weighting",
            )
        return [max(own[place], 0.0) for place in places]

    def beside(self, number: int, attention: Any, there: Tensor, query: Tensor, marks: Tensor) -> Tensor:
        """What is added to one attention's output [N, places, width] before its last layer; ``there`` is
        its input."""
        if number not in self.kept:
            self.kept[number] = self._keys_and_values(number, marks)
        keys, values = self.kept[number]
        if keys.numel() % (query.shape[0] * keys.shape[2]):
            keys, values = self._keys_and_values(number, marks)
        heads = (query.shape[0], -1, attention.heads, query.shape[2] // attention.heads)
        q, k, v = (one.to(query).reshape(heads).transpose(1, 2) for one in (query, keys, values))
        made = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)
        if self.adapter.kind == "pulid":
            made = beside_only(made, there, q, k, self.unit.pulid_mode)
        return self._within_region(made)

    def _keys_and_values(self, number: int, marks: Tensor) -> tuple[Tensor, Tensor]:
        to_keys, to_values = self.adapter.layers[number]
        tokens = self.tokens.rows(marks.to(to_keys))
        if self.adapter.kind == "pulid":
            tokens = with_empty(tokens, self.unit.pulid_mode)
        return functional.linear(tokens, to_keys), functional.linear(tokens, to_values)

    def _within_region(self, made: Tensor) -> Tensor:
        if self.unit.region is None:
            return made
        width, height = self.size
        factor = math.sqrt(made.shape[1] / (width * height))
        size = (int(height * factor), int(width * factor))
        if size[0] * size[1] != made.shape[1]:
            raise BadRequest(
                f"the U-Net has {made.shape[1]} places at one of its levels, which are no multiple of the "
                f"picture's {width} x {height}; choose sides (and hires sides) that are multiples of 64",
                field=f"{self.unit.field}.effective_region_mask",
            )
        mask = torch.from_numpy(np.asarray(self.unit.region, np.float32) / 255.0)[None, None].to(made)
        return made * functional.interpolate(mask, size=size, mode="bilinear").reshape(1, -1, 1)


@dataclass(frozen=True)
class ImagePrompts:
    """All of a job's. ``promptless``: the request has neither a prompt nor a negative one."""

    units: tuple[Prompting, ...] = ()
    promptless: bool = False

    def anew(self) -> ImagePrompts:
        """The same before their first call: what they keep of it is no argument of their classes."""
        return replace(self, units=tuple(replace(one) for one in self.units))

    def said(self, call: Call, *, in_hires: bool) -> Call:
        """The call with what Revision and style adapters say in it."""
        call = self._revised(call)
        for unit in self.units:
            if isinstance(unit, Styling) and unit.works(call, in_hires=in_hires):
                call = replace(call, context=torch.cat([call.context, unit.said(call)], dim=1))
        return call

    def _revised(self, call: Call) -> Call:
        revising = [one for one in self.units if isinstance(one, Revising)]
        working = [one for one in revising if one.works(call)]
        if not working or call.labels is None:
            return call
        pooled = torch.stack([one.pooled() for one in working]).sum(dim=0).to(call.labels)
        labels = call.labels.clone()
        labels[:, :POOLED] = pooled * call.marks[:, :, 0, 0]
        silent = self.promptless or any("ignore_prompt" in one.unit.module.name for one in revising)
        context = torch.zeros_like(call.context) if silent else call.context
        return replace(call, labels=labels, context=context)

    @contextmanager
    def beside(self, unet: UNet2DConditionModel, call: Call) -> Iterator[None]:
        """The U-Net with the IP-Adapters in its cross attentions, for one call."""
        adapting = [one for one in self.units if isinstance(one, Adapting)]
        # A refiner may be of a family that the adapter is not made for.
        working = [one for one in adapting if one.works(call) and one.adapter.fits(unet)]
        hooks = []
        try:
            if working:
                weights = [one.weights(unet) for one in working]
                for number, attention in enumerate(cross_attentions(unet)):
                    pairs = [
                        (one, its[number]) for one, its in zip(working, weights, strict=True) if its[number]
                    ]
                    watched = _Watched(number, attention, pairs, call.marks)
                    hooks.append(attention.to_q.register_forward_hook(watched.asks))
                    hooks.append(attention.to_out[0].register_forward_pre_hook(watched.answers))
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass
class _Watched:
    """A cross attention, between its input and query and its last layer."""

    number: int
    attention: Any
    units: Sequence[tuple[Adapting, float]]
    marks: Tensor
    there: Tensor | None = None
    query: Tensor | None = None

    def asks(self, module: Any, inputs: Any, query: Tensor) -> None:
        self.there, self.query = inputs[0], query

    def answers(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.there is not None and self.query is not None
        made = inputs[0]
        for unit, weight in self.units:
            added = unit.beside(self.number, self.attention, self.there, self.query, self.marks)
            made = made + added * weight
        return (made, *inputs[1:])
