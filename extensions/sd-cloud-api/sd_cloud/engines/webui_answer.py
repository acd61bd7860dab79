"""What the webui's own endpoints answered, as the `Outcome` of a job, and its failures as errors of ours."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

from PIL import Image

from sd_cloud.errors import BadRequest, EngineFailed, OutOfMemory, ServiceError
from sd_cloud.job import Outcome, Picture

#: Where the check of pictures (``inside_webui/censor.py``) leaves its verdicts, and where callers find them.
CENSORED = "nsfw_censored"


def outcome_of(answer: Any, *, interrupted: bool) -> Outcome:
    """The outcome of a txt2img or img2img answer: the grid, the pictures, then ControlNet's maps."""
    info = json.loads(answer.info)
    infotexts = info.get("infotexts") or []
    seeds = info.get("all_seeds") or []
    subseeds = info.get("all_subseeds") or []
    pictures: list[Picture] = []
    for index, text in enumerate(answer.images):
        made = index < len(seeds)
        pictures.append(
            Picture(
                decoded(text),
                role="image" if made else "control_map",
                seed=seeds[index] if made else None,
                subseed=subseeds[index] if made and index < len(subseeds) else None,
                infotext=infotexts[index] if index < len(infotexts) else "",
            )
        )
    made_pictures = [p for p in pictures if p.role == "image"]
    whole = (*_grid(made_pictures, int(info.get("batch_size") or 1)), *pictures)
    return Outcome(whole, _with_censored(info, whole), interrupted=interrupted)


def _with_censored(info: dict[str, Any], pictures: tuple[Picture, ...]) -> dict[str, Any]:
    """``info["nsfw_censored"]`` as the standalone host has it: one truth value for each picture."""
    flags = (info.get("extra_generation_params") or {}).get(CENSORED)
    if flags is None:
        return info
    of_role = {"image": iter(flags), "grid": iter([any(flags)])}
    return {**info, CENSORED: [bool(next(of_role.get(one.role, iter(())), False)) for one in pictures]}


def extras_outcome_of(answer: Any) -> Outcome:
    """The outcome of an ``extra-single-image`` answer."""
    return Outcome((Picture(decoded(answer.image)),), {"html_info": answer.html_info})


def _grid(pictures: list[Picture], batch_size: int) -> tuple[Picture, ...]:
    """The grid as the webui would have made it, had it been asked to save."""
    from modules import images
    from modules.shared import opts

    if not pictures or not opts.grid_save or (len(pictures) < 2 and opts.grid_only_if_multiple):
        return ()
    image = images.image_grid([p.image for p in pictures], batch_size)
    return (Picture(image, role="grid", infotext=pictures[0].infotext),)


def decoded(text: str | bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        image.load()
    except (binascii.Error, OSError) as error:
        raise EngineFailed(f"the webui answered with a picture that does not open: {error}") from error
    return image


def named(error: Exception) -> ServiceError:
    """The error of ours that a failure inside the webui is."""
    if isinstance(error, ServiceError):
        return error
    status = getattr(error, "status_code", None)
    if status is not None and 400 <= status < 500:
        return BadRequest(str(getattr(error, "detail", error)))
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return OutOfMemory(f"the webui ran out of memory: {error}")
    return EngineFailed(f"{type(error).__name__}: {error}")
