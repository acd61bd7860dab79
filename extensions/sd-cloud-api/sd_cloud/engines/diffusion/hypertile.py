"""HyperTile: self-attention that looks no further than a tile of the picture (``hypertile_*`` options).

By tfernd (github.com/tfernd/HyperTile), as the webui's built-in extension has it: which layers of the
U-Net and the VAE's decoder, sizes of tiles, and the order in which random numbers choose among them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from diffusers import AutoencoderKL
from torch import Tensor, nn

from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest

LATENT_PIXELS = 8
LEAST_TILE_PIXELS = 128

Network = Literal["unet", "vae"]
LABELS: dict[Network, str] = {"unet": "Hypertile U-Net", "vae": "Hypertile VAE"}


@dataclass(frozen=True)
class Layers:
    """Self-attentions of one depth: LDM's numbers of their blocks, and their places in a transformer."""

    depth: int
    down: Sequence[int] = ()
    up: Sequence[int] = ()
    middle: bool = False
    places: Sequence[int] = (0,)


SD = (
    Layers(0, down=(1, 2), up=(9, 10, 11)),
    Layers(1, down=(4, 5), up=(6, 7, 8)),
    Layers(2, down=(7, 8), up=(3, 4, 5)),
    Layers(3, middle=True),
)
SDXL = (
    Layers(0, down=(4, 5), up=(3, 4, 5)),
    Layers(1, down=(4, 5), up=(3, 4, 5), places=(1,)),
    Layers(1, down=(7, 8), up=(0, 1, 2), places=range(10)),
    Layers(2, middle=True, places=range(10)),
)


