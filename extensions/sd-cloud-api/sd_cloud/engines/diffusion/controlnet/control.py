"""ControlNet at work in one job: maps made once, residuals into the U-Net at each of its calls.

How much reaches the U-Net, and when, follows sd-webui-controlnet's ``hook.py``: a unit works while
``guidance_start <= step / steps <= guidance_end``; "My prompt is more important" weighs the layers
by powers of 0.825; "ControlNet is more important" does so too and leaves the negative prompt alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.controlnet.adapter import Adapter, Adapting
from sd_cloud.engines.diffusion.controlnet.after import (
    Correction,
    Finish,
    correction_for,
    finish_for,
)
from sd_cloud.engines.diffusion.controlnet.call import Call, Hinted, Residuals, inpaint_hint
from sd_cloud.engines.diffusion.controlnet.image_prompt import ImagePrompts
from sd_cloud.engines.diffusion.controlnet.ip_adapter import Tokens
from sd_cloud.engines.diffusion.controlnet.lllite import Lightening, LLLite, lightened
from sd_cloud.engines.diffusion.controlnet.maps import Canvas, Map, fit, perfect_resolution, unit_image
from sd_cloud.engines.diffusion.controlnet.model import ControlModel, ControlNet, load_control_model
from sd_cloud.engines.diffusion.controlnet.prompting import Prompter
from sd_cloud.engines.diffusion.controlnet.reference import Draw, Injection, Reference
from sd_cloud.engines.diffusion.controlnet.repaint import Repaint
from sd_cloud.engines.diffusion.controlnet.union import UnionNet
from sd_cloud.engines.diffusion.controlnet.units import UNION_TYPES, ControlUnit, find_control_model
from sd_cloud.engines.diffusion.eight_bits import EIGHT_BITS
from sd_cloud.engines.diffusion.preprocess.detect import Detection, detect
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.errors import BadRequest, NotImplementedHere
from sd_cloud.job import Picture
from sd_cloud.settings import Settings

__all__ = ["Call", "Canvas", "Control", "ControlNetShelf", "Residuals", "Surroundings", "prepare"]

Forward = Callable[[Call, Residuals | None], Tensor]

SOFT_BASE = 0.825
SOFT_LAYERS = 13
SDXL_LAYERS = 10
KEPT_MODELS = 2
INSTANT_ID = "instant_id"
"""In the name of a ControlNet that is told the face of the IP-Adapter before it, not the prompt."""
HARD_EDGES = ("canny", "mlsd")
"""Maps whose control is softened in the hires pass, whatever the mode."""


class ControlNetShelf:
    """Loaded control models, the last few kept (``control_net_model_cache_size``)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], ControlModel] = OrderedDict()

    def get(self, path: Path, unet: UNet2DConditionModel, keep: int, *, field: str) -> ControlModel:
        """Raises what :func:`load_control_model` raises."""
        parameter = next(one for one in unet.parameters() if one.dtype != EIGHT_BITS)
        heads = tuple(np.atleast_1d(unet.config["attention_head_dim"]).tolist())
        widths = tuple(unet.config["block_out_channels"])
        key = (path, path.stat().st_mtime_ns, widths, heads, parameter.device, parameter.dtype)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while self._kept and len(self._kept) >= max(keep, 1):
            self._kept.popitem(last=False)
        found = load_control_model(path, unet, device=parameter.device, dtype=parameter.dtype, field=field)
        if keep > 0 and not found.bound:
            self._kept[key] = found
        return found

    def clear(self) -> None:
        self._kept.clear()


