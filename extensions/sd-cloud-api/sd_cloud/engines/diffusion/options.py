"""The webui's options as one job sees them, with the webui's defaults and the right types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_cloud.errors import BadRequest
from sd_cloud.job import Job

DEFAULTS: dict[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "add_model_hash_to_info": True,
    "add_model_name_to_info": True,
    "add_user_name_to_info": False,
    "add_vae_hash_to_info": True,
    "add_vae_name_to_info": True,
    "add_version_to_infotext": True,
    "always_discard_next_to_last_sigma": False,
    "batch_cond_uncond": True,
    "beta_dist_alpha": 0.6,
    "beta_dist_beta": 0.6,
    "comma_padding_backtrack": 20,
    "emphasis": "Original",
    "enable_pnginfo": True,
    "enable_prompt_comments": True,
    "enable_quantization": False,
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "eta_noise_seed_delta": 0,
    "extra_networks_default_multiplier": 1.0,
    "face_restoration": False,
    "face_restoration_model": "CodeFormer",
    "code_former_weight": 0.5,
    "cache_fp16_weight": False,
    "fp8_storage": "Disable",
    "hypertile_enable_unet": False,
    "hypertile_enable_unet_secondpass": False,
    "hypertile_enable_vae": False,
    "hypertile_max_depth_unet": 3,
    "hypertile_max_depth_vae": 3,
    "hypertile_max_tile_unet": 256,
    "hypertile_max_tile_vae": 128,
    "hypertile_swap_size_unet": 3,
    "hypertile_swap_size_vae": 3,
    "grid_background_color": "#ffffff",
    "grid_only_if_multiple": True,
    "grid_prevent_empty_spots": False,
    "grid_save": True,
    "grid_text_active_color": "#000000",
    "grid_text_inactive_color": "#999999",
    "hires_fix_refiner_pass": "second pass",
    "img2img_background_color": "#ffffff",
    "img2img_color_correction": False,
    "img2img_extra_noise": 0.0,
    "img2img_fix_steps": False,
    "img_max_size_mp": 200,
    "initial_noise_multiplier": 1.0,
    "inpainting_mask_weight": 1.0,
    "deepbooru_escape": True,
    "deepbooru_filter_tags": "",
    "deepbooru_sort_alpha": True,
    "deepbooru_use_spaces": True,
    "interrogate_clip_dict_limit": 1500,
    "interrogate_clip_max_length": 48,
    "interrogate_clip_min_length": 24,
    "interrogate_clip_num_beams": 1,
    "interrogate_clip_skip_categories": [],
    "interrogate_deepbooru_score_threshold": 0.5,
    "interrogate_keep_models_in_memory": False,
    "interrogate_return_ranks": False,
    "live_preview_content": "Prompt",
    "live_previews_enable": True,
    "show_progress_grid": True,
    "show_progress_every_n_steps": 10,
    "show_progress_type": "Approx NN",
    "lora_add_hashes_to_infotext": True,
    "lora_bundled_ti_to_infotext": True,
    "lora_preferred_name": "Alias from file",
    "n_rows": -1,
    "no_dpmpp_sde_batch_determinism": False,
    "overlay_inpaint": True,
    "pad_cond_uncond": False,
    "pad_cond_uncond_v0": False,
    "randn_source": "GPU",
    "refiner_switch_by_sample_steps": False,
    "return_grid": True,
    "return_mask": False,
    "return_mask_composite": False,
    "rho": 0.0,
    "s_churn": 0.0,
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "s_noise": 1.0,
    "s_tmax": 0.0,
    "s_tmin": 0.0,
    "samples_save": True,
    "save_images_before_color_correction": False,
    "save_images_before_face_restoration": False,
    "save_images_before_highres_fix": False,
    "save_init_img": False,
    "save_mask": False,
    "save_mask_composite": False,
    "sd_hypernetwork": "None",
    "sd_lora": "None",
    "sd_model_checkpoint": None,
    "sd_noise_schedule": "Default",
    "sd_vae": "Automatic",
    "sd_vae_decode_method": "Full",
    "sd_vae_encode_method": "Full",
    "sd_vae_overrides_per_model_preferences": True,
    "sdxl_clip_l_skip": False,
    "sdxl_crop_left": 0,
    "sdxl_crop_top": 0,
    "sdxl_refiner_high_aesthetic_score": 6.0,
    "sdxl_refiner_low_aesthetic_score": 2.5,
    "sgm_noise_multiplier": False,
    "sigma_max": 0.0,
    "sigma_min": 0.0,
    "skip_early_cond": 0.0,
    "textual_inversion_add_hashes_to_infotext": True,
    "tiling": False,
    "token_merging_ratio": 0.0,
    "token_merging_ratio_hr": 0.0,
    "token_merging_ratio_img2img": 0.0,
    "uni_pc_lower_order_final": True,
    "uni_pc_order": 3,
    "uni_pc_skip_type": "time_uniform",
    "uni_pc_variant": "bh1",
    "upscaler_for_img2img": None,
    "use_downcasted_alpha_bar": False,
    "use_old_emphasis_implementation": False,
    "use_old_hires_fix_width_height": False,
    "use_old_karras_scheduler_sigmas": False,
    "use_old_scheduling": False,
    "hires_fix_use_firstpass_conds": False,
}
"""What the engine reads, as a fresh webui 1.10.1 has it (its ``/sdapi/v1/options``)."""


LIMIT_NUMBER = 2**62
"""What a tensor and a seed hold, with room for another added to it."""


class Options:
    """Options of one job: ``override_settings``, then the job's snapshot, then the defaults.

    Each getter raises BadRequest, naming the option, when the value is of another type.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def get(self, name: str) -> Any:
        value = self._job.option(name, DEFAULTS[name])
        return DEFAULTS[name] if value is None else value

    @property
    def own(self) -> Mapping[str, Any]:
        """What the request itself sets."""
        own: Mapping[str, Any] = self._job.payload.get("override_settings") or {}
        return own

    def merging_ratio(self, *, source: bool, second: bool) -> float:
        """The share of tokens to merge, with or without a source picture, in the second pass or not."""
        plain = self.number("token_merging_ratio")
        if source:
            asked = plain if "token_merging_ratio" in self.own else 0
            return asked or self.number("token_merging_ratio_img2img") or plain
        return (self.number("token_merging_ratio_hr") if second else 0) or plain

    def changed(self, name: str) -> float | None:
        """A number where it is not the default, as it was written."""
        value = self.number(name)
        return None if value == DEFAULTS[name] else value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool | int):
            raise _wrong(name, value, "true or false")
        return bool(value)

    def number(self, name: str) -> float:
        return self._number(name, "a number")  # as it was written: infotexts tell 5 from 5.0

    def whole(self, name: str) -> int:
        value = self._number(name, "a whole number")
        if value != int(value):
            raise _wrong(name, value, "a whole number")
        return int(value)

    def _number(self, name: str, wanted: str) -> float:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, value, wanted)
        if not abs(value) <= LIMIT_NUMBER:
            raise _wrong(name, value, "at most 2^62, above or below 0")
        return value

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return value


def _wrong(name: str, value: Any, wanted: str) -> BadRequest:
    return BadRequest(f"must be {wanted}, not {value!r:.80}", field=f"override_settings.{name}")
