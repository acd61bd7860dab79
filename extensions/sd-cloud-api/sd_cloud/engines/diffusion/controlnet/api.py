"""What sd-webui-controlnet's own routes answer, as plain data for the dialect. Never imports torch
except in :func:`detect_images`, and there only for a preprocessor that is a network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.preprocess.table import MODULES, find_module, module_list, sorted_modules
from sd_cloud.errors import BadRequest
from sd_cloud.settings import Settings

API_VERSION = 3
UNIT_COUNT = 3
DETECT_LIMIT = 64

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

__all__ = ["control_types", "detect_images", "model_list", "module_list", "settings_answer", "version"]


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


def detect_images(body: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """``POST /controlnet/detect``: the control maps of pictures, as base64 PNG.

    Takes seconds for large pictures: call it off the event loop. Raises BadRequest and
    NotImplementedHere naming the field.
    """
    import numpy as np
    from PIL import Image

    from sd_cloud.engines.diffusion.controlnet.units import picture
    from sd_cloud.engines.diffusion.preprocess.detect import Detection, detect

    name = body.get("controlnet_module", "none")
    module = find_module(name) if isinstance(name, str) else None
    if module is None:
        raise BadRequest("Module not available", field="controlnet_module")
    images = body.get("controlnet_input_images") or []
    if not isinstance(images, list) or not 0 < len(images) <= DETECT_LIMIT:
        raise BadRequest(f"No image selected, or more than {DETECT_LIMIT}", field="controlnet_input_images")
    masks = body.get("controlnet_masks") or []
    if module.is_inpaint and (not isinstance(masks, list) or len(masks) != len(images)):
        raise BadRequest(f"{name} needs one mask for each image", field="controlnet_masks")
    detection = Detection(
        resolution=module.resolution.settle(_number(body, "controlnet_processor_res")),
        a=module.slider_1.settle(_number(body, "controlnet_threshold_a")),
        b=module.slider_2.settle(_number(body, "controlnet_threshold_b")),
    )
    made = []
    for place, sent in enumerate(images):
        pixels = np.asarray(picture(sent, f"controlnet_input_images[{place}]"))
        if module.is_inpaint:
            mask = picture(masks[place], f"controlnet_masks[{place}]").convert("L")
            grey = np.asarray(mask.resize((pixels.shape[1], pixels.shape[0])))
            pixels = np.dstack([pixels, 255 - grey // 2])
        buffer = io.BytesIO()
        found = detect(module, pixels, detection, settings, field="controlnet_module")
        Image.fromarray(found).save(buffer, "PNG")
        made.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return {"info": "Success", "images": made}


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name, -1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{value!r} is not a number", field=name)
    return float(value)