@dataclass
class Steering(Hinted):
    """One unit ready to work: its network, its maps, and what it changes in the U-Net's output."""

    network: ControlNet
    correction: Correction | None
    face: Tokens | None = None

    def settle(self, call: Call) -> None:
        if self.correction is not None:
            self.correction.latent(self.hint_for(call))

    def residuals(self, call: Call) -> list[Tensor]:
        """The network's outputs, weighed; the middle's is the last."""
        net = self.network.net
        latents = call.latents[:, : net.config["in_channels"]]
        down, middle = net(
            latents,
            call.timesteps,
            encoder_hidden_states=call.context if self.face is None else self.face.rows(call.marks),
            controlnet_cond=inpaint_hint(self.hint_for(call)).to(latents),
            class_labels=call.labels,
            return_dict=False,
            **({"types": self.types(net.types)} if isinstance(net, UnionNet) else {}),
        )
        layers = [*down, middle]
        if self.unit.only_on_prompt or self.network.averaged:
            layers = [layer * call.marks for layer in layers]
        weights = self.layer_weights(len(layers), call.hires)
        layers = [self.within_region(layer * weight) for layer, weight in zip(layers, weights, strict=True)]
        if self.network.averaged:
            layers = [layer.mean(dim=(2, 3), keepdim=True) for layer in layers]
        return layers

    def types(self, count: int) -> list[int]:
        """What kind of map a Union is told it has: one of its first ``count`` types, or none."""
        place = UNION_TYPES.index(self.unit.union_type)
        if place == len(UNION_TYPES) - 1:
            return []
        if place >= count:
            raise BadRequest(
                f"{self.network.name} knows {', '.join(UNION_TYPES[:count])}",
                field=f"{self.unit.field}.union_control_type",
            )
        return [place]

    def layer_weights(self, count: int, hires: bool) -> list[float]:
        """A weight for each of the network's ``count`` outputs, shallow to deep, the middle last.

        Raises BadRequest when ``advanced_weighting`` has another number of them.
        """
        own = self.unit.layer_weights
        if own is not None:
            if len(own) != count:
                raise BadRequest(
                    f"has {len(own)} numbers; this model has {count} layers",
                    field=f"{self.unit.field}.advanced_weighting",
                )
            return list(own)
        if not softened(self.unit, hires):
            return [self.unit.weight] * count
        # The extension counts 13 layers for SDXL too, which has 10, and takes the first 10.
        return [self.unit.weight * SOFT_BASE ** (SOFT_LAYERS - 1 - layer) for layer in range(count)]


def softened(unit: ControlUnit, hires: bool) -> bool:
    """Whether the unit's shallow layers weigh less than its deep ones."""
    return unit.soft or (hires and any(edge in unit.module.name for edge in HARD_EDGES))


def _sum(total: list[Tensor] | None, layers: list[Tensor]) -> list[Tensor]:
    return layers if total is None else [a + b for a, b in zip(total, layers, strict=True)]


