"""What some units do beside steering: to the U-Net's output, and to the decoded picture.

``tile_colorfix`` keeps the input's colours, ``inpaint_only`` what is outside its mask, the
recolor units the input's lightness. The formulas are sd-webui-controlnet's (``hook.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion.controlnet.call import Call
from sd_cloud.engines.diffusion.controlnet.maps import Map
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit

Finish = Callable[[Tensor], Tensor]
Encode = Callable[[Tensor], Tensor]


@dataclass
class Correction:
    """Changes predicted noise so that the picture it points to keeps something of the unit's image."""

    unit: ControlUnit
    encode: Encode
    latents: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __call__(self, noise: Tensor, call: Call, hint: Tensor, alphas_cumprod: Tensor) -> Tensor:
        """``noise``: [N, 4, h, w] predicted at ``call``; the share of the correction is the unit's weight."""
        noise = noise.float()  # near the last step alpha is 1 to within half precision
        noisy = call.latents[:, :4].float()
        own = self.latent(hint).to(noisy)
        alpha = alphas_cumprod.to(noisy.device)[call.timesteps.float().round().long()].to(noisy)
        alpha = alpha.view(-1, 1, 1, 1)
        pointed_to = (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        kept = self._kept(pointed_to, own, hint, call)
        corrected = (noisy - alpha.sqrt() * kept) / (1 - alpha).sqrt()
        share = min(max(self.unit.weight, 0.0), 1.0)
        return corrected * share + noise * (1 - share)

    def latent(self, hint: Tensor, encode: Encode | None = None) -> Tensor:
        """Of the hint's picture; encoded once, by ``encode`` where it has to be."""
        size = tuple(hint.shape[-2:])
        if size not in self.latents:
            self.latents[size] = (encode or self.encode)(hint[:, :3] * 2 - 1)
        return self.latents[size]

    def _kept(self, pointed_to: Tensor, own: Tensor, hint: Tensor, call: Call) -> Tensor:
        if self.unit.module.is_inpaint:
            mask = functional.max_pool2d(hint[:, 3:], 10, stride=8, padding=1).to(own)
            return pointed_to * mask + own * (1 - mask)
        doubled = call.hires and self.unit.hires != "Low res only"
        reach = int(self.unit.threshold_a) * (2 if doubled else 1)
        kept = pointed_to - low_part(pointed_to, reach) + low_part(own, reach)
        if "+sharp" in self.unit.module.name:
            share = self.unit.threshold_b * 0.01
            duller = share * low_part(kept, reach) + (1 - share) * kept
            marks = call.marks.to(kept)
            kept = marks * kept + (1 - marks) * duller
        return kept


def correction_for(unit: ControlUnit, encode: Encode) -> Correction | None:
    name = unit.module.name
    return Correction(unit, encode) if "colorfix" in name or "inpaint_only" in name else None


def low_part(latent: Tensor, reach: int) -> Tensor:
    """The mean over the (2 * reach + 1)² neighbours, the edge repeated outwards."""
    padded = functional.pad(latent, (reach,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * reach + 1, stride=1)


def finishes_for(units: Sequence[tuple[ControlUnit, Map]], blur_px: int) -> tuple[Finish, ...]:
    """What units do to the decoded picture, each given with its map at the final size.

    Of several that inpaint, or recolor, each takes the last one's map, as in the extension.
    """
    last = {_kind(unit): pixels for unit, pixels in units}
    finishes = [_finish_for(unit.module.name, last[_kind(unit)], blur_px) for unit, _ in units]
    return tuple(one for one in finishes if one is not None)


def _kind(unit: ControlUnit) -> str:
    return next((kind for kind in ("inpaint_only", "recolor") if kind in unit.module.name), "")


def _finish_for(module: str, pixels: Map, blur_px: int) -> Finish | None:
    if "inpaint_only" in module:
        return _PutBack.of_map(pixels, blur_px)
    if module == "recolor_luminance":
        return _Recolor(pixels[:, :, 0], cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0)
    if module == "recolor_intensity":
        return _Recolor(pixels[:, :, 0], cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2)
    return None


@dataclass(frozen=True)
class _PutBack:
    """The unit's own picture outside its mask, fading over the mask's widened edge."""

    own: Tensor
    mask: Tensor

    @classmethod
    def of_map(cls, pixels: Map, blur_px: int) -> _PutBack:
        mask = pixels[:, :, 3].astype(np.float32) / 255.0
        if blur_px > 0:
            wider = cv2.dilate(mask, np.ones((blur_px, blur_px), np.uint8))
            mask = np.asarray(cv2.blur(wider, (blur_px, blur_px)), np.float32)
        own = torch.from_numpy(pixels[:, :, :3].astype(np.float32) / 255.0).permute(2, 0, 1)
        return cls(own[None], torch.from_numpy(mask)[None, None])

    def __call__(self, made: Tensor) -> Tensor:
        if made.shape[-2:] != self.own.shape[-2:]:
            return made
        own, mask = self.own.to(made), self.mask.to(made)
        return (mask * made.clamp(0, 1) + (1 - mask) * own).clamp(0, 1)


@dataclass(frozen=True)
class _Recolor:
    """One channel of another colour space taken from the unit's map."""

    plane: NDArray[np.uint8]
    there: int
    back: int
    channel: int

    def __call__(self, made: Tensor) -> Tensor:
        if tuple(made.shape[-2:]) != self.plane.shape:
            return made
        return torch.stack([self._one(picture) for picture in made.cpu()]).to(made)

    def _one(self, picture: Tensor) -> Tensor:
        bytes_: NDArray[Any] = (picture.float().permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
        split = np.array(cv2.cvtColor(np.ascontiguousarray(bytes_), self.there))
        split[:, :, self.channel] = self.plane
        joined = np.asarray(cv2.cvtColor(split, self.back), np.float32) / 255.0
        return torch.from_numpy(joined).permute(2, 0, 1)
