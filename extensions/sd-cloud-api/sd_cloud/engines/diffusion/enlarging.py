"""Bringing pictures to a size with an upscaler where they grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.upscale import upscale
from sd_cloud.engines.diffusion.upscale_tiles import Tilings
from sd_cloud.settings import Settings


def resizer(
    name: str | None,
    field: str,
    *,
    settings: Settings,
    option: Callable[[str, Any], Any],
    device: torch.device,
    stop: Callable[[], bool],
    drawn: Callable[[int], None],
) -> pictures.Resize:
    """A resizing that enlarges by the named upscaler and brings to size by Lanczos.

    ``stop`` is asked between tiles; ``drawn`` is as :func:`upscale` has it. The resizing raises
    BadRequest, naming ``field``, for an upscaler that is not there.
    """
    if name in (None, "", "None"):
        return pictures.stretch
    assert name is not None

    def to_size(image: Image.Image, width: int, height: int) -> Image.Image:
        scale = max(width / image.width, height / image.height)
        if scale > 1.0 and image.mode != "L":
            tilings = Tilings.of_options(option)
            image = upscale(
                image,
                name,
                scale,
                settings=settings,
                tilings=tilings,
                device=device,
                stop=stop,
                field=field,
                drawn=drawn,
            )
        return image if image.size == (width, height) else pictures.stretch(image, width, height)

    return to_size
