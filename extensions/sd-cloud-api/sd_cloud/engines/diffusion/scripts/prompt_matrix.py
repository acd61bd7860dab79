"""Prompt matrix: a picture for every combination of the parts that ``|`` separates in a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from sd_cloud.engines.diffusion.prompts import OwnTexts
from sd_cloud.engines.diffusion.scripts.labels import Label
from sd_cloud.engines.diffusion.scripts.run import (
    LIMIT_PICTURES,
    Session,
    image_of,
)
from sd_cloud.errors import BadRequest
from sd_cloud.job import Outcome, Picture

JOINED_BY = {"comma": ", ", "space": " "}


def prompt_matrix(session: Session) -> Outcome:
    """The labelled grid, then its pictures; the first part is in all of them."""
    values = session.values
    negative = values["prompt_type"] == "negative"
    which = "negative_prompt" if negative else "prompt"
    parts = session.text(which).split("|")
    count, size = 2 ** (len(parts) - 1), session.whole("batch_size", 1)
    if count > LIMIT_PICTURES:
        raise BadRequest(f"{len(parts)} parts make {count} pictures, more than {LIMIT_PICTURES}", field=which)
    if session.job.kind == "img2img" and count % size:
        raise BadRequest(f"{count} pictures of a prompt matrix make no batches of {size}", field="batch_size")
    delimiter, first = JOINED_BY[values["variations_delimiter"]], bool(values["put_at_start"])
    written = [combined(parts, number, delimiter, variable_first=first) for number in range(count)]
    seed = session.fixed_seed("seed")
    seeds = [seed + (number if values["different_seeds"] else 0) for number in range(count)]
    made = session.run(
        {},
        texts=OwnTexts(None if negative else written, written if negative else None, seeds),
        n_iter=math.ceil(count / size),
        seed=seed,
        subseed=session.fixed_seed("subseed"),
    )
    outcome = session.outcomes[0]
    if not made:
        return outcome
    text = outcome.info["infotexts"][0]
    grid = _grid([image_of(one) for one in made], parts, session, int(values["margin_size"]))
    return replace(
        outcome,
        pictures=(Picture(grid, "grid", made[0].seed, made[0].subseed, text), *outcome.pictures),
        info={
            **outcome.info,
            "index_of_first_image": 1,
            "infotexts": [text, *outcome.info["infotexts"]],
        },
    )


def combined(parts: Sequence[str], number: int, delimiter: str, *, variable_first: bool) -> str:
    """One prompt: the bits of ``number`` say which of the variable parts are in it."""
    chosen = [part.strip().strip(",") for place, part in enumerate(parts[1:]) if number >> place & 1]
    return delimiter.join([*chosen, parts[0]] if variable_first else [parts[0], *chosen])


def _grid(images: list[Image.Image], parts: Sequence[str], session: Session, margin: int) -> Image.Image:
    """Half of the variable parts along the columns, half along the rows; blank where it was stopped."""
    variable = parts[1:]
    half = math.ceil(len(variable) / 2)
    above, beside = _combinations(variable[:half]), _combinations(variable[half:])
    images = images + [Image.new("RGB", images[0].size)] * (len(above) * len(beside) - len(images))
    sheet = session.sheet(images, rows=len(beside))
    return session.labelled(sheet, images[0].size, above, beside, margin=margin)


def _combinations(parts: Sequence[str]) -> list[list[Label]]:
    return [
        [Label(part, bool(number >> place & 1)) for place, part in enumerate(parts)]
        for number in range(2 ** len(parts))
    ]
