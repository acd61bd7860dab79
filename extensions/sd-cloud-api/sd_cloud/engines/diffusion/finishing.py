"""From decoded tensors to the pictures of an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.img2img import Prepared
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request
from sd_cloud.job import Role

Shown = tuple[Role, Image.Image]


def unit_batch(decoded: Sequence[Tensor]) -> Tensor:
    """[3, H, W] each in -1..1 to one [B, 3, H, W] in 0..1."""
    return torch.stack([one.float() for one in decoded]).add(1.0).div(2.0).clamp(0.0, 1.0)


def placed(
    image: Image.Image, i: int, prepared: Prepared | None, request: Request, options: Options
) -> list[Shown]:
    """Picture ``i`` of a batch where it belongs: colours corrected, under its overlay, with its masks.

    Masks come with it when they are to be returned or saved.
    """
    if prepared is None:
        return [("image", image)]
    overlay = None
    if (prepared.always_over or options.flag("overlay_inpaint")) and i < len(prepared.overlays):
        overlay = prepared.overlays[i]
    if i < len(prepared.colour_targets):
        image = pictures.match_colours(prepared.colour_targets[i], image)
    image, made = pictures.put_back(image, prepared.paste_to, overlay)
    found: list[Shown] = [("image", image)]
    mask = prepared.mask_for_overlay
    if mask is None:
        return found
    saving = request.save_images and options.flag("samples_save")
    if options.flag("return_mask") or (saving and options.flag("save_mask")):
        found.append(("mask", mask.convert("RGB")))
    if options.flag("return_mask_composite") or (saving and options.flag("save_mask_composite")):
        found.append(("mask_composite", pictures.mask_composite(made, mask, image.size)))
    return found


def grid_of(images: Sequence[Image.Image], request: Request, options: Options) -> Image.Image | None:
    """All pictures in one, where the webui would make it: only for jobs that save."""
    wanted = options.flag("return_grid") or options.flag("grid_save")
    enough = len(images) > 1 or (images and not options.flag("grid_only_if_multiple"))
    if not (request.save_images and wanted and enough):
        return None
    return pictures.grid(
        images,
        request.batch_size,
        rows=options.whole("n_rows"),
        no_gaps=options.flag("grid_prevent_empty_spots"),
        background=options.text("grid_background_color"),
    )
