"""An image cut into overlapping tiles and put together again, as the webui does it.

Where an image is smaller than a tile, the tile reaches past its left and top edge and is black
there. That costs a little quality at those edges; it is kept because the same request is to make
the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class TileSize:
    """Side of a tile and width of its overlap with the next, in pixels; side 0 means no tiles.

    ``summed``: where tiles overlap their mean counts; otherwise one fades into the next.
    """

    side_px: int = 192
    overlap_px: int = 8
    summed: bool = False


#: By the kind of upscaler: its options, the sides they have by default, and whether tiles are summed.
_OPTIONS = {
    "ESRGAN": ("ESRGAN_tile", 192, False),
    "DAT": ("DAT_tile", 192, False),
    "ScuNET": ("SCUNET_tile", 256, True),
    "SwinIR": ("SWIN_tile", 192, True),
}
OVERLAP_PX = 8


@dataclass(frozen=True)
class Tilings:
    """The tiles of each kind of upscaler."""

    kinds: Mapping[str, TileSize] = field(default_factory=lambda: {"ESRGAN": TileSize()})

    @classmethod
    def of_options(cls, option: Callable[[str, Any], Any]) -> Tilings:
        """The webui's options ``ESRGAN_tile``, ``ESRGAN_tile_overlap`` and those of other kinds."""
        found = {}
        for kind, (name, default, summed) in _OPTIONS.items():
            side = max(int(option(name, default)), 0)
            overlap = int(option(f"{name}_overlap", OVERLAP_PX))
            found[kind] = TileSize(side, min(max(overlap, 0), max(side - 1, 0)), summed)
        return cls(found)

    def of(self, kind: str) -> TileSize:
        """Kinds without options of their own have ESRGAN's."""
        return self.kinds.get(kind, self.kinds["ESRGAN"])


@dataclass(frozen=True)
class Tile:
    left: int
    top: int
    image: Image.Image


def split(image: Image.Image, width: int, height: int, overlap: int) -> list[list[Tile]]:
    """Rows of tiles of ``width`` x ``height`` pixels, neighbours sharing at least ``overlap``."""
    return [
        [
            Tile(left, top, image.crop((left, top, left + width, top + height)))
            for left in starts(image.width, width, overlap)
        ]
        for top in starts(image.height, height, overlap)
    ]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side; the last ends with the side (negative when it is too short)."""
    count = max(math.ceil((length - overlap) / (tile - overlap)), 1)
    pace = (length - tile) / (count - 1) if count > 1 else 0.0
    return [min(int(place * pace), length - tile) for place in range(count)]


def join(rows: list[list[Tile]], size: tuple[int, int], overlap: int) -> Image.Image:
    """The tiles in one RGB image of ``size``, each fading into the one before it over ``overlap`` px."""
    whole = Image.new("RGB", size)
    for row in rows:
        strip = Image.new("RGB", (size[0], row[0].image.height))
        for tile in row:
            _lay(strip, tile.image, tile.left, 0, overlap, across=True)
        _lay(whole, strip, 0, row[0].top, overlap, across=False)
    return whole


def _lay(onto: Image.Image, piece: Image.Image, left: int, top: int, overlap: int, *, across: bool) -> None:
    first = left == 0 if across else top == 0
    if first or overlap == 0:
        onto.paste(piece, (left, top))
        return
    edge = (0, 0, overlap, piece.height) if across else (0, 0, piece.width, overlap)
    fade = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    ramp = fade[None, :] if across else fade[:, None]
    mask = Image.fromarray(np.ascontiguousarray(np.broadcast_to(ramp, (edge[3], edge[2]))))
    onto.paste(piece.crop(edge), (left, top), mask)
    rest = (overlap, 0) if across else (0, overlap)
    onto.paste(piece.crop((*rest, piece.width, piece.height)), (left + rest[0], top + rest[1]))


def summed_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where summed tiles begin: at even steps, and the last ends with the side."""
    return [*range(0, length - tile, tile - overlap), length - tile]
