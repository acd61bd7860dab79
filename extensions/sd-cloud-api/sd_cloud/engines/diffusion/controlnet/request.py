"""ControlNet units as requests write them, checked. Never imports torch.

Taken are the fields of sd-webui-controlnet's ``ControlNetUnit`` (API version 3) and the older
forms its clients still send: numbers for ``control_mode`` and ``resize_mode``, ``input_image``,
``lowvram``, ``guidance``. ``image_link`` and ``mask_link`` have become ``image`` and ``mask`` by
the time a payload gets here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from sd_cloud.engines.diffusion.controlnet.units import (
    CONTROL_MODES,
    HIRES_OPTIONS,
    PULID_MODES,
    RESIZE_MODES,
    UNION_TYPES,
    ControlUnit,
    ResizeMode,
)
from sd_cloud.engines.diffusion.pictures import decode_picture
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.engines.diffusion.preprocess.table import MODULES, find_module
from sd_cloud.errors import BadRequest, NotImplementedHere

OLD_RESIZE_MODES = {
    "Inner Fit (Scale to Fit)": "Crop and Resize",
    "Scale to Fit (Inner Fit)": "Crop and Resize",
    "Outer Fit (Shrink to Fit)": "Resize and Fill",
    "Envelope (Outer Fit)": "Resize and Fill",
}
FIELDS = frozenset(
    (
        *("enabled", "module", "model", "weight", "image", "mask", "resize_mode", "low_vram"),
        *("processor_res", "threshold_a", "threshold_b", "guidance_start", "guidance_end"),
        *("pixel_perfect", "control_mode", "inpaint_crop_input_image", "hr_option"),
        *("save_detected_map", "advanced_weighting", "effective_region_mask", "input_mode"),
        *("ipadapter_input", "union_control_type", "image_link", "mask_link", "pulid_mode"),
    )
)
WHERE = "alwayson_scripts.controlnet"
IDLE_VALUES: tuple[Any, ...] = (None, "", False, [])
WITHOUT_EFFECT = frozenset(
    (
        *("is_ui", "batch_images", "output_dir", "loopback", "batch_mask_dir"),
        *("animatediff_batch", "batch_modifiers", "batch_image_files", "batch_keyframe_idx"),
        *("guess_mode",),
    )
)
"""Fields of the webui's page and of other extensions: of no effect, whatever they say."""
OLD_NAMES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image", "mask_image": "mask"}


def control_units(payload: Mapping[str, Any]) -> tuple[ControlUnit, ...]:
    """The enabled units of a request, ``alwayson_scripts.controlnet.args``.

    Raises BadRequest or NotImplementedHere naming the unit's field.
    """
    units: list[ControlUnit] = []
    for place, sent in enumerate(_sent_units(payload)):
        field = f"{WHERE}.args[{place}]"
        if isinstance(sent, (bool, str)) or sent is None:
            continue  # what the oldest clients put before the units: is_img2img, is_ui
        if not isinstance(sent, Mapping):
            raise BadRequest("must be an object with the fields of a ControlNet unit", field=field)
        if _flag(sent, "enabled", True, field):
            units += _unfolded(sent, field)
    return tuple(replace(unit, number=number) for number, unit in enumerate(units))


def _sent_units(payload: Mapping[str, Any]) -> list[Any]:
    scripts = payload.get("alwayson_scripts") or {}
    section = next((value for key, value in scripts.items() if key.lower() == "controlnet"), None)
    if section is None:
        return []
    args = section.get("args") if isinstance(section, Mapping) else section
    if isinstance(args, Mapping):
        args = [args]
    if not isinstance(args, list):
        raise BadRequest("must be {'args': [unit, ...]}", field=WHERE)
    return args


def unit_remarks(payload: Mapping[str, Any]) -> list[str]:
    """A sentence for each enabled unit that names what it says and nothing is done with, and for each text
    where a unit belongs."""
    said = []
    for place, sent in enumerate(_sent_units(payload)):
        if isinstance(sent, str):
            said.append(f"{WHERE}.args[{place}]: not used: {sent!r:.80} is no unit")
        if not isinstance(sent, Mapping) or not sent.get("enabled", True):
            continue
        foreign = sorted(set(sent) - FIELDS - WITHOUT_EFFECT - set(OLD_NAMES))
        idle = sorted(name for name in WITHOUT_EFFECT & set(sent) if sent[name] not in IDLE_VALUES)
        if foreign or idle:
            names = ", ".join([*foreign, *idle])
            said.append(f"{WHERE}.args[{place}]: not used: {names}")
    return said


