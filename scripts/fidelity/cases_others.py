"""Families of checkpoints, options, scripts, the other routes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scripts.fidelity import pictures
from scripts.fidelity.case import CAT, PARTS, Case, case, hires_fields, source, under


def _with(name: str, **options: Any) -> Case:
    return case("options", f"option {name}", override_settings=options)


def _families() -> Iterator[Case]:
    for short, checkpoint in (("SDXL", "tiny-sdxl"), ("SD 2", "tiny-sd2v")):
        changes: dict[str, dict[str, Any]] = {
            "clip skip 2": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
            "136x72": {"width": 136, "height": 72},
            "editing and AND": {"prompt": "a [cat:dog:0.5] AND [red|blue] house :0.6"},
            "long both": {"prompt": PARTS, "negative_prompt": "cat, " * 50},
            "batch of 2": {"batch_size": 2},
            "DDIM": {"sampler_name": "DDIM"},
            "LCM": {"sampler_name": "LCM"},
            "DPM++ 3M SDE": {"sampler_name": "DPM++ 3M SDE"},
            "inpaint": {"mask": pictures.mask(), **source(0.8), "inpainting_fill": 1},
            "subseed": {"subseed": 4, "subseed_strength": 0.5},
            "SD 1 LoRA": {"prompt": f"{CAT} <lora:tiny-style:0.5>"},
            "SD 1 embedding": {"prompt": "a tiny-word cat"},
            "empty": {"prompt": ""},
            "emphasis in BREAK": {"prompt": "(a cat:1.3) BREAK (a dog:0.6)"},
        }
        for name, fields in changes.items():
            options = {"sd_model_checkpoint": checkpoint, **fields.get("override_settings", {})}
            route = "img2img" if "mask" in fields else "txt2img"
            yield case("families", f"{short}, {name}", route, **{**fields, "override_settings": options})
    sdxl = {"sd_model_checkpoint": "tiny-sdxl"}
    for name, value in (
        ("sdxl_crop_top", 32),
        ("sdxl_crop_left", 64),
        ("sdxl_refiner_high_aesthetic_score", 3),
    ):
        yield case("families", f"SDXL, {name}", override_settings={**sdxl, name: value})
    yield case(
        "families",
        "SDXL, sdxl_clip_l_skip",
        override_settings={**sdxl, "sdxl_clip_l_skip": True, "CLIP_stop_at_last_layers": 2},
    )
    yield case(
        "families", "SDXL, sgm_noise_multiplier", override_settings={**sdxl, "sgm_noise_multiplier": True}
    )
    yield case(
        "families", "checkpoint by file name", override_settings={"sd_model_checkpoint": "tiny-b.safetensors"}
    )
    # After it: a file that was never loaded has no hash yet.
    yield case("families", "checkpoint by hash", override_settings={"sd_model_checkpoint": "53b85eef43"})


def _seeing_more() -> Iterator[Case]:
    edit = {"override_settings": {"sd_model_checkpoint": "tiny-edit"}}
    for scale in (None, 1.0, 1.5, 0.3):
        fields = {**source(0.9), "image_cfg_scale": scale}
        yield case("families", f"InstructPix2Pix, image_cfg_scale {scale}", "img2img", **fields, **edit)
    changes: dict[str, dict[str, Any]] = {
        "DDIM": {"sampler_name": "DDIM"},
        "batch of 2": {"batch_size": 2},
        "mask": {"mask": pictures.mask(), "inpainting_fill": 1},
        "AND, image_cfg_scale 1": {"prompt": "a cat AND a dog :0.4", "image_cfg_scale": 1.0},
        "s_min_uncond": {"s_min_uncond": 3.0},
    }
    for name, change in changes.items():
        fields = {**source(0.9), "image_cfg_scale": 1.5, **change}
        yield case("families", f"InstructPix2Pix, {name}", "img2img", **fields, **edit)
    yield case("refusals", "InstructPix2Pix, txt2img", **edit)
    yield case(
        "refusals",
        "InstructPix2Pix, AND",
        "img2img",
        **source(0.9),
        image_cfg_scale=1.5,
        prompt="a AND b",
        **edit,
    )
    inpaint = {"override_settings": {"sd_model_checkpoint": "tiny-inpaint"}}
    masked = {**source(0.8), "mask": pictures.mask(), "inpainting_fill": 1}
    yield case("families", "inpainting model, txt2img", **inpaint)
    yield case("families", "inpainting model, mask", "img2img", **masked, **inpaint)
    # Less than all is masked: the small VAE is too unsteady on a picture of one grey to be compared by.
    weight = {"override_settings": {**inpaint["override_settings"], "inpainting_mask_weight": 0.4}}
    yield case("families", "inpainting model, mask weight", "img2img", **masked, **weight)
    yield case("families", "inpainting model, img2img", "img2img", **source(0.8), **weight)
    for upscaler in ("Latent", "Lanczos", "tiny-compact"):
        fields = hires_fields(hr_upscaler=upscaler)
        yield case("families", f"inpainting model, hires {upscaler}", **fields, **weight)


def _token_merging() -> Iterator[Case]:
    for ratio in (0.2, 0.5, 0.9):
        yield _with(f"token_merging_ratio {ratio}", token_merging_ratio=ratio)
    yield case("options", "option token_merging_ratio, 72x104", width=72, height=104, **_merging(0.4))
    yield case("options", "option token_merging_ratio, batch of 2", batch_size=2, **_merging(0.4))
    yield case("options", "option token_merging_ratio, hires", **hires_fields(), **_merging(0.4))
    both = {"token_merging_ratio": 0.3, "token_merging_ratio_hr": 0.6}
    yield case("options", "option token_merging_ratio_hr", override_settings=both, **hires_fields())
    yield case(
        "options",
        "option token_merging_ratio_hr, n_iter 2",
        n_iter=2,
        override_settings={"token_merging_ratio_hr": 0.6},
        **hires_fields(),
    )
    refiner = {"refiner_checkpoint": "tiny-b", "refiner_switch_at": 0.5}
    yield case("options", "option token_merging_ratio, refiner", **refiner, **_merging(0.4))
    yield case(
        "options", "option token_merging_ratio, refiner, n_iter 2", n_iter=2, **refiner, **_merging(0.4)
    )
    yield case("options", "option token_merging_ratio, img2img", "img2img", **source(0.6), **_merging(0.4))
    own = {"token_merging_ratio_img2img": 0.6}
    yield case(
        "options", "option token_merging_ratio_img2img", "img2img", **source(0.6), override_settings=own
    )
    for checkpoint in ("tiny-sd2v", "tiny-sdxl"):
        options = {"token_merging_ratio": 0.4, "sd_model_checkpoint": checkpoint}
        yield case("options", f"option token_merging_ratio, {checkpoint}", override_settings=options)


def _merging(ratio: float) -> dict[str, Any]:
    return {"override_settings": {"token_merging_ratio": ratio}}


def _options() -> Iterator[Case]:
    yield _with("rho 5, Euler a", rho=5.0)
    yield case("options", "option rho, Karras", sampler_name="DPM++ 2M", override_settings={"rho": 5.0})
    yield case(
        "options",
        "option sigma_min and max",
        scheduler="Karras",
        override_settings={"sigma_min": 0.1, "sigma_max": 10},
    )
    yield _with("sigma_min, Automatic", sigma_min=0.1)
    yield _with("always_discard_next_to_last_sigma", always_discard_next_to_last_sigma=True)
    yield _with("sd_noise_schedule", sd_noise_schedule="Zero Terminal SNR")
    yield _with("use_downcasted_alpha_bar", use_downcasted_alpha_bar=True)
    yield case(
        "options",
        "option use_old_karras",
        scheduler="Karras",
        sampler_name="Euler",
        override_settings={"use_old_karras_scheduler_sigmas": True},
    )
    yield case(
        "options",
        "option no_dpmpp_sde_batch_determinism",
        sampler_name="DPM++ SDE",
        batch_size=2,
        override_settings={"no_dpmpp_sde_batch_determinism": True},
    )
    yield case(
        "options",
        "option enable_quantization",
        sampler_name="Euler",
        override_settings={"enable_quantization": True},
    )
    for name, value in (
        ("uni_pc_variant", "bh2"),
        ("uni_pc_variant", "vary_coeff"),
        ("uni_pc_skip_type", "time_quadratic"),
        ("uni_pc_skip_type", "logSNR"),
        ("uni_pc_order", 2),
        ("uni_pc_lower_order_final", False),
    ):
        yield case("options", f"option {name} {value}", sampler_name="UniPC", override_settings={name: value})
    yield case(
        "options",
        "option beta_dist_alpha",
        scheduler="Beta",
        override_settings={"beta_dist_alpha": 0.8, "beta_dist_beta": 0.5},
    )
    for name in (
        "add_model_hash_to_info",
        "add_model_name_to_info",
        "add_version_to_infotext",
        "add_vae_name_to_info",
        "textual_inversion_add_hashes_to_infotext",
    ):
        fields = {"prompt": "a tiny-word cat"} if "textual" in name else {}
        yield case(
            "options",
            f"option {name} off",
            override_settings={name: False, "sd_vae": "tiny-vae.safetensors"},
            **fields,
        )
    yield _with("sd_vae None", sd_vae="None")
    yield _with("sd_vae Automatic", sd_vae="Automatic")
    yield _with(
        "sd_vae_overrides off", sd_vae="tiny-vae.safetensors", sd_vae_overrides_per_model_preferences=False
    )
    yield _with("sgm_noise_multiplier", sgm_noise_multiplier=True)
    yield from _token_merging()
    yield _with("face_restoration_model", face_restoration_model="GFPGAN")
    yield _with("sd_unet None", sd_unet="None")
    yield _with("sd_hypernetwork None", sd_hypernetwork="None")
    yield _with("live previews off", live_previews_enable=False)
    yield _with("upcast_attn", upcast_attn=True)
    yield _with("eta_noise_seed_delta as text", eta_noise_seed_delta="3")
    yield case("options", "tiling by option", override_settings={"tiling": True}, tiling=None)
    yield case("options", "save_images, n_iter 3", save_images=True, n_iter=3, steps=2)
    yield case("options", "send_images off", send_images=False)
    said = f"{CAT}\nSteps: 4, Sampler: Euler, CFG scale: 5, Seed: 99, Size: 64x72"
    yield Case("options", "infotext field", "txt2img", {"infotext": said, "subseed": 77})
    for name, rest in _infotexts().items():
        told = {"infotext": f"{said}, {rest}", "subseed": 77}
        yield Case("options", f"infotext with {name}", "txt2img", told)
    clip_skip = Case("options", "infotext without Clip skip", "txt2img", {"infotext": said, "subseed": 77})
    yield under(clip_skip, CLIP_stop_at_last_layers=2)
    skipped = Case("options", "infotext_skip_pasting", "txt2img", {"infotext": said, "subseed": 77})
    yield under(skipped, infotext_skip_pasting=["Sampler", "CFG scale"])
    other = f"{said}, Model hash: 53b85eef43, Model: tiny-b"
    swap = Case("options", "infotext with another model", "txt2img", {"infotext": other, "subseed": 77})
    yield swap
    yield under(replace(swap, name="disable_weights_auto_swap"), disable_weights_auto_swap=False)
    image = {"width": 128, "height": 128, "init_images": [pictures.plain()], "denoising_strength": 0.5}
    told = {"infotext": f"{said}, Clip skip: 2, Denoising strength: 0.9", "seed": 99, "subseed": 77, **image}
    yield Case("options", "infotext field of img2img", "img2img", told)


def _infotexts() -> dict[str, str]:
    return {
        "options": "Clip skip: 2, ENSD: 31337, RNG: CPU, Eta: 0.5, Sigma churn: 4, Sigma tmax: 9",
        "more options": "Skip Early CFG: 0.3, Token merging ratio: 0.3, Tiling: True, Emphasis: No norm",
        "sigmas": "Schedule type: Karras, Schedule rho: 5, Schedule max sigma: 11, NGMS: 2",
        "hires": "Denoising strength: 0.6, Hires upscale: 1.5, Hires steps: 3, Hires upscaler: Latent",
        "denoising alone": "Denoising strength: 0.6",
        "variation": "Variation seed: 5, Variation seed strength: 0.4, Seed resize from: 80x64",
        "a refiner": "Refiner: tiny-b [53b85eef43], Refiner switch at: 0.5",
        "an older version": "Clip skip: 1, Version: v1.5.2",
    }


def _tiny_vaes() -> Iterator[Case]:
    decode, encode = {"sd_vae_decode_method": "TAESD"}, {"sd_vae_encode_method": "TAESD"}
    both = {**decode, **encode}
    yield case("TAESD", "decoding by TAESD", batch_size=2, override_settings=decode)
    yield case("TAESD", "decoding by TAESD, 72x88", width=88, height=72, override_settings=decode)
    sdxl = {"sd_model_checkpoint": "tiny-sdxl.safetensors", **decode}
    yield case("TAESD", "decoding by TAESD, SDXL", override_settings=sdxl)
    yield case("TAESD", "encoding by TAESD", "img2img", **source(0.5), override_settings=encode)
    yield case("TAESD", "both by TAESD", "img2img", **source(0.5), override_settings=both, n_iter=2)
    masked = {**source(0.6), "mask": pictures.mask(), "inpainting_fill": 2}
    yield case("TAESD", "both by TAESD, masked", "img2img", **masked, override_settings=both)
    inpaint = {"sd_model_checkpoint": "tiny-inpaint.safetensors", **both}
    yield case("TAESD", "both by TAESD, inpainting model", "img2img", **masked, override_settings=inpaint)
    yield case("TAESD", "both by TAESD, hires latent", **hires_fields(), override_settings=both)
    lanczos = hires_fields(hr_upscaler="Lanczos")
    yield case("TAESD", "both by TAESD, hires Lanczos", **lanczos, override_settings=both)
    yield under(case("TAESD", "decoding by TAESD, the host's option"), **decode)


def eight_bits() -> Iterator[Case]:
    lora = f"{CAT} <lora:tiny-style:0.8>"
    several = f"{lora} <lora:tiny-second:0.5>"
    for name, fields in (
        ("Enable", {}),
        ("Enable, 2 batches of 2", {"n_iter": 2, "batch_size": 2}),
        ("Enable, DPM++ 2M", {"sampler_name": "DPM++ 2M", "steps": 8}),
        ("Enable, a LoRA", {"prompt": lora}),
        ("Enable, two LoRAs", {"prompt": several}),
        ("Enable, hires Lanczos", hires_fields(hr_upscaler="Lanczos")),
    ):
        yield case("FP8", name, **fields, override_settings={"fp8_storage": "Enable"})
        if "LoRA" in name:
            cached = {"fp8_storage": "Enable", "cache_fp16_weight": True}
            yield under(case("FP8", f"{name}, FP16 weights cached", **fields), **cached)
    yield case(
        "FP8", "Enable, img2img", "img2img", **source(0.5), override_settings={"fp8_storage": "Enable"}
    )
    option = {"fp8_storage": "Enable"}
    yield under(case("FP8", "Enable by option, img2img", "img2img", **source(0.5)), **option)
    for model in ("tiny-a", "tiny-sd2v", "tiny-sdxl"):
        asked = {"sd_model_checkpoint": f"{model}.safetensors", "fp8_storage": "Enable for SDXL"}
        yield case("FP8", f"Enable for SDXL, {model}", override_settings=asked)
    asked = {"sd_model_checkpoint": "tiny-sd2v.safetensors", "fp8_storage": "Enable"}
    yield case("FP8", "Enable, tiny-sd2v", override_settings=asked)


def _extras() -> Iterator[Case]:
    for upscaler in ("None", "Lanczos", "Nearest"):
        for scale in (2, 1.5, 0.5):
            request = {"image": pictures.plain(), "upscaler_1": upscaler, "upscaling_resize": scale}
            yield Case("extras", f"extras {upscaler} x{scale}", "extra-single-image", request)
        for crop in (True, False):
            request = {
                "image": pictures.plain(),
                "upscaler_1": upscaler,
                "resize_mode": 1,
                "upscaling_resize_w": 200,
                "upscaling_resize_h": 300,
                "upscaling_crop": crop,
            }
            yield Case("extras", f"extras {upscaler} to 200x300, crop {crop}", "extra-single-image", request)
    mixed = {
        "image": pictures.plain(),
        "upscaler_1": "Lanczos",
        "upscaler_2": "Nearest",
        "extras_upscaler_2_visibility": 0.4,
    }
    yield Case("extras", "extras Lanczos and Nearest", "extra-single-image", mixed)
    yield Case(
        "extras",
        "extras RGBA",
        "extra-single-image",
        {"image": pictures.transparent(), "upscaler_1": "Lanczos"},
    )
    yield Case(
        "extras", "extras without the picture", "extra-single-image", {**mixed, "show_extras_results": False}
    )
    both = {
        "imageList": [
            {"data": pictures.plain(), "name": "a.png"},
            {"data": pictures.other(), "name": "b.png"},
        ]
    }
    yield Case("extras", "extras batch", "extra-batch-images", {**both, "upscaler_1": "Lanczos"})
    yield Case("extras", "png-info", "png-info", {"image": pictures.with_infotext()})
    yield Case("extras", "png-info of none", "png-info", {"image": pictures.plain()})


def _refusals() -> Iterator[Case]:
    wrong: dict[str, dict[str, Any]] = {
        "unknown sampler": {"sampler_name": "Nowhere"},
        "unknown scheduler": {"scheduler": "Nowhere"},
        "unknown checkpoint": {"override_settings": {"sd_model_checkpoint": "nowhere"}},
        "unknown VAE": {"override_settings": {"sd_vae": "nowhere"}},
        "unknown option": {"override_settings": {"nowhere": 1}},
        "unknown hires upscaler": hires_fields(hr_upscaler="Nowhere"),
        "unknown hires sampler": hires_fields(hr_sampler_name="Nowhere"),
        "unknown refiner": {"refiner_checkpoint": "nowhere", "refiner_switch_at": 0.5},
        "unknown script": {"script_name": "Nowhere"},
        "unknown always-on script": {"alwayson_scripts": {"nowhere": {"args": []}}},
        "steps 0": {"steps": 0},
        "width 0": {"width": 0},
        "width a word": {"width": "wide"},
        "batch 0": {"batch_size": 0},
    }
    for name, fields in wrong.items():
        yield case("refusals", name, **fields)
    yield case("refusals", "img2img without a picture", "img2img")
    yield case("refusals", "img2img with what is no picture", "img2img", init_images=["bm90IGEgcGljdHVyZQ=="])
    yield case("refusals", "resize_mode 7", "img2img", **source(0.5), resize_mode=7)


def cases() -> Iterator[Case]:
    yield from _families()
    yield from _seeing_more()
    yield from _options()
    yield from _tiny_vaes()
    yield from _extras()
    yield from _refusals()
