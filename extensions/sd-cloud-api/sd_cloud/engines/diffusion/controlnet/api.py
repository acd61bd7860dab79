"""What sd-webui-controlnet's own routes take and answer, as plain data. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.preprocess.table import MODULES, find_module, module_list, sorted_modules
from sd_cloud.errors import BadRequest
from sd_cloud.settings import Settings

API_VERSION = 3
UNIT_COUNT = 3
DETECT_LIMIT = 64
DETECT_NUMBERS = ("controlnet_processor_res", "controlnet_threshold_a", "controlnet_threshold_b")

# Other words under which a control type's models and preprocessors go.
_ALSO = {
    "instructp2p": ("ip2p",),
    "segmentation": ("seg",),
    "normalmap": ("normal",),
    "t2i-adapter": ("t2i_adapter", "t2iadapter", "t2ia"),
    "ip-adapter": ("ip_adapter", "ipadapter"),
    "openpose": ("densepose",),
    "instant-id": ("instant_id", "instantid"),
    "scribble": ("sketch",),
    "tile": ("blur",),
}

_UNION = frozenset(
    (
        *("openpose", "depth", "softedge", "scribble", "canny", "lineart", "mlsd", "normalmap"),
        *("segmentation", "inpaint", "tile"),
    )
)
"""The control types that a ControlNet Union model is listed under, too."""

__all__ = [
    "checked_detection",
    "control_types",
    "model_list",
    "module_list",
    "settings_answer",
    "version",
]


def version() -> dict[str, int]:
    """``GET /controlnet/version``."""
    return {"version": API_VERSION}


def settings_answer(option: Any = UNIT_COUNT) -> dict[str, int]:
    """``GET /controlnet/settings``; ``option`` is ``control_net_unit_count``."""
    return {"control_net_unit_count": int(option)}


def model_list(models: Sequence[ModelFile]) -> dict[str, list[str]]:
    """``GET /controlnet/model_list``: names with their short hash."""
    return {"model_list": [one.name for one in models]}


def control_types(models: Sequence[ModelFile]) -> dict[str, Any]:
    """``GET /controlnet/control_types``: preprocessors and models that go together."""
    tags = sorted({tag for one in MODULES.values() for tag in one.tags})
    return {"control_types": {tag: _control_type(tag, models) for tag in ("All", *tags)}}


def _control_type(tag: str, models: Sequence[ModelFile]) -> dict[str, Any]:
    names = ["None", *(one.name for one in models)]
    modules = sorted_modules()
    if tag == "All":
        shown = [one.shown for one in modules]
        return {"module_list": shown, "model_list": names, "default_option": "none", "default_model": "None"}
    words = (tag.lower(), *_ALSO.get(tag.lower(), ()), *(("union",) if tag.lower() in _UNION else ()))
    fitting = [name for name in names if name == "None" or any(word in name.lower() for word in words)]
    own = [one.shown for one in modules if tag in one.tags or one.name == "none"]
    newest = next((name for name in fitting if "11" in name.split("[")[0]), None)
    return {
        "module_list": own,
        "model_list": fitting,
        "default_option": own[min(1, len(own) - 1)],
        "default_model": newest or fitting[min(1, len(fitting) - 1)],
    }


def checked_detection(body: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """``POST /controlnet/detect``: the payload of a job of kind ``detect``.

    Looks for the preprocessor's weights: call it off the event loop. Raises BadRequest and
    NotImplementedHere naming the field.
    """
    from sd_cloud.engines.diffusion.preprocess.detect import check_available

    name = body.get("controlnet_module", "none")
    module = find_module(name) if isinstance(name, str) else None
    if module is None:
        raise BadRequest("Module not available", field="controlnet_module")
    if not module.makes_picture:
        raise BadRequest(
            f"Module not supported: {name} makes an embedding, no picture", field="controlnet_module"
        )
    images = _texts(body, "controlnet_input_images")
    if not images:
        raise BadRequest("No image selected", field="controlnet_input_images")
    if len(images) > DETECT_LIMIT:
        raise BadRequest(f"more than {DETECT_LIMIT} pictures", field="controlnet_input_images")
    masks = _texts(body, "controlnet_masks") if module.is_inpaint else []
    if module.is_inpaint and len(masks) != len(images):
        raise BadRequest(
            f"Preprocessor {name} requires `controlnet_masks` param: one mask for each picture",
            field="controlnet_masks",
        )
    numbers = {name: _number(body, name) for name in DETECT_NUMBERS}
    check_available(module, settings, field="controlnet_module")
    return {
        "controlnet_module": name,
        "controlnet_input_images": images,
        "controlnet_masks": masks,
        **numbers,
    }


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    sent = body.get(name) or []
    if not isinstance(sent, list) or not all(isinstance(one, str) for one in sent):
        raise BadRequest("expected a list of pictures: base64, data: URLs or links", field=name)
    return sent


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name, -1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{value!r} is not a number", field=name)
    return float(value)
