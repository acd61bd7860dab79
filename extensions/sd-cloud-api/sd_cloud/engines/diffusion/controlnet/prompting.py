"""From units to the image prompts of a job: pictures looked at, models asked what they make of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sd_cloud.engines.diffusion.controlnet.image_prompt import (
    Adapting,
    ImagePrompts,
    Prompting,
    Revising,
    Styling,
)
from sd_cloud.engines.diffusion.controlnet.ip_adapter import IPAdapter, Tokens, mean_tokens
from sd_cloud.engines.diffusion.controlnet.ip_adapter_names import module_for
from sd_cloud.engines.diffusion.controlnet.maps import Canvas, Map, perfect_resolution, unit_image
from sd_cloud.engines.diffusion.controlnet.reference import Draw
from sd_cloud.engines.diffusion.controlnet.style_adapter import StyleAdapter
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.engines.diffusion.preprocess.clip_vision import Seen
from sd_cloud.engines.diffusion.preprocess.embedding import Embedding, embed
from sd_cloud.engines.diffusion.preprocess.table import AUTO
from sd_cloud.errors import BadRequest
from sd_cloud.settings import Settings

CELL_PX = 8


@dataclass
class Prompter:
    """Takes the units of a job one by one."""

    canvas: Canvas
    settings: Settings
    unet: UNet2DConditionModel
    draw: Draw
    units: list[Prompting] = field(default_factory=list)
    said: dict[int, list[Tensor]] = field(default_factory=dict)

    def prompts(self, promptless: bool) -> ImagePrompts:
        return ImagePrompts(tuple(self.units), promptless)

    def add(self, unit: ControlUnit, model: Any) -> list[Map]:
        """The pictures it looked at, to be shown. ``model`` is the unit's loaded one, or None.

        Raises BadRequest and NotImplementedHere, naming the unit's field.
        """
        if not isinstance(model, IPAdapter | StyleAdapter | None):
            raise BadRequest(
                f"{unit.module_sent!r} says what is in a picture, and makes no map for {model.name}",
                field=f"{unit.field}.module",
            )
        if unit.region is not None and not isinstance(model, IPAdapter):
            where = f"{unit.field}.effective_region_mask"
            raise BadRequest("is for ControlNets, T2I-Adapters and IP-Adapters", field=where)
        seen, pictures = self._looked(unit)
        self.units.append(self._prompting(unit, model, seen))
        return pictures if unit.save_map else []

    def face_before(self, unit: ControlUnit) -> Tokens:
        """What the unit before this one, an IP-Adapter, makes of its picture: InstantID's ControlNet is
        told so in the prompt's place. Raises BadRequest where there is none."""
        before = next((one for one in self.units if one.unit.number == unit.number - 1), None)
        if not isinstance(before, Adapting):
            raise BadRequest(
                "InstantID's ControlNet takes the face of its IP-Adapter; send that as the unit before it",
                field=f"{unit.field}.model",
            )
        return before.tokens

    def _looked(self, unit: ControlUnit) -> tuple[list[Embedding], list[Map]]:
        if unit.embeddings:
            return [_sent(one, f"{unit.field}.ipadapter_input") for one in unit.embeddings], []
        canvas = replace(self.canvas, crop=None) if unit.more_images else self.canvas
        pairs = ((unit.image, unit.mask), *unit.more_images)
        pictures = [unit_image(replace(unit, image=one, mask=mask), canvas)[0] for one, mask in pairs]
        module = module_for(unit) if unit.module.name == AUTO else unit.module
        resolution = unit.resolution
        if unit.pixel_perfect:
            resolution = perfect_resolution(pictures[0], canvas.latent_size, unit.resize_mode)
        where = f"{unit.field}.module"
        seen = [embed(module, one, resolution, self.settings, field=where) for one in pictures]
        shown = [one.person.shown if one.person else image for one, image in zip(seen, pictures, strict=True)]
        return seen, shown

    def _prompting(self, unit: ControlUnit, model: Any, seen: list[Embedding]) -> Prompting:
        if isinstance(model, StyleAdapter):
            said = self.said.setdefault(id(model), [])
            return Styling(unit, model.words(seen[0], unit.field), said)
        if isinstance(model, IPAdapter):
            tokens = mean_tokens([model.tokens(one, self.settings, unit.field) for one in seen])
            width, height = self.canvas.latent_size
            adapting = Adapting(unit, model, tokens, (width // CELL_PX, height // CELL_PX))
            adapting.weights(self.unet)  # refused now rather than at the first step
            return adapting
        if self.unet.config["projection_class_embeddings_input_dim"] is None:
            raise BadRequest(f"{unit.module_sent!r} is for SDXL checkpoints", field=f"{unit.field}.module")
        looked = seen[0].seen
        assert looked is not None
        return Revising(unit, looked.projected, self.draw)


def _sent(data: bytes, field: str) -> Embedding:
    """What the extension's ``/controlnet/detect`` saved: a CLIP's outputs, or a face's numbers."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        fact = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadRequest(f"is not a pickle of tensors only ({fact})", field=field) from error
    if isinstance(found, Tensor):
        return Embedding(face=found.float().reshape(1, -1))
    if isinstance(found, Mapping):
        try:
            hidden, last = found["hidden_states"], found["last_hidden_state"]
            return Embedding(Seen(hidden[-2].float(), last.float(), found["image_embeds"].float()))
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise BadRequest(f"lacks what a CLIP network answers: {error}", field=field) from error
    raise BadRequest(f"holds a {type(found).__name__}, not a CLIP network's or a face's numbers", field=field)
