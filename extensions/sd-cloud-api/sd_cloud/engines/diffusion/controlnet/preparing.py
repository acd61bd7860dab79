"""From the units of a request to what is at work in its job: models found and maps made, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.controlnet.adapter import Adapter, Adapting
from sd_cloud.engines.diffusion.controlnet.after import Encode, correction_for, finishes_for
from sd_cloud.engines.diffusion.controlnet.control import Control
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.controlnet.lllite import Lightening, LLLite
from sd_cloud.engines.diffusion.controlnet.maps import Canvas, Map, fit, perfect_resolution, unit_image
from sd_cloud.engines.diffusion.controlnet.model import ControlModel, ControlNet
from sd_cloud.engines.diffusion.controlnet.prompting import Prompter
from sd_cloud.engines.diffusion.controlnet.reference import Draw, Reference
from sd_cloud.engines.diffusion.controlnet.repaint import Repaint
from sd_cloud.engines.diffusion.controlnet.shelf import ControlNetShelf
from sd_cloud.engines.diffusion.controlnet.steering import Steering
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit, find_control_model
from sd_cloud.engines.diffusion.preprocess.detect import Detection, detect
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.errors import BadRequest, NotImplementedHere
from sd_cloud.job import Picture
from sd_cloud.settings import Settings

KEPT_MODELS = 2
INSTANT_ID = "instant_id"
"""In the name of a ControlNet that is told the face of the IP-Adapter before it, not the prompt."""


@dataclass(frozen=True)
class Surroundings:
    """What preparing a job's units needs from the engine.

    ``encode`` takes pixels [1, 3, H, W] in -1..1 to the latent the U-Net works on, ``encode_early`` with
    the random numbers from before img2img's pictures; ``draw`` gives what torch's own generator gives
    next in the webui. ``promptless``: the request has no prompt of either sign.
    """

    settings: Settings
    models: Sequence[ModelFile]
    unet: UNet2DConditionModel
    shelf: ControlNetShelf
    encode: Encode
    encode_early: Encode
    draw: Draw
    option: Callable[[str, Any], Any]
    promptless: bool = False


def prepare(units: Sequence[ControlUnit], canvas: Canvas, around: Surroundings) -> Control | None:
    """Find the models, make the maps; None without units.

    Raises BadRequest, CheckpointNotFound, CheckpointBroken and NotImplementedHere, each naming
    the unit's field.
    """
    if not units:
        return None
    if "block_out_channels" not in around.unet.config:
        raise NotImplementedHere("ControlNet is for SD 1, SD 2 and SDXL checkpoints", field=units[0].field)
    files = [
        None
        if one.module.model_free
        else find_control_model(one.model, around.models, field=f"{one.field}.model")
        for one in units
    ]
    units = [_settled(unit, canvas) for unit in units]
    maps = [None if unit.is_prompt else _maps(unit, canvas, around.settings) for unit in units]
    prompter = Prompter(canvas, around.settings, around.unet, around.draw)
    preparation = _Preparation(_encoding_once(around), prompter)
    for unit, file, its_maps in zip(units, files, maps, strict=True):
        preparation.add(unit, file, its_maps)
    return preparation.control()


@dataclass
class _Preparation:
    """Takes the units of a job one by one, with their models' files and their maps."""

    around: Surroundings
    prompter: Prompter
    units: list[Hinted] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    finals: list[tuple[ControlUnit, Map]] = field(default_factory=list)
    beginning: Tensor | None = None
    features: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, unit: ControlUnit, file: ModelFile | None, maps: tuple[Map, Map | None] | None) -> None:
        network = None if file is None else self._network(file, f"{unit.field}.model")
        if maps is None:
            self.pictures += [_picture(one) for one in self.prompter.add(unit, network)]
            return
        pixels, hires_pixels = maps
        if unit.save_map:
            self.pictures += [_picture(one) for one in (hires_pixels, pixels) if one is not None]
        hint, hires_hint = as_tensor(pixels), None if hires_pixels is None else as_tensor(hires_pixels)
        at_work = self._at_work(unit, hint, hires_hint, network)
        self.units.append(at_work)
        self.finals.append((unit, pixels if hires_pixels is None else hires_pixels))
        if unit.fills and at_work.correction is not None:
            self.beginning = at_work.correction.latent(hint, self.around.encode_early)

    def control(self) -> Control:
        around = self.around
        channels = int(around.unet.config["in_channels"])
        repaints = [Repaint.of(unit, channels, around.encode) for unit in self.units]
        unshown = around.option("control_net_no_detectmap", False)
        return Control(
            tuple(self.units),
            () if unshown else tuple(self.pictures),
            finishes_for(self.finals, int(around.option("control_net_inpaint_blur_sigma", 7))),
            self.beginning,
            self.prompter.prompts(around.promptless),
            tuple(one for one in repaints if one is not None),
        )

    def _network(self, file: ModelFile, where: str) -> ControlModel:
        keep = int(self.around.option("control_net_model_cache_size", KEPT_MODELS))
        return self.around.shelf.get(Path(file.filename), self.around.unet, keep, field=where)

    def _at_work(
        self, unit: ControlUnit, hint: Tensor, hires_hint: Tensor | None, network: ControlModel | None
    ) -> Hinted:
        correction = correction_for(unit, self.around.encode)
        match network:
            case None:
                return _reference(unit, hint, hires_hint, self.around)
            case Adapter():
                features = self.features.setdefault(id(network), [])
                return Adapting(unit, hint, hires_hint, network, features, correction=correction)
            case LLLite():
                return Lightening(unit, hint, hires_hint, network, correction=correction)
            case ControlNet():
                _check_hint(unit, network)
                told = INSTANT_ID in network.name.lower()
                face = self.prompter.face_before(unit) if told else None
                return Steering(unit, hint, hires_hint, network, face, correction=correction)
        raise BadRequest(
            f"{network.name} takes what an image prompt's preprocessor says of a picture, not a map; "
            "send 'ip-adapter-auto' or 'clip_vision'",
            field=f"{unit.field}.module",
        )