@dataclass
class Control:
    """All units of a job. ``maps``: the control maps to answer.

    ``beginning``: a latent [1, C, h, w] that the noise to begin with holds something of.
    """

    units: tuple[Hinted, ...]
    maps: tuple[Picture, ...]
    finishes: tuple[Finish, ...] = field(default=())
    beginning: Tensor | None = None
    prompts: ImagePrompts = field(default_factory=ImagePrompts)
    repaints: tuple[Repaint, ...] = field(default=())

    @property
    def steerings(self) -> list[Steering]:
        return [one for one in self.units if isinstance(one, Steering)]

    def run(self, call: Call, unet: UNet2DConditionModel, forward: Forward, alphas_cumprod: Tensor) -> Tensor:
        """The U-Net's output at this call, with all that the units change in it.

        ``forward`` runs the U-Net on a call, with residuals.
        """
        second = call.hires and any(one.hires_hint is not None for one in self.units)
        call = self.prompts.said(call, in_hires=second)
        with self.prompts.beside(unet, call), lightened(unet, self.units, call):
            return self._run(call, unet, forward, alphas_cumprod)

    def _run(
        self, call: Call, unet: UNet2DConditionModel, forward: Forward, alphas_cumprod: Tensor
    ) -> Tensor:
        for unit in self.units:
            unit.settle(call)
        added = self.residuals(call)
        seen = call
        for repaint in self.repaints:
            seen = replace(seen, latents=repaint(call, seen.latents))
        working = [one for one in self.units if isinstance(one, Reference) and one.works(call)]
        if not working:
            return self.correct(forward(seen, added), call, alphas_cumprod)
        with Injection(unet, call.positive).installed() as injection:
            for one in working:
                noisy = replace(call, latents=one.noised(call, alphas_cumprod))
                injection.write(one, call, partial(forward, noisy, None))
            return self.correct(forward(seen, added), call, alphas_cumprod)

    def residuals(self, call: Call) -> Residuals | None:
        """What to add inside the U-Net at this call; None when no unit works in it."""
        layers: list[Tensor] | None = None
        levels: list[Tensor] | None = None
        for unit in self.units:
            if isinstance(unit, Steering) and unit.works(call):
                layers = _sum(layers, unit.residuals(call))
            if isinstance(unit, Adapting) and unit.works(call):
                levels = _sum(levels, unit.levels(call, softened=softened(unit.unit, call.hires)))
        if layers is None and levels is None:
            return None
        down, middle = (tuple(layers[:-1]), layers[-1]) if layers else ((), None)
        return Residuals(down, middle, tuple(levels or ()))

    def correct(self, noise: Tensor, call: Call, alphas_cumprod: Tensor) -> Tensor:
        """The U-Net's output with what ``tile_colorfix`` and ``inpaint_only`` change in it."""
        for unit in self.units:
            if isinstance(unit, (Steering, Adapting)) and unit.correction is not None:
                noise = unit.correction(noise, call, unit.hint_for(call), alphas_cumprod)
        return noise

    def finish(self, pixels: Tensor) -> Tensor:
        """Decoded pictures [N, 3, H, W] in 0..1, with what recoloring and inpainting put back."""
        for finish in self.finishes:
            pixels = finish(pixels)
        return pixels


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
    encode: Callable[[Tensor], Tensor]
    encode_early: Callable[[Tensor], Tensor]
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
    prompter = Prompter(canvas, around.settings, around.unet, around.draw)
    made = [None if unit.is_prompt else _maps(unit, canvas, around.settings) for unit in units]
    keep = int(around.option("control_net_model_cache_size", KEPT_MODELS))
    at_work: list[Hinted] = []
    finishes, pictures = [], []
    beginning = None
    for unit, file, maps in zip(units, files, made, strict=True):
        network = None
        if file is not None:
            network = around.shelf.get(Path(file.filename), around.unet, keep, field=f"{unit.field}.model")
        if maps is None:
            pictures += [_picture(one) for one in prompter.add(unit, network)]
            continue
        pixels, hires_pixels = maps
        if unit.save_map:
            pictures += [_picture(one) for one in (hires_pixels, pixels) if one is not None]
        hint, hires_hint = as_tensor(pixels), None if hires_pixels is None else as_tensor(hires_pixels)
        if network is None:
            at_work.append(_reference(unit, hint, hires_hint, around))
            continue
        correction = correction_for(unit, around.encode)
        if isinstance(network, Adapter):
            at_work.append(Adapting(unit, hint, hires_hint, network, correction))
        elif isinstance(network, LLLite):
            at_work.append(Lightening(unit, hint, hires_hint, network))
        elif isinstance(network, ControlNet):
            _check_hint(unit, network)
            face = prompter.face_before(unit) if INSTANT_ID in network.name.lower() else None
            at_work.append(Steering(unit, hint, hires_hint, network, correction, face))
        else:
            raise BadRequest(
                f"{network.name} takes what an image prompt's preprocessor says of a picture, not a map; "
                "send 'ip-adapter-auto' or 'clip_vision'",
                field=f"{unit.field}.module",
            )
        if correction is not None and unit.fills:
            beginning = correction.latent(hint, around.encode_early)
        final = pixels if hires_pixels is None else hires_pixels
        finish = finish_for(unit, final, int(around.option("control_net_inpaint_blur_sigma", 7)))
        finishes += [finish] if finish else []
    channels = int(around.unet.config["in_channels"])
    repaints = tuple(
        found for unit in at_work if (found := Repaint.of(unit, channels, around.encode)) is not None
    )
    shown = () if around.option("control_net_no_detectmap", False) else tuple(pictures)
    prompts = prompter.prompts(around.promptless)
    return Control(tuple(at_work), shown, tuple(finishes), beginning, prompts, repaints)


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
