"""Which preprocessor ``ip-adapter-auto`` stands for: by the published names of models."""

from __future__ import annotations

from collections.abc import Mapping

from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.engines.diffusion.preprocess.table import MODULES
from sd_cloud.errors import BadRequest

_BY_PREPROCESSOR = {
    "ip-adapter_clip_sd15": (
        *("ip-adapter_sd15_light", "ip-adapter_sd15_light_v11", "ip-adapter_sd15", "ip-adapter-plus_sd15"),
        *("ip-adapter_sd15_plus", "ip-adapter_plus_composition_sd15", "ip-adapter-plus-face_sd15"),
        *("ip-adapter-full-face_sd15", "ip-adapter_sdxl_vit-h", "ip-adapter-plus_sdxl_vit-h"),
        *("ip-adapter_plus_composition_sdxl", "ip-adapter-plus-face_sdxl_vit-h"),
    ),
    "ip-adapter_clip_sdxl": ("ip-adapter_sd15_vit-G", "ip-adapter_sdxl"),
    "ip-adapter_face_id": (
        *("ip-adapter-faceid_sd15", "ip-adapter-faceid-portrait_sd15", "ip-adapter-faceid-portrait-v11_sd15"),
        *("ip-adapter-faceid_sdxl", "ip-adapter-faceid-portrait_sdxl"),
    ),
    "ip-adapter_face_id_plus": (
        *("ip-adapter-faceid-plus_sd15", "ip-adapter-faceid-plusv2_sd15", "ip-adapter-faceid-plusv2_sdxl"),
    ),
    "ip-adapter_pulid": ("ip-adapter_pulid_sdxl_fp16",),
}
BY_MODEL: Mapping[str, str] = {name: module for module, names in _BY_PREPROCESSOR.items() for name in names}


def module_for(unit: ControlUnit) -> Module:
    """Raises BadRequest for a model of another name, as the extension does."""
    name = unit.model.split("[")[0].strip()
    if name not in BY_MODEL:
        raise BadRequest(
            f"{name!r} is none of the published IP-Adapters' names, from which 'ip-adapter-auto' knows what "
            f"the model takes ({', '.join(sorted(BY_MODEL))}); send its preprocessor as 'module'",
            field=f"{unit.field}.model",
        )
    return MODULES[BY_MODEL[name]]