def _unfolded(sent: Mapping[str, Any], field: str) -> list[ControlUnit]:
    """One unit, or with ``input_mode`` ``merge`` one for each image at a share of the weight."""
    values = _renamed(sent, field)
    mode = values.get("input_mode", "simple")
    if mode not in ("simple", "merge"):
        raise NotImplementedHere(
            f"{mode!r}: only 'simple' and 'merge' are served", field=f"{field}.input_mode"
        )
    several = _module(values.get("module"), field).takes_several
    images = _images(values, field, several=several)
    if several:
        image, mask = images[0] if images else (None, None)
        return [replace(_unit(values, field, image, mask), more_images=tuple(images[1:]))]
    if mode == "simple":
        if len(images) > 1:
            raise BadRequest("several images need input_mode 'merge'", field=f"{field}.image")
        image, mask = images[0] if images else (None, None)
        return [_unit(values, field, image, mask)]
    units = [_unit(values, field, image, mask) for image, mask in images]
    return [replace(unit, weight=unit.weight / len(units)) for unit in units]


def _renamed(sent: Mapping[str, Any], field: str) -> dict[str, Any]:
    values = dict(sent)
    for old, name in OLD_NAMES.items():
        if old in values:
            value = values.pop(old)
            if values.get(name) not in (None, value):
                raise BadRequest(f"is the old name of {name!r}; send one of them", field=f"{field}.{old}")
            values[name] = value
    return values


def _unit(
    values: Mapping[str, Any], field: str, image: Image.Image | None, mask: Image.Image | None
) -> ControlUnit:
    module = _module(values.get("module"), field)
    _flag(values, "low_vram", False, field)  # the engine's own flags decide
    start = _number(values, "guidance_start", 0.0, 0.0, 1.0, field)
    end = _number(values, "guidance_end", 1.0, 0.0, 1.0, field)
    if start > end:
        raise BadRequest(f"{start} is after guidance_end {end}", field=f"{field}.guidance_start")
    region = values.get("effective_region_mask")
    return ControlUnit(
        number=0,
        field=field,
        module=module,
        model=_text(values, "model", "None", field),
        weight=_number(values, "weight", 1.0, 0.0, 2.0, field),
        image=image,
        mask=mask,
        resize_mode=_resize_mode(values.get("resize_mode", 1), field),
        resolution=_whole(module.resolution.settle(_number(values, "processor_res", -1, None, None, field))),
        threshold_a=module.slider_1.settle(_number(values, "threshold_a", -1, None, None, field)),
        threshold_b=module.slider_2.settle(_number(values, "threshold_b", -1, None, None, field)),
        guidance_start=start,
        guidance_end=end,
        pixel_perfect=_flag(values, "pixel_perfect", False, field),
        control_mode=_choice(values.get("control_mode", 0), CONTROL_MODES, f"{field}.control_mode"),
        hires=_choice(values.get("hr_option") or 0, HIRES_OPTIONS, f"{field}.hr_option"),
        crop_to_mask=_flag(values, "inpaint_crop_input_image", True, field),
        save_map=_flag(values, "save_detected_map", True, field),
        layer_weights=_layer_weights(values.get("advanced_weighting"), field),
        region=None if region is None else _region(region, f"{field}.effective_region_mask"),
        module_sent=_text(values, "module", "none", field),
        union_type=_choice(
            values.get("union_control_type") or "Unknown", UNION_TYPES, f"{field}.union_control_type"
        ),
        embeddings=_embeddings(values.get("ipadapter_input"), f"{field}.ipadapter_input"),
        pulid_mode=_choice(values.get("pulid_mode") or 0, PULID_MODES, f"{field}.pulid_mode"),
    )


def _embeddings(sent: Any, field: str) -> tuple[bytes, ...]:
    if sent is None:
        return ()
    texts = [sent] if isinstance(sent, str) else sent
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise BadRequest("must be tensors as torch saves them, in base64", field=field)
    try:
        return tuple(base64.b64decode(one, validate=True) for one in texts)
    except binascii.Error as error:
        raise BadRequest(f"is not base64: {error}", field=field) from error


