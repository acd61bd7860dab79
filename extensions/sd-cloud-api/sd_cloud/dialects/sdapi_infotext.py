"""The request field ``infotext``: what it says fills in what the request itself does not set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sd_cloud.dialects.sdapi_checks import SOFT_INPAINTING
from sd_cloud.engines.diffusion.scripts import forms
from sd_cloud.errors import BadRequest
from sd_cloud.job import Kind
from sd_cloud.outputs.infotext_parse import parse_infotext


def _flag(*true: str) -> Callable[[str], bool]:
    return lambda value: value in true


def _said(value: str) -> bool:
    return value != "False"


_Fields = Mapping[str, tuple[str, Callable[[str], Any]]]
"""By the infotext's name of a value: the request's field, and what reads it."""

_ALWAYS: _Fields = {
    "Steps": ("steps", int),
    "Sampler": ("sampler_name", str),
    "Schedule type": ("scheduler", str),
    "Seed": ("seed", int),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("subseed_strength", float),
    # The webui's API takes width for height here.
    "Seed resize from-1": ("seed_resize_from_h", int),
    "Seed resize from-2": ("seed_resize_from_w", int),
    "Refiner": ("refiner_checkpoint", str),
    "Refiner switch at": ("refiner_switch_at", float),
}
_COMMON: _Fields = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "CFG scale": ("cfg_scale", float),
    "Size-1": ("width", int),
    "Size-2": ("height", int),
    "Batch size": ("batch_size", int),
    "Denoising strength": ("denoising_strength", float),
}
_TXT2IMG: _Fields = {
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
_IMG2IMG_PAGE: _Fields = {
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
_OPTIONS: _Fields = {
    "Model hash": ("sd_model_checkpoint", str),
    "VAE": ("sd_vae", str),
    "VAE Encoder": ("sd_vae_encode_method", str),
    "VAE Decoder": ("sd_vae_decode_method", str),
    "Clip skip": ("CLIP_stop_at_last_layers", int),
    "Emphasis": ("emphasis", str),
    "RNG": ("randn_source", str),
    "Tiling": ("tiling", _said),
    "Face restoration": ("face_restoration", _said),
    "Hires refiner": ("hires_fix_refiner_pass", str),
    "Conditional mask weight": ("inpainting_mask_weight", float),
    "Noise multiplier": ("initial_noise_multiplier", float),
    "Extra noise": ("img2img_extra_noise", float),
    "NGMS": ("s_min_uncond", float),
    "NGMS all steps": ("s_min_uncond_all", _said),
    "Skip Early CFG": ("skip_early_cond", float),
    "Token merging ratio": ("token_merging_ratio", float),
    "Token merging ratio hr": ("token_merging_ratio_hr", float),
    "Pad conds": ("pad_cond_uncond", _said),
    "Pad conds v0": ("pad_cond_uncond_v0", _said),
    "Old prompt editing timelines": ("use_old_scheduling", _said),
    "Downcast alphas_cumprod": ("use_downcasted_alpha_bar", _said),
    "Refiner switch by sampling steps": ("refiner_switch_by_sample_steps", _said),
    "ENSD": ("eta_noise_seed_delta", int),
    "Eta": ("eta_ancestral", float),
    "Eta DDIM": ("eta_ddim", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", float),
    "Sigma noise": ("s_noise", float),
    "Schedule rho": ("rho", float),
    "Schedule min sigma": ("sigma_min", float),
    "Schedule max sigma": ("sigma_max", float),
    "Discard penultimate sigma": ("always_discard_next_to_last_sigma", _said),
    "SGM noise multiplier": ("sgm_noise_multiplier", _said),
    "Noise Schedule": ("sd_noise_schedule", str),
    "Beta scheduler alpha": ("beta_dist_alpha", float),
    "Beta scheduler beta": ("beta_dist_beta", float),
    "UniPC variant": ("uni_pc_variant", str),
    "UniPC skip type": ("uni_pc_skip_type", str),
    "UniPC order": ("uni_pc_order", int),
    "UniPC lower order final": ("uni_pc_lower_order_final", _said),
    "Hypertile U-Net": ("hypertile_enable_unet", _said),
    "Hypertile U-Net second pass": ("hypertile_enable_unet_secondpass", _said),
    "Hypertile U-Net max depth": ("hypertile_max_depth_unet", int),
    "Hypertile U-Net max tile size": ("hypertile_max_tile_unet", int),
    "Hypertile U-Net swap size": ("hypertile_swap_size_unet", int),
    "Hypertile VAE": ("hypertile_enable_vae", _said),
    "Hypertile VAE max depth": ("hypertile_max_depth_vae", int),
    "Hypertile VAE max tile size": ("hypertile_max_tile_vae", int),
    "Hypertile VAE swap size": ("hypertile_swap_size_vae", int),
}
"""Each option that the webui gives a name in infotexts, that one's ``fp8_storage`` aside: it gives none."""

