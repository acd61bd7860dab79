"""Poor man's outpainting: the canvas grown, what is new inpainted tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from sd_cloud.engines.diffusion.scripts.forms import SIDES
from sd_cloud.engines.diffusion.scripts.run import Session, encoded, image_of
from sd_cloud.engines.diffusion.upscale_tiles import Tile, join, split
from sd_cloud.errors import BadRequest
from sd_cloud.job import Outcome, Picture

MULTIPLE_PX = 64


@dataclass(frozen=True)
class Canvas:
    """A picture grown to each side by so many pixels; its sides become multiples of 64 px."""

    left: int
    right: int
    up: int
    down: int
    width: int
    height: int

    def shows_only_old(self, tile: Tile) -> bool:
        return (
            tile.left >= self.left
            and tile.left + tile.image.width <= self.width - self.right
            and tile.top >= self.up
            and tile.top + tile.image.height <= self.height - self.down
        )

    def mask(self, edge: int) -> Image.Image:
        """White where it is new, and ``edge`` px into the old picture."""
        mask = Image.new("L", (self.width, self.height), "white")
        kept = (
            self.left + (edge if self.left else 0),
            self.up + (edge if self.up else 0),
            self.width - self.right - (edge if self.right else 0),
            self.height - self.down - (edge if self.down else 0),
        )
        if kept[2] < kept[0] or kept[3] < kept[1]:
            raise BadRequest("mask_blur: leaves nothing of the picture", field="script_args[1]")
        ImageDraw.Draw(mask).rectangle(kept, fill="black")
        return mask


def poor_outpainting(session: Session) -> Outcome:
    """One picture: the old one, with every tile that shows something new made by img2img."""
    values = session.values
    pixels, blur = int(values["pixels"]), int(values["mask_blur"])
    width, height = session.whole("width", 512), session.whole("height", 512)
    if pixels >= min(width, height):
        raise BadRequest(
            f"pixels: {pixels} is not less than the tiles' {width}x{height}", field="script_args[0]"
        )
    source = session.source()
    canvas = plan_canvas(source.size, pixels, values["direction"])
    grown = Image.new("RGB", (canvas.width, canvas.height))
    grown.paste(source, (canvas.left, canvas.up))
    rows = split(grown, width, height, pixels)
    masks = _tiles(split(canvas.mask(blur * 2), width, height, pixels))
    latent_masks = _tiles(split(canvas.mask(blur // 2), width, height, pixels))
    new = [not canvas.shows_only_old(tile) for tile in _tiles(rows)]
    if not any(new):
        raise BadRequest("direction: the picture grows to no side", field="script_args[3]")
    session.count = sum(new)
    made: dict[int, Image.Image] = {}
    seed, subseed = session.whole("seed", -1), session.whole("subseed", -1)
    for place, (tile, mask, latent_mask) in enumerate(zip(_tiles(rows), masks, latent_masks, strict=True)):
        if not new[place] or session.stopped:
            continue
        found = session.run(
            {},
            init_images=[encoded(tile.image)],
            mask=encoded(mask.image),
            latent_mask=encoded(latent_mask.image),
            mask_blur=blur * 2,
            inpainting_fill=values["inpainting_fill"],
            inpaint_full_res=False,
            batch_size=1,
            seed=seed,
            subseed=subseed,
        )
        seed = session.outcomes[-1].info["seed"] + 1
        if found:
            made[place] = image_of(found[0])
    return _joined(session, rows, canvas, new, made, pixels)


def _tiles(rows: list[list[Tile]]) -> Iterator[Tile]:
    return (tile for row in rows for tile in row)


def _joined(
    session: Session,
    rows: list[list[Tile]],
    canvas: Canvas,
    new: list[bool],
    made: dict[int, Image.Image],
    overlap: int,
) -> Outcome:
    """All tiles in one; blank where a person stopped it."""
    session.check_begun()
    places = iter(range(len(new)))

    def shown(tile: Tile) -> Tile:
        place = next(places)
        return (
            replace(tile, image=made.get(place) or Image.new("RGB", tile.image.size)) if new[place] else tile
        )

    pieces = [[shown(tile) for tile in row] for row in rows]
    whole = join(pieces, (canvas.width, canvas.height), overlap)
    first = session.outcomes[0].info
    text = first["infotexts"][0]
    return session.outcome([Picture(whole, seed=first["seed"], subseed=first["subseed"], infotext=text)])


def plan_canvas(size: tuple[int, int], pixels: int, directions: list[str]) -> Canvas:
    """How far a picture of (width, height) px grows: as asked, then on to multiples of 64 px."""
    left, right, up, down = (pixels if side in directions else 0 for side in SIDES)
    width = math.ceil((size[0] + left + right) / MULTIPLE_PX) * MULTIPLE_PX
    height = math.ceil((size[1] + up + down) / MULTIPLE_PX) * MULTIPLE_PX
    if left:
        left = left * (width - size[0]) // (left + right)
    if right:
        right = width - size[0] - left
    if up:
        up = up * (height - size[1]) // (up + down)
    if down:
        down = height - size[1] - up
    return Canvas(left, right, up, down, width, height)
