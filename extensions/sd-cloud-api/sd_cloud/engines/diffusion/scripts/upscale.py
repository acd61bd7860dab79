"""SD upscale: the picture enlarged by an upscaler, then made anew by img2img tile by tile."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from PIL import Image

from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.catalogue import upscalers
from sd_cloud.engines.diffusion.scripts.run import Session, encoded, image_of
from sd_cloud.engines.diffusion.upscale import find_upscaler, upscale
from sd_cloud.engines.diffusion.upscale_tiles import Tile, Tilings, join, split
from sd_cloud.errors import BadRequest
from sd_cloud.job import Outcome, Picture

UPSCALER_FIELD = "script_args[2]"


def sd_upscale(session: Session) -> Outcome:
    """One large picture for each of ``n_iter``; ``width`` and ``height`` are the tiles'."""
    overlap, scale = int(session.values["overlap"]), float(session.values["scale_factor"])
    name = upscaler_name(session, session.values["upscaler"])
    width, height = session.whole("width", 512), session.whole("height", 512)
    if overlap >= min(width, height):
        raise BadRequest(
            f"overlap: {overlap} is not less than the tiles' {width}x{height}", field="script_args[1]"
        )
    image = pictures.flatten(session.source(), session.options.text("img2img_background_color"))
    if name != "None":
        image = upscale(
            image,
            name,
            scale,
            settings=session.settings,
            tilings=Tilings.of_options(session.job.option),
            device=session.device,
            stop=lambda: session.control.verdict != "go",
            field=UPSCALER_FIELD,
            drawn=session.draws,
        )
    rows = split(image, width, height, overlap)
    tiles = [tile for row in rows for tile in row]
    size, pictures_wanted = session.whole("batch_size", 1), session.whole("n_iter", 1)
    session.count = math.ceil(len(tiles) / size) * pictures_wanted
    first_seed, subseed = session.fixed_seed("seed"), session.fixed_seed("subseed")
    marks = {"SD upscale overlap": overlap, "SD upscale upscaler": name}
    made = []
    for number in range(pictures_wanted):
        anew = _anew(session, tiles, size, first_seed + number, subseed, marks)
        if session.stopped and not anew:
            break
        blank = Image.new("RGB", (width, height))
        anew += [blank] * (len(tiles) - len(anew))
        images = iter(anew)
        joined = join(
            [[replace(tile, image=next(images)) for tile in row] for row in rows], image.size, overlap
        )
        text = str(session.outcomes[0].info["infotexts"][0])
        made.append(Picture(joined, seed=first_seed + number, subseed=subseed, infotext=text))
    return session.outcome(made)


def _anew(
    session: Session, tiles: list[Tile], size: int, seed: int, subseed: int, marks: dict[str, Any]
) -> list[Image.Image]:
    """The tiles through img2img, a batch at a time; fewer when a person stopped it."""
    found: list[Image.Image] = []
    for start in range(0, len(tiles), size):
        if session.stopped:
            break
        batch = [encoded(tile.image) for tile in tiles[start : start + size]]
        made = session.run(marks, init_images=batch, batch_size=size, seed=seed, subseed=subseed)
        seed += 1
        found += [image_of(one) for one in made]
    return found


def upscaler_name(session: Session, asked: Any) -> str:
    """An upscaler by name or, as the page sends it, by its place in the list. Raises BadRequest."""
    if isinstance(asked, str):
        return find_upscaler(asked, session.settings, field=UPSCALER_FIELD).name
    there = upscalers(session.settings.folders)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < len(there):
        names = ", ".join(f"{place}: {one.name}" for place, one in enumerate(there))
        raise BadRequest(f"upscaler: {asked!r:.80} is none of {names}", field=UPSCALER_FIELD)
    return there[asked].name
