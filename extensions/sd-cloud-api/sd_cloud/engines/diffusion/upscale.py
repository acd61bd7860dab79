"""Upscalers by name: an image and a scale in, the larger image out, as the webui makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.catalogue import PLAIN_UPSCALERS, upscalers
from sd_cloud.engines.diffusion.upscale_models import Upscaling, load_upscaler, numbers_drawn
from sd_cloud.engines.diffusion.upscale_tiles import (
    Tile,
    TileSize,
    Tilings,
    join,
    split,
    summed_starts,
)
from sd_cloud.errors import BadRequest
from sd_cloud.settings import Settings

LANCZOS = Image.Resampling.LANCZOS
NEAREST = Image.Resampling.NEAREST

PASSES = 3  # a network of fixed scale is applied again until the size is reached, this often at most


def upscale(
    image: Image.Image,
    name: str,
    scale: float,
    *,
    settings: Settings,
    tilings: Tilings | None = None,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = bool,
    field: str = "upscaler",
    drawn: Callable[[int], None] | None = None,
) -> Image.Image:
    """Enlarge ``image`` by ``scale``; both sides of the result are multiples of 8.

    ``name`` is as ``/sdapi/v1/upscalers`` lists it (any case). ``stop`` is asked before each tile;
    once it says so, what is there is brought to size by Lanczos, as the webui does. ``drawn`` hears
    how many numbers the webui's generator gives to a network that is built to be loaded: it builds
    one for each turn.

    Raises BadRequest (naming ``field``) for an unknown name, CheckpointBroken or
    NotImplementedHere for a file that cannot be used.
    """
    chosen = find_upscaler(name, settings, field=field)
    tiles = (tilings or Tilings()).of(chosen.extra["kind"])
    width, height = (int(side * scale // 8 * 8) for side in image.size)
    if not (width and height):
        raise BadRequest(f"{image.width}x{image.height} times {scale} leaves no picture", field=field)
    for turn in range(PASSES):
        if image.width >= width and image.height >= height and (turn > 0 or scale != 1):
            break
        if stop():
            break
        before = image.size
        image = _once(image, chosen, scale, tiles, device, stop, drawn)
        if image.size == before:
            break
    return image if image.size == (width, height) else image.resize((width, height), LANCZOS)


def find_upscaler(name: str, settings: Settings, *, field: str = "upscaler") -> ModelFile:
    """The installed upscaler of that name. Raises BadRequest listing those there."""
    found = upscalers(settings.folders)
    for one in found:
        if one.name.lower() == name.lower():
            return one
    there = ", ".join(one.name for one in found)
    raise BadRequest(f"no upscaler is named {name!r}; there are: {there}", field=field)


def _once(
    image: Image.Image,
    chosen: ModelFile,
    scale: float,
    tiles: TileSize,
    device: torch.device | str,
    stop: Callable[[], bool],
    drawn: Callable[[int], None] | None,
) -> Image.Image:
    if chosen.name in PLAIN_UPSCALERS:
        if chosen.name == "None":
            return image
        size = (int(image.width * scale), int(image.height * scale))
        return image.resize(size, LANCZOS if chosen.name == "Lanczos" else NEAREST)
    net = load_upscaler(Path(chosen.filename), device)
    if drawn is not None:
        drawn(numbers_drawn(net))
    if tiles.side_px == 0:
        return through(net, image, device)
    if tiles.summed:
        return _summed(net, image, tiles, device, stop)
    return _tiled(net, image, tiles, device, stop)


def _tiled(
    net: Upscaling, image: Image.Image, tiles: TileSize, device: torch.device | str, stop: Callable[[], bool]
) -> Image.Image:
    rows: list[list[Tile]] = []
    factor = 1
    for row in split(image, tiles.side_px, tiles.side_px, tiles.overlap_px):
        done = []
        for tile in row:
            if stop():
                return image
            larger = through(net, tile.image, device)
            factor = larger.width // tile.image.width
            done.append(Tile(tile.left * factor, tile.top * factor, larger))
        rows.append(done)
    return join(rows, (image.width * factor, image.height * factor), tiles.overlap_px * factor)


def _summed(
    net: Upscaling, image: Image.Image, tiles: TileSize, device: torch.device | str, stop: Callable[[], bool]
) -> Image.Image:
    """Tiles no larger than the picture; each pixel is the mean of the tiles that it is in."""
    pixels = _pixels(image)
    height, width = pixels.shape[-2:]
    side = min(tiles.side_px, height, width)
    overlap = min(tiles.overlap_px, side - 1)
    whole = count = torch.zeros(0)
    for top in summed_starts(height, side, overlap):
        for left in summed_starts(width, side, overlap):
            if stop():
                return image
            with torch.inference_mode():
                made = net(pixels[..., top : top + side, left : left + side].to(device)).float().cpu()
            scale = made.shape[-1] // side
            if whole.numel() == 0:
                whole = torch.zeros(1, made.shape[1], height * scale, width * scale)
                count = torch.zeros_like(whole)
            place = (
                ...,
                slice(top * scale, (top + side) * scale),
                slice(left * scale, (left + side) * scale),
            )
            whole[place] += made
            count[place] += 1
    return _image(whole / count)


def through(net: Upscaling, image: Image.Image, device: torch.device | str) -> Image.Image:
    """One image through a network."""
    with torch.inference_mode():
        return _image(net(_pixels(image).to(device)))


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in 0..1: blue, green, red, the webui's order."""
    array = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1].transpose(2, 0, 1))
    return (torch.from_numpy(array).double() / 255).float().unsqueeze(0)


def _image(pixels: Tensor) -> Image.Image:
    larger = pixels.squeeze(0).float().cpu().clamp(0, 1).numpy()
    array = (255.0 * np.moveaxis(larger, 0, 2)).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[:, :, ::-1]))