def _module(name: Any, field: str) -> Module:
    wanted = "none" if name in (None, "", "None") else name
    found = find_module(wanted) if isinstance(wanted, str) else None
    if found is None:
        there = ", ".join(sorted(MODULES))
        raise BadRequest(f"no preprocessor is named {name!r}; there are: {there}", field=f"{field}.module")
    return found


def _images(
    values: Mapping[str, Any], field: str, *, several: bool = False
) -> list[tuple[Image.Image, Image.Image | None]]:
    """``image`` in each form the extension takes: text, {image, mask}, [image, mask], [{...}, ...].

    ``several``: of an image prompt, for which two texts are an image and a mask in any mode.
    """
    image, mask = values.get("image"), values.get("mask")
    if image is None or image == "":
        return []
    if isinstance(image, str):
        pairs: list[tuple[Any, Any]] = [(image, mask)]
    elif isinstance(image, Mapping):
        pairs = [(image.get("image"), image.get("mask"))]
    elif isinstance(image, list) and image and all(isinstance(one, Mapping) for one in image):
        pairs = [(one.get("image"), one.get("mask")) for one in image]
    elif isinstance(image, list) and values.get("input_mode") == "merge" and not several:
        pairs = [(one, None) for one in image]
    elif isinstance(image, list) and len(image) == 2:
        pairs = [(image[0], image[1])]
    else:
        raise BadRequest("must be a picture in base64, or {image, mask}", field=f"{field}.image")
    return [_pair(one, its_mask, field) for one, its_mask in pairs]


def _pair(image: Any, mask: Any, field: str) -> tuple[Image.Image, Image.Image | None]:
    found = picture(image, f"{field}.image")
    if mask in (None, ""):
        return found, None
    its_mask = picture(mask, f"{field}.mask").convert("L")
    if its_mask.size != found.size:
        raise BadRequest(f"is {its_mask.size}, the image is {found.size}", field=f"{field}.mask")
    return found, its_mask


def picture(value: Any, field: str) -> Image.Image:
    """A picture from base64 (with or without ``data:...,``), transparency laid over white; RGB."""
    if not isinstance(value, str):
        raise BadRequest("must be a picture in base64", field=field)
    found = decode_picture(value, field)
    if found.mode in ("RGBA", "LA", "PA") or "transparency" in found.info:
        over = Image.new("RGBA", found.size, "white")
        over.alpha_composite(found.convert("RGBA"))
        return over.convert("RGB")
    return found.convert("RGB")


def _region(value: Any, field: str) -> Image.Image:
    """The picture's red, as in the extension."""
    if not isinstance(value, str):
        raise BadRequest("must be a picture in base64", field=field)
    return decode_picture(value, field).convert("RGB").getchannel("R")


def _number(
    values: Mapping[str, Any], name: str, default: float, low: float | None, high: float | None, field: str
) -> float:
    value = values.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{value!r} is not a number", field=f"{field}.{name}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise BadRequest(f"{value} is not from {low:g} to {high:g}", field=f"{field}.{name}")
    return float(value)


def _flag(values: Mapping[str, Any], name: str, default: bool, field: str) -> bool:
    value = values.get(name)
    if value is None:
        return default
    if value not in (True, False):
        raise BadRequest(f"{value!r:.80} is not true or false", field=f"{field}.{name}")
    return bool(value)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _text(values: Mapping[str, Any], name: str, default: str, field: str) -> str:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise BadRequest(f"{value!r} is not a text", field=f"{field}.{name}")
    return value


def _resize_mode(value: Any, field: str) -> ResizeMode:
    if value == 3 and not isinstance(value, bool):
        return "Just Resize"  # img2img's "Just resize (latent upscale)"
    known = OLD_RESIZE_MODES.get(value, value) if isinstance(value, str) else value
    found: ResizeMode = _choice(known, RESIZE_MODES, f"{field}.resize_mode")
    return found


def _choice(value: Any, choices: Sequence[Any], field: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return choices[value]
    if isinstance(value, str):
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
    numbered = ", ".join(f"{place} or {choice!r}" for place, choice in enumerate(choices))
    raise BadRequest(f"{value!r} is none of {numbered}", field=field)


def _layer_weights(value: Any, field: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, (int, float)) for one in value):
        raise BadRequest("must be a list of numbers, one a layer", field=f"{field}.advanced_weighting")
    return tuple(float(one) for one in value)
