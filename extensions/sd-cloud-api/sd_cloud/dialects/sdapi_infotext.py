"""The request field ``infotext``: what it says fills in what the request itself does not set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sd_cloud.errors import BadRequest
from sd_cloud.outputs.infotext_parse import parse_infotext


def _flag(*true: str) -> Callable[[str], bool]:
    return lambda value: value in true


_COMMON: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "Steps": ("steps", int),
    "Sampler": ("sampler_name", str),
    "Schedule type": ("scheduler", str),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Batch size": ("batch_size", int),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("subseed_strength", float),
    "Seed resize from-1": ("seed_resize_from_w", int),
    "Seed resize from-2": ("seed_resize_from_h", int),
    "Denoising strength": ("denoising_strength", float),
    "Refiner": ("refiner_checkpoint", str),
    "Refiner switch at": ("refiner_switch_at", float),
}
_TXT2IMG: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Hires upscale": ("hr_scale", float),
    "Hires upscaler": ("hr_upscaler", str),
    "Hires steps": ("hr_second_pass_steps", int),
    "Hires resize-1": ("hr_resize_x", int),
    "Hires resize-2": ("hr_resize_y", int),
    "Hires checkpoint": ("hr_checkpoint_name", str),
    "Hires sampler": ("hr_sampler_name", str),
    "Hires schedule type": ("hr_scheduler", str),
    "Hires prompt": ("hr_prompt", str),
    "Hires negative prompt": ("hr_negative_prompt", str),
}
_IMG2IMG: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Image CFG scale": ("image_cfg_scale", float),
    "Mask mode": ("inpainting_mask_invert", _flag("Inpaint not masked")),
    "Mask blur": ("mask_blur", int),
    "Inpaint area": ("inpaint_full_res", _flag("Only masked")),
    "Masked area padding": ("inpaint_full_res_padding", int),
    "Masked content": (
        "inpainting_fill",
        {"fill": 0, "original": 1, "latent noise": 2, "latent nothing": 3}.__getitem__,
    ),
}
_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Model hash": ("sd_model_checkpoint", str),
    "VAE": ("sd_vae", str),
    "Clip skip": ("CLIP_stop_at_last_layers", int),
    "ENSD": ("eta_noise_seed_delta", int),
    "Eta": ("eta_ancestral", float),
    "Eta DDIM": ("eta_ddim", float),
    "RNG": ("randn_source", str),
    "Emphasis": ("emphasis", str),
    "Sigma churn": ("s_churn", float),
    "Sigma noise": ("s_noise", float),
    "NGMS": ("s_min_uncond", float),
    "Noise multiplier": ("initial_noise_multiplier", float),
    "Schedule rho": ("rho", float),
    "Schedule min sigma": ("sigma_min", float),
    "Schedule max sigma": ("sigma_max", float),
}
#: Which hires fields a first pass alone would not have written.
_HIRES = ("Hires upscale", "Hires upscaler")


def filled_in(kind: str, sent: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """A request with what its ``infotext`` says in every field that the request does not name.

    Options it mentions go to ``override_settings`` where their value is not the default.
    Raises BadRequest for an infotext whose numbers are none.
    """
    said = parse_infotext(sent["infotext"])
    unsaid = parse_infotext("")
    whole = dict(sent)
    table = {**_COMMON, **(_TXT2IMG if kind == "txt2img" else _IMG2IMG)}
    for label, (field, read) in table.items():
        if label in said and field not in named and said[label] != unsaid.get(label):
            whole[field] = _read(label, said[label], read)
    if kind == "txt2img" and "enable_hr" not in named:
        whole["enable_hr"] = any(label in said for label in _HIRES)
    override = dict(sent.get("override_settings") or {})
    for label, (option, read) in _OPTIONS.items():
        if label in said and option not in override and said[label] != unsaid.get(label):
            override[option] = _read(label, said[label], read)
    whole["override_settings"] = override
    return whole


def _read(label: str, value: Any, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(value))
    except (ValueError, KeyError):
        raise BadRequest(f"{label} says {value!r}, which cannot be read", field="infotext") from None