#: What a first pass alone would not have written.
_HIRES = ("Hires upscale", "Hires upscaler")
#: What the webui's API takes where an infotext names no sampler.
_UNNAMED = "DPM++ 2M"
_SOFT_INPAINTING = tuple(f"Soft inpainting {one.label.lower()}" for one in forms.SOFT_INPAINTING[1:])


def filled_in(
    kind: Kind, sent: Mapping[str, Any], named: Collection[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """A request with what its ``infotext`` says in every field that the request does not name.

    Options it mentions go to ``override_settings`` where they differ from the host's (``options``).
    img2img takes no more than seeds, sampler, refiner and options from it, as in the webui's API.
    Raises BadRequest for an infotext whose numbers are none.
    """
    said = _told(sent["infotext"], options)
    table = _ALWAYS if kind == "img2img" else {**_ALWAYS, **_COMMON, **_TXT2IMG}
    whole = {**sent, **_values(said, table, named)}
    if kind == "txt2img" and "enable_hr" not in named:
        whole["enable_hr"] = "Denoising strength" in said and any(label in said for label in _HIRES)
    override = dict(sent.get("override_settings") or {})
    for label, (option, read) in _OPTIONS.items():
        if label not in said or option in override:
            continue
        if option == "sd_model_checkpoint" and options.get("disable_weights_auto_swap", True):
            continue
        value = _read(label, said[label], read)
        if value != options.get(option):
            override[option] = value
    whole["override_settings"] = override
    scripts = sent.get("alwayson_scripts") or {}
    if kind == "img2img" and SOFT_INPAINTING not in map(str.lower, scripts):
        enabled = said.get("Soft inpainting enabled") == "True"
        if enabled and all(label in said for label in _SOFT_INPAINTING):
            args = [True, *(_read(label, said[label], float) for label in _SOFT_INPAINTING)]
            whole["alwayson_scripts"] = {**scripts, SOFT_INPAINTING: {"args": args}}
    return whole


def pasted_fields(kind: Kind, infotext: str) -> dict[str, Any]:
    """The fields that a page's form takes from an infotext: more of img2img than its API does."""
    said = parse_infotext(infotext)
    table = {**_ALWAYS, **_COMMON, **(_TXT2IMG if kind == "txt2img" else _IMG2IMG_PAGE)}
    sides = {
        "Seed resize from-1": ("seed_resize_from_w", int),
        "Seed resize from-2": ("seed_resize_from_h", int),
    }
    found = _values(said, {**table, **sides}, ())
    if kind == "txt2img":
        found["enable_hr"] = any(label in said for label in _HIRES)
    return found


def _told(infotext: str, options: Mapping[str, Any]) -> dict[str, Any]:
    skipped = options.get("infotext_skip_pasting") or ()
    said = {label: value for label, value in parse_infotext(infotext).items() if label not in skipped}
    return {"Sampler": _UNNAMED, **said}


def _values(said: Mapping[str, Any], table: _Fields, named: Collection[str]) -> dict[str, Any]:
    """What an infotext itself says; what is not in it is left as the request has it."""
    unsaid = parse_infotext("")
    return {
        field: _read(label, said[label], read)
        for label, (field, read) in table.items()
        if label in said and field not in named and said[label] != unsaid.get(label)
    }


def _read(label: str, value: Any, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(value))
    except (ValueError, KeyError):
        raise BadRequest(f"{label} says {value!r}, which cannot be read", field="infotext") from None
