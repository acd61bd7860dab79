"""What img2img and inpainting make of the source pictures before sampling.

The order of steps, and which picture each is done to, are the webui's
(``StableDiffusionProcessingImg2Img.init``).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.latents import Coder, to_unit
from sd_cloud.engines.diffusion.noise import BatchNoise, RandomKind, Source
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.engines.diffusion.request import Source as SourceFields
from sd_cloud.engines.diffusion.taesd import mark_method
from sd_cloud.errors import BadRequest

LATENT_PIXELS = 8
FILL, ORIGINAL, LATENT_NOISE, LATENT_NOTHING = range(4)
CROP_LATER = 3  # resize_mode "just resize (latent upscale)"
Enlarge = Callable[[Image.Image, int, int], Image.Image]


@dataclass(frozen=True)
class MaskPlan:
    """The mask at each of its uses. ``for_latent`` decides where; None where nothing is masked."""

    image: Image.Image | None
    for_overlay: Image.Image | None
    crop: pictures.Box | None
    paste_to: pictures.Box | None
    whole: Image.Image | None = None


NO_MASK = MaskPlan(None, None, None, None)


@dataclass(frozen=True)
class Prepared:
    """Ready to sample. ``keep``/``change`` [C, h, w]: 1 where the latent stays or is made anew.

    ``condition`` is what some models see beside the latent: [B, 5, h, w] for inpainting, [B, 4, h, w]
    for InstructPix2Pix. ``always_over``: the overlays count whatever ``overlay_inpaint`` says.
    """

    latent: Tensor
    pixels: Tensor
    keep: Tensor | None
    change: Tensor | None
    mask: Image.Image | None
    mask_for_overlay: Image.Image | None
    overlays: tuple[Image.Image, ...]
    paste_to: pictures.Box | None
    colour_targets: tuple[NDArray[np.uint8], ...]
    batch_size: int
    whole_mask: Image.Image | None = None
    crop: pictures.Box | None = None
    condition: Tensor | None = None
    always_over: bool = False


@dataclass
class Preparation:
    """The request's source, with what is needed to make latents of it.

    ``marks`` and ``comments`` are written to. ``source`` draws the VAE's noise. ``colour_target``:
    what colours are matched to instead of the source pictures'.
    """

    request: Request
    options: Options
    coder: Coder
    enlarge: Enlarge
    source: Source
    random: RandomKind
    seeds: list[int]
    marks: MutableMapping[str, Any]
    comments: list[str]
    colour_target: NDArray[np.uint8] | None = None

    def run(self) -> Prepared:
        request, fields = self.request, self.fields
        self.marks["Denoising strength"] = request.denoising_strength
        plan = self._mask_plan()
        latent_mask = plan.image
        if fields.latent_mask is not None:
            latent_mask = pictures.decode_picture(fields.latent_mask, "latent_mask")
        images, overlays, targets = self._images(plan, latent_mask)
        batch_size = request.batch_size
        if len(images) == 1:
            images, overlays, targets = images * batch_size, overlays * batch_size, targets * batch_size
        elif len(images) <= batch_size:
            batch_size = len(images)
        else:
            raise BadRequest(
                f"has {len(images)} pictures, and batch_size is {batch_size}: send one, or as many as that",
                field="init_images",
            )
        if len({image.size for image in images}) > 1:
            raise BadRequest("must all have one size with resize_mode 3", field="init_images")
        pixels = to_unit(images).to(self.random.device)
        mark_method("sd_vae_encode_method", self.options, self.marks)
        latent = self.coder.encode(pixels * 2 - 1, self.source)
        if fields.resize_mode == CROP_LATER:
            size = (request.height // LATENT_PIXELS, request.width // LATENT_PIXELS)
            latent = functional.interpolate(latent, size=size, mode="bilinear")
        keep = change = None
        if plan.image is not None and latent_mask is not None:
            change = self._latent_mask(latent_mask, latent)
            keep = 1.0 - change
            latent = self._fill_latent(latent, keep, change)
        return Prepared(
            latent=latent,
            pixels=pixels * 2 - 1,
            keep=keep,
            change=change,
            mask=plan.image,
            mask_for_overlay=plan.for_overlay,
            overlays=tuple(overlays),
            paste_to=plan.paste_to,
            colour_targets=tuple(targets),
            batch_size=batch_size,
            whole_mask=plan.whole,
            crop=plan.crop,
        )

    @property
    def fields(self) -> SourceFields:
        assert self.request.source is not None
        return self.request.source

    # --- masks ------------------------------------------------------------------------------------

    def _mask_plan(self) -> MaskPlan:
        fields, request = self.fields, self.request
        if fields.mask is None:
            return NO_MASK
        mask = pictures.binary_mask(pictures.decode_picture(fields.mask, "mask"), rounded=fields.mask_round)
        if fields.invert_mask:
            mask = ImageOps.invert(mask)
            self.marks["Mask mode"] = "Inpaint not masked"
        mask = pictures.blur_mask(mask, fields.mask_blur_x, fields.mask_blur_y)
        if fields.mask_blur_x > 0 or fields.mask_blur_y > 0:
            same = fields.mask_blur_x == fields.mask_blur_y
            self.marks["Mask blur"] = fields.mask_blur_x if same else None
        if not fields.full_res:
            whole = mask
            mask = pictures.resize(min(fields.resize_mode, 2), mask, request.width, request.height)
            doubled = np.clip(np.asarray(mask).astype(np.float32) * 2, 0, 255).astype(np.uint8)
            return MaskPlan(mask, Image.fromarray(doubled), None, None, whole)
        region = pictures.masked_region(mask.convert("L"), fields.full_res_padding)
        if region is None:
            self.comments.append(
                'Unable to perform "Inpaint Only mask" because mask is blank, switch to img2img mode.'
            )
            return NO_MASK
        crop = pictures.expand_region(region, request.width, request.height, mask.width, mask.height)
        left, top, right, bottom = crop
        self.marks["Inpaint area"] = "Only masked"
        self.marks["Masked area padding"] = fields.full_res_padding
        cut = pictures.resize(2, mask.convert("L").crop(crop), request.width, request.height)
        return MaskPlan(cut, mask, crop, (left, top, right - left, bottom - top), mask)

    def _latent_mask(self, mask: Image.Image, latent: Tensor) -> Tensor:
        """[C, h, w]: 1 where the picture is to be made anew."""
        small = mask.convert("RGB").resize((latent.shape[3], latent.shape[2]))
        shares = np.asarray(small, dtype=np.float32)[..., 0] / 255
        if self.fields.mask_round:
            shares = np.around(shares)
        return torch.from_numpy(shares)[None].expand(latent.shape[1], -1, -1).to(latent)

    def _fill_latent(self, latent: Tensor, keep: Tensor, change: Tensor) -> Tensor:
        if self.fields.fill == LATENT_NOISE:
            self.marks["Masked content"] = "latent noise"
            seeds = self.seeds[: latent.shape[0]]
            return latent * keep + BatchNoise(latent.shape[1:], seeds, self.random).draw() * change
        if self.fields.fill == LATENT_NOTHING:
            self.marks["Masked content"] = "latent nothing"
            return latent * keep
        return latent

    # --- pictures ---------------------------------------------------------------------------------

    def _images(
        self, plan: MaskPlan, latent_mask: Image.Image | None
    ) -> tuple[list[Image.Image], list[Image.Image], list[NDArray[np.uint8]]]:
        fields, request = self.fields, self.request
        images, overlays, targets = [], [], []
        for number, encoded in enumerate(fields.images):
            image = pictures.decode_picture(encoded, f"init_images[{number}]")
            image = pictures.flatten(image, self.options.text("img2img_background_color"))
            if plan.crop is None and fields.resize_mode != CROP_LATER:
                image = pictures.resize(
                    fields.resize_mode, image, request.width, request.height, self.enlarge
                )
            if plan.image is not None and plan.for_overlay is not None:
                over = plan.for_overlay
                if over.size != image.size:
                    over = pictures.resize(min(fields.resize_mode, 2), over, *image.size)
                overlays.append(pictures.overlay_of(image, over))
            if plan.crop is not None:
                image = pictures.resize(2, image.crop(plan.crop), request.width, request.height, self.enlarge)
            if plan.image is not None and latent_mask is not None and fields.fill != ORIGINAL:
                image = pictures.fill_masked(image, _sized(latent_mask, image))
                if fields.fill == FILL:
                    self.marks["Masked content"] = "fill"
            if self.colour_target is None and self.options.flag("img2img_color_correction"):
                targets.append(pictures.colour_target(image))
            images.append(image)
        if self.colour_target is not None:
            targets.append(self.colour_target)
        return images, overlays, targets


def _sized(mask: Image.Image, image: Image.Image) -> Image.Image:
    return mask if mask.size == image.size else mask.resize(image.size)


@torch.no_grad()
def inpainting_condition(
    pixels: Tensor,
    latent: Tensor,
    mask: Image.Image | None,
    coder: Coder,
    source: Source,
    weight: float,
    *,
    rounded: bool,
) -> Tensor:
    """[B, 5, h, w] for inpainting models: the mask, then the latent of the picture without what is masked.

    ``pixels`` [B, 3, H, W] in -1..1. ``weight`` (``inpainting_mask_weight``) leaves some of what is
    masked in. RunwayML's inpainting checkpoints take it beside the noisy latent.
    """
    if mask is None:
        where = pixels.new_ones(1, 1, *pixels.shape[-2:])
    else:
        where = torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255.0)[None, None]
        where = (where.round() if rounded else where).to(pixels)
    seen = torch.lerp(pixels, pixels * (1.0 - where), weight)
    masked = coder.encode(seen, source)
    small = functional.interpolate(where, size=latent.shape[-2:]).expand(masked.shape[0], -1, -1, -1)
    return torch.cat([small, masked], dim=1)


@torch.no_grad()
def blank_condition(noise: Tensor, width: int, height: int, coder: Coder, source: Source) -> Tensor:
    """[B, 5, h, w] for an inpainting model in txt2img: everything is masked, the picture is grey."""
    grey = torch.zeros(noise.shape[0], 3, height, width, device=noise.device)
    latent = coder.encode(grey, source)
    return functional.pad(latent, (0, 0, 0, 0, 1, 0), value=1.0)
