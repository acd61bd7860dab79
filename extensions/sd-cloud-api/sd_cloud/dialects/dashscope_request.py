"""A DashScope image-synthesis request, checked, as a job.

Ranges and defaults are the guides' ("StableDiffusion文生图模型", "StableDiffusion3.5 API详情").
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sd_cloud import errors
from sd_cloud.dialects.asked import Seam, callback_in
from sd_cloud.dialects.dashscope_models import MODELS, Model
from sd_cloud.job import Job, Target

LIMIT_WORDS = 75
LIMIT_PICTURES = 4
LIMIT_STEPS = 500
LIMIT_SEED = 2**32 - 1 - LIMIT_PICTURES
DEFAULT_DENOISE = 0.75
DEFAULT_SHIFT = 3.0
#: A word is a run of letters, or one character of a script without spaces.
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\s\u2e80-\u9fff\uf900-\ufaff]+")


class ModelNotFound(errors.CheckpointNotFound):
    """The request names no model of the guides."""


def model_of(body: Mapping[str, Any]) -> Model:
    """Raises ModelNotFound."""
    model = MODELS.get(body["model"]) if isinstance(body.get("model"), str) else None
    if model is None:
        raise ModelNotFound(f"Model not exist. There are {', '.join(MODELS)}.", field="model")
    return model


def within_limit(prompt: str) -> str:
    """The prompt's first 75 words, as the guide says it is cut."""
    words = list(_WORD.finditer(prompt))
    return prompt if len(words) <= LIMIT_WORDS else prompt[: words[LIMIT_WORDS - 1].end()]


async def job_of(seam: Seam, body: Mapping[str, Any], model: Model, checkpoint: str, *, owner: str) -> Job:
    """Raises BadRequest naming the field."""
    given, parameters = _object(body, "input"), _object(body, "parameters")
    prompt, negative = _text(given, "prompt"), _text(given, "negative_prompt")
    if not prompt.strip():
        raise errors.BadRequest("this field is required", field="input.prompt")
    count = int(_number(parameters, "n", 1, least=1, most=LIMIT_PICTURES, whole=True))
    width, height = _size(parameters, model)
    guidance = ("scale", 1.0, 15.0) if model.old else ("cfg", 0.0, 30.0)
    payload: dict[str, Any] = {
        "prompt": within_limit(prompt),
        "negative_prompt": within_limit(negative),
        "width": width,
        "height": height,
        # One after the other: a picture that fails is one, and seeds are seed, seed + 1, …
        "n_iter": count,
        "batch_size": 1,
        "steps": int(_number(parameters, "steps", model.steps, least=1, most=LIMIT_STEPS, whole=True)),
        "cfg_scale": _number(parameters, guidance[0], model.guidance, least=guidance[1], most=guidance[2]),
        "seed": int(_number(parameters, "seed", -1, least=0, most=LIMIT_SEED, whole=True)),
        "override_settings": {"sd_model_checkpoint": checkpoint, "return_grid": False},
        "save_images": True,
    }
    family: dict[str, Any] = {}
    if not model.old:
        family["shift"] = _number(parameters, "shift", DEFAULT_SHIFT, least=0.01, most=100.0)
    image = _text(given, "init_image") if not model.old else ""
    if image:
        denoise = parameters.get("denoise", given.get("denoise"))
        payload["init_images"] = [image]
        payload["denoising_strength"] = _number(
            {"denoise": denoise} if denoise is not None else {},
            "denoise",
            DEFAULT_DENOISE,
            least=0.0,
            most=1.0,
        )
    job = await seam.native("img2img" if image else "txt2img", payload, owner=owner)
    return replace(
        job,
        dialect="dashscope",
        target=Target("task"),
        family=family,
        labels={"model": model.name, "n": str(count)},
        callback_url=callback_in(body.get("callback_url")),
    )


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name, {})
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise errors.BadRequest("expected an object", field=name)
    return value


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise errors.BadRequest("expected a string", field=f"input.{name}")
    return value


def _number(
    given: Mapping[str, Any], name: str, default: float, *, least: float, most: float, whole: bool = False
) -> float:
    value = given.get(name)
    if value is None:
        return default
    kind = "an integer" if whole else "a number"
    right = isinstance(value, int) or (isinstance(value, float) and (not whole or value.is_integer()))
    if isinstance(value, bool) or not right or not math.isfinite(value):
        raise errors.BadRequest(f"The parameter {name} must be {kind}.", field=f"parameters.{name}")
    if not least <= value <= most:
        raise errors.BadRequest(
            f"The parameter {name} must be between {least:g} and {most:g}, not {value}.",
            field=f"parameters.{name}",
        )
    return float(value)


def _size(parameters: Mapping[str, Any], model: Model) -> tuple[int, int]:
    size = parameters.get("size")
    if size is None:
        return model.default_side, model.default_side
    if size not in model.sizes:
        raise errors.BadRequest(
            f"The size is not match the allowed size {model.sizes}", field="parameters.size"
        )
    width, _, height = size.partition("*")
    return int(width), int(height)