def _encoding_once(around: Surroundings) -> Surroundings:
    """Equal pictures (their values to a thousandth) become one latent, in all of a job's units."""
    latents: dict[bytes, Tensor] = {}

    def once(encode: Encode) -> Encode:
        def encoded(pixels: Tensor) -> Tensor:
            key = hashlib.sha1((pixels.float() * 1000).to(torch.int32).cpu().numpy().tobytes()).digest()
            if key not in latents:
                latents[key] = encode(pixels)
            return latents[key]

        return encoded

    return replace(around, encode=once(around.encode), encode_early=once(around.encode_early))


def _reference(unit: ControlUnit, hint: Tensor, hires_hint: Tensor | None, around: Surroundings) -> Reference:
    if unit.region is not None:
        raise BadRequest("is for units with a model", field=f"{unit.field}.effective_region_mask")
    return Reference(unit, hint, hires_hint, around.encode, around.draw)


def _settled(unit: ControlUnit, canvas: Canvas) -> ControlUnit:
    """``inpaint_only`` on top of img2img's own inpainting becomes the global form, as in the extension."""
    doubled = unit.module.name == "inpaint_only" and canvas.init_image is not None and canvas.mask is not None
    return replace(unit, module=MODULES["inpaint"]) if doubled else unit


def _maps(unit: ControlUnit, canvas: Canvas, settings: Settings) -> tuple[Map, Map | None]:
    """The unit's map at the picture's size, and at the hires pass's."""
    pixels, mode = unit_image(unit, canvas)
    size = canvas.latent_size
    resolution = unit.resolution
    if unit.pixel_perfect:
        resolution = perfect_resolution(pixels, size, mode)
    if unit.fills and mode == "Resize and Fill":
        pixels = fit(pixels.astype(np.float32), mode, canvas.latent_hires_size or size)  # to fill the borders
    detection = Detection(resolution, unit.threshold_a, unit.threshold_b, canvas.seed)
    found: Map = detect(unit.module, pixels, detection, settings, field=f"{unit.field}.module")
    if unit.module.is_inpaint:
        found = found.astype(np.float32)
    hires = canvas.latent_hires_size
    return fit(found, mode, size), None if hires is None else fit(found, mode, hires)


def _check_hint(unit: ControlUnit, network: ControlNet) -> None:
    channels = network.net.config["conditioning_channels"]
    if channels != 3:
        raise BadRequest(
            f"{network.name} takes maps of {channels} channels; preprocessors make 3",
            field=f"{unit.field}.model",
        )


def as_tensor(pixels: Map) -> Tensor:
    """[H, W, C] in 0..255 to [1, C, H, W] in 0..1."""
    return torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1).unsqueeze(0).contiguous()


def _picture(pixels: Map) -> Picture:
    """A map to show; where inpainting goes, it is half transparent."""
    if pixels.shape[2] == 4:
        pixels = np.dstack([pixels[:, :, :3], 255 - pixels[:, :, 3] // 2]).clip(0, 255).astype(np.uint8)
    return Picture(Image.fromarray(np.ascontiguousarray(pixels)), role="control_map")