@dataclass(frozen=True)
class Tiles:
    """How one of the two networks tiles: size in pixels, among how many divisions to choose, down to which
    depth. ``aspect`` is the picture's width by its height."""

    pixels: int
    choices: int
    depth: int
    aspect: float

    def cells(self, depth: int) -> int:
        """The least side of a tile, in places of a layer."""
        return (max(LEAST_TILE_PIXELS, self.pixels) // LATENT_PIXELS) << depth


class HyperTile:
    """What tiles in one job. ``unet`` and ``vae`` are None where nothing does.

    As in the webui a pass leaves its sizes to what follows: the next batch's first pass has those of
    the hires pass before it.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._random = random.Random()
        self._resting = False
        self.unet: Tiles | None = None
        self.vae: Tiles | None = None

    @property
    def wanted_in_unet(self) -> bool:
        flags = ("hypertile_enable_unet", "hypertile_enable_unet_secondpass")
        return any(self._options.flag(name) for name in flags)

    def begin(self, seed: int, width: int, height: int, marks: MutableMapping[str, Any]) -> None:
        """For a job of this size (pixels), whose first seed chooses."""
        self._random.seed(seed)
        always = self._options.flag("hypertile_enable_unet")
        self._settle(width, height, unet=always)
        self._mark(marks, unet=always)

    def begin_second_pass(self, seed: int, width: int, height: int, marks: MutableMapping[str, Any]) -> None:
        """For a hires pass to this size, before anything is cut off."""
        always = self._options.flag("hypertile_enable_unet")
        if self.wanted_in_unet:
            self._random.seed(seed)
        self._settle(width, height, unet=self.wanted_in_unet)
        if self.wanted_in_unet and not always:
            marks["Hypertile U-Net second pass"] = True
            self._mark(marks, unet=True)

    def forget(self) -> None:
        """A webui builds a model anew: nothing tiles in it until the next pass begins."""
        self.unet = self.vae = None

    def _settle(self, width: int, height: int, *, unet: bool) -> None:
        self.unet = self._tiles("unet", width, height) if unet else None
        self.vae = self._tiles("vae", width, height) if self._options.flag("hypertile_enable_vae") else None

    def _tiles(self, network: Network, width: int, height: int) -> Tiles:
        options, common = self._options, math.gcd(width, height)
        largest = common & -common  # the largest power of two in both sides
        return Tiles(
            pixels=min(largest, options.whole(f"hypertile_max_tile_{network}")),
            choices=options.whole(f"hypertile_swap_size_{network}"),
            depth=options.whole(f"hypertile_max_depth_{network}"),
            aspect=width / height,
        )

    def _mark(self, marks: MutableMapping[str, Any], *, unet: bool) -> None:
        """The options in force, where they are not the defaults."""
        networks: dict[Network, bool] = {"unet": unet, "vae": self._options.flag("hypertile_enable_vae")}
        for network, tiles in networks.items():
            label = LABELS[network]
            if self._options.flag(f"hypertile_enable_{network}"):
                marks[label] = True
            if tiles:
                for words, name in (
                    ("max depth", "max_depth"),
                    ("max tile size", "max_tile"),
                    ("swap size", "swap_size"),
                ):
                    marks[f"{label} {words}"] = self._options.changed(f"hypertile_{name}_{network}")

    # --- at work ------------------------------------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing is tiled or chosen: previews leave no trace in the picture."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    @contextmanager
    def in_unet(self, model: Model, *, looks_elsewhere: bool) -> Iterator[None]:
        """Have a U-Net's self-attentions tile for a while; after hooks that change how many places they see.

        ``looks_elsewhere``: whether a control unit has them see another picture, too. Raises BadRequest
        then, as soon as there is more than one tile.
        """
        hooks = []
        if self.wanted_in_unet:
            for attention, depth in self_attentions(model):
                layer = _UNetLayer(self, depth, looks_elsewhere)
                hooks += [
                    attention.register_forward_pre_hook(layer.attends),
                    attention.register_forward_hook(layer.attended, prepend=True),
                ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def in_vae(self, vae: AutoencoderKL) -> Iterator[None]:
        """Have a VAE's decoder tile for a while."""
        hooks = []
        middle = vae.decoder.mid_block
        if self._options.flag("hypertile_enable_vae") and middle is not None:
            layer = _VaeLayer(self)
            for attention in middle.attentions:
                hooks += [
                    attention.register_forward_pre_hook(layer.attends),
                    attention.register_forward_hook(layer.attended),
                ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def tiles_of(self, network: Network, depth: int) -> Tiles | None:
        """What holds now for a layer of this depth."""
        tiles = self.unet if network == "unet" else self.vae
        return None if self._resting or tiles is None or depth > tiles.depth else tiles

    def count(self, side: int, least: int, choices: int) -> int:
        """Into how many tiles of at least so many places a side is cut, chosen at random."""
        counts = divisions(side, least, choices)
        return counts[self._random.randint(0, len(counts) - 1)]


class _UNetLayer:
    """The hooks around one self-attention over [B, h * w, C]."""

    def __init__(self, tiling: HyperTile, depth: int, looks_elsewhere: bool) -> None:
        self._tiling = tiling
        self._depth = depth
        self._looks_elsewhere = looks_elsewhere
        self._cut: tuple[int, int, int, int] | None = None

    def attends(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._cut = None
        tiles = self._tiling.tiles_of("unet", self._depth)
        if tiles is None:
            return None
        x: Tensor = arguments[0]
        height, width = sides(x.shape[1], tiles.aspect)
        least = tiles.cells(self._depth)
        rows = self._tiling.count(height, least, tiles.choices)
        columns = self._tiling.count(width, least, tiles.choices)
        if rows * columns == 1:
            return None
        if self._looks_elsewhere:
            raise BadRequest(
                "its tiles do not go with ControlNet's reference_only", field="hypertile_enable_unet"
            )
        self._cut = rows, height // rows, columns, width // columns
        parts = x.reshape(x.shape[0], rows, height // rows, columns, width // columns, x.shape[2])
        tiled = parts.transpose(2, 3).reshape(-1, height // rows * (width // columns), x.shape[2])
        return (tiled, *arguments[1:])

    def attended(self, module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if self._cut is None:
            return None
        rows, height, columns, width = self._cut
        parts = out.reshape(-1, rows, columns, height, width, out.shape[2])
        return parts.transpose(2, 3).reshape(-1, rows * height * columns * width, out.shape[2])


class _VaeLayer:
    """The hooks around the attention of a VAE's decoder, over [B, C, h, w]."""

    def __init__(self, tiling: HyperTile) -> None:
        self._tiling = tiling
        self._cut: tuple[int, int] | None = None

    def attends(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._cut = None
        tiles = self._tiling.tiles_of("vae", 0)
        if tiles is None:
            return None
        x: Tensor = arguments[0]
        batch, channels, height, width = x.shape
        rows = self._tiling.count(height, tiles.cells(0), tiles.choices)
        columns = self._tiling.count(width, tiles.cells(0), tiles.choices)
        if rows * columns == 1:
            return None
        self._cut = rows, columns
        parts = x.reshape(batch, channels, rows, height // rows, columns, width // columns)
        tiled = parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)
        return (tiled.contiguous(), *arguments[1:])

    def attended(self, module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if self._cut is None:
            return None
        rows, columns = self._cut
        _, channels, height, width = out.shape
        parts = out.reshape(-1, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        return parts.reshape(-1, channels, rows * height, columns * width)


def self_attentions(model: Model) -> Iterator[tuple[nn.Module, int]]:
    """The U-Net's layers that may tile, with their depths; SD 3 has none."""
    if model.layout.family == "sd3":
        return
    for layers in SDXL if model.is_sdxl else SD:
        for transformer in _transformers(model, layers):
            blocks = transformer.transformer_blocks
            for place in layers.places:
                if place < len(blocks):
                    yield blocks[place].attn1, layers.depth


def _transformers(model: Model, layers: Layers) -> Iterator[Any]:
    """Of the blocks with these numbers. A level of LDM's has its blocks and one that changes the size."""
    unet, per_level = model.unet, int(model.layout.unet["layers_per_block"]) + 1
    for parts, numbers in (
        (unet.down_blocks, [number - 1 for number in layers.down]),
        (unet.up_blocks, layers.up),
    ):
        for number in numbers:
            level, index = divmod(number, per_level)
            there = getattr(parts[level], "attentions", ()) if level < len(parts) else ()
            if index < len(there):
                yield there[index]
    if layers.middle and unet.mid_block is not None:
        yield from unet.mid_block.attentions


@cache
def divisions(side: int, least: int, choices: int) -> tuple[int, ...]:
    """Numbers of tiles that a side divides into evenly, the smallest tiles of at least ``least`` first."""
    sizes = [size for size in range(min(least, side), side + 1) if side % size == 0]
    return tuple(side // size for size in sizes[: max(1, choices)])


@cache
def sides(places: int, aspect: float) -> tuple[int, int]:
    """Two sides of so many places whose first by the second comes nearest to ``aspect``.

    The webui takes the picture's width by its height for ``aspect`` and the first for the height, so
    that tiles of a picture that is no square are cut across its rows; so does this.
    """
    height, width = round(math.sqrt(places * aspect)), round(math.sqrt(places / aspect))
    if height * width == places:
        return height, width
    if height and places % height == 0:
        return height, places // height
    if width and places % width == 0:
        return places // width, width
    pairs = [(one, places // one) for one in range(2, places + 1) if places % one == 0] or [(1, places)]
    return min(pairs, key=lambda pair: abs(pair[1] / pair[0] - aspect))
