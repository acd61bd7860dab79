"""Stable Diffusion 3: samplers, prompts, passes, networks, and what such a checkpoint refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.fidelity import pictures
from scripts.fidelity.case import CAT, PARTS, Case, case, hires_fields, source
from scripts.fidelity.cases_sampling import SAMPLERS, SCHEDULERS

BY_TIMESTEPS = ("DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM")
#: With random weights it finds no step short enough, in the webui neither.
ENDLESS = ("DPM adaptive",)


def _sd3(name: str, route: str = "txt2img", /, **fields: Any) -> Case:
    options = {"sd_model_checkpoint": "tiny-sd3", **fields.pop("override_settings", {})}
    return case("sd3", f"SD 3, {name}", route, **fields, override_settings=options)


def _sampling() -> Iterator[Case]:
    for name in (name for name in SAMPLERS if name not in ENDLESS):
        yield _sd3(name, sampler_name=name)
        if name not in BY_TIMESTEPS:
            yield _sd3(f"img2img {name}", "img2img", sampler_name=name, **source(0.6))
    for name in SCHEDULERS:
        yield _sd3(f"Euler, {name}", sampler_name="Euler", scheduler=name)
        yield _sd3(
            f"img2img DPM++ 2M, {name}", "img2img", sampler_name="DPM++ 2M", scheduler=name, **source(0.5)
        )
    for scale in (1, 0, 3.5, 30):
        yield _sd3(f"CFG scale {scale}", cfg_scale=scale)
    changes: Mapping[str, Mapping[str, Any]] = {
        "12 steps": {"steps": 12},
        "1 step": {"steps": 1, "sampler_name": "Euler"},
        "s_churn and the like": {"sampler_name": "Euler", "s_churn": 10, "s_tmin": 0.1, "s_tmax": 8},
        "s_noise": {"s_noise": 1.1},
        "eta 0.5": {"eta": 0.5},
        "s_min_uncond": {"s_min_uncond": 0.7},
        "subseed": {"subseed": 4, "subseed_strength": 0.5},
        "seed resize": {"seed_resize_from_w": 96, "seed_resize_from_h": 48},
        "batch 2 x 2": {"batch_size": 2, "n_iter": 2, "steps": 3},
        "subseeds in a batch": {"subseed": 9, "subseed_strength": 0.5, "batch_size": 2},
        "136x72": {"width": 136, "height": 72},
        "130x100": {"width": 130, "height": 100},
        "tiling": {"tiling": True},
    }
    for name, fields in changes.items():
        yield _sd3(name, **fields)
    for option, value in (
        ("randn_source", "CPU"),
        ("randn_source", "NV"),
        ("eta_noise_seed_delta", 31337),
        ("skip_early_cond", 0.4),
        ("sgm_noise_multiplier", True),
        ("sd_noise_schedule", "Zero Terminal SNR"),
        ("use_downcasted_alpha_bar", True),
        ("enable_quantization", True),
        ("always_discard_next_to_last_sigma", True),
        ("batch_cond_uncond", False),
        ("token_merging_ratio", 0.5),
        ("no_dpmpp_sde_batch_determinism", True),
    ):
        yield _sd3(f"{option} {value}", override_settings={option: value})


def _prompts() -> Iterator[Case]:
    changes: Mapping[str, Mapping[str, Any]] = {
        "empty": {"prompt": ""},
        "negative prompt": {"negative_prompt": "ugly, blurry"},
        "long both": {"prompt": PARTS, "negative_prompt": "cat, " * 50},
        "long prompt": {"prompt": PARTS},
        "emphasis": {"prompt": "a (red:1.4) [cat], ((wood))", "negative_prompt": "(blurry:1.3)"},
        "emphasis in BREAK": {"prompt": "(a cat:1.3) BREAK (a dog:0.6)"},
        "editing": {"prompt": "a [cat:dog:0.5] on a [wooden::2] table"},
        "alternation": {"prompt": "a [red|blue] house"},
        "AND": {"prompt": "a cat AND a dog :0.6"},
        "editing and AND": {"prompt": "a [cat:dog:0.5] AND [red|blue] house :0.6"},
        "embedding": {"prompt": "a tiny-sd3-word cat"},
        "embedding with emphasis": {
            "prompt": "a (tiny-sd3-word:1.3) cat",
            "negative_prompt": "tiny-sd3-word",
        },
        "SD 1 embedding": {"prompt": "a tiny-word cat"},
    }
    for name, fields in changes.items():
        yield _sd3(name, **fields)
    for emphasis in ("No norm", "Ignore", "None"):
        yield _sd3(
            f"emphasis {emphasis}", prompt="a (red:1.4) [cat]", override_settings={"emphasis": emphasis}
        )
    long = {"prompt": PARTS, "negative_prompt": "blurry"}
    for option, value in (
        ("CLIP_stop_at_last_layers", 2),
        ("pad_cond_uncond", True),
        ("pad_cond_uncond_v0", True),
        ("comma_padding_backtrack", 0),
        ("sd3_enable_t5", False),
    ):
        yield _sd3(f"{option} {value}", **long, override_settings={option: value})


def _networks() -> Iterator[Case]:
    for name in ("diffusers:1", "diffusers:0.5", "diffusers:0.3:0.8", "no-v:1", "kohya:0.7"):
        yield _sd3(f"LoRA {name}", prompt=f"{CAT} <lora:tiny-sd3-{name}>")
    yield _sd3("two LoRAs", prompt=f"{CAT} <lora:tiny-sd3-diffusers:0.5> <lora:tiny-sd3-kohya:0.5>")
    yield _sd3("hypernetwork", prompt=f"{CAT} <hypernet:tiny-hyper:0.5>")
    yield _sd3("VAE", override_settings={"sd_vae": "other-sd3-vae.safetensors"})


def _passes() -> Iterator[Case]:
    for strength in (0.0, 0.2, 0.75, 1.0):
        yield _sd3(f"img2img {strength}", "img2img", **source(strength))
    changes: Mapping[str, Mapping[str, Any]] = {
        "batch of 2": {"batch_size": 2},
        "noise multiplier": {"initial_noise_multiplier": 1.05},
        "resize_mode 1": {"resize_mode": 1, "width": 96},
        "resize_mode 2": {"resize_mode": 2, "width": 96},
        "resize_mode 3": {"resize_mode": 3, "width": 96},
        "tiling": {"tiling": True},
        "extra noise": {"override_settings": {"img2img_extra_noise": 0.2}},
        "img2img_fix_steps": {"override_settings": {"img2img_fix_steps": True}},
        "colour correction": {"override_settings": {"img2img_color_correction": True}},
        "negative prompt": {"negative_prompt": "blurry"},
    }
    for name, fields in changes.items():
        yield _sd3(f"img2img {name}", "img2img", **{**source(0.6), **fields})
    for fill in range(4):
        yield _sd3(
            f"inpaint, fill {fill}", "img2img", **source(0.8), mask=pictures.mask(), inpainting_fill=fill
        )
    masked = {**source(0.8), "mask": pictures.mask(), "inpainting_fill": 1}
    yield _sd3("inpaint, soft mask", "img2img", **{**masked, "mask": pictures.soft_mask()})
    yield _sd3(
        "inpaint, only masked", "img2img", **masked, inpaint_full_res=True, inpaint_full_res_padding=16
    )
    yield _sd3("inpaint, inverted", "img2img", **masked, inpainting_mask_invert=1)
    yield _sd3("inpaint, DPM++ 2M", "img2img", **masked, sampler_name="DPM++ 2M")
    for upscaler in ("Latent", "Latent (nearest-exact)", "Lanczos", "None", "tiny-x4"):
        yield _sd3(f"hires {upscaler}", **hires_fields(hr_upscaler=upscaler))
    second: Mapping[str, Mapping[str, Any]] = {
        "to 128x96": {"hr_resize_x": 128, "hr_resize_y": 96},
        "own sampler and prompt": {
            "hr_sampler_name": "Euler",
            "hr_prompt": "a dog",
            "hr_scheduler": "Karras",
        },
        "batch of 2": {"batch_size": 2},
        "scale 1.3": {"hr_scale": 1.3},
        "tiling": {"tiling": True},
        "from SD 1": {
            "override_settings": {"sd_model_checkpoint": "tiny-a"},
            "hr_checkpoint_name": "tiny-sd3",
            "hr_upscaler": "Lanczos",
        },
        "to SD 1": {"hr_checkpoint_name": "tiny-a", "hr_upscaler": "Lanczos"},
    }
    for name, fields in second.items():
        yield _sd3(f"hires {name}", **hires_fields(**fields))
    yield _sd3("refiner SD 3", refiner_checkpoint="tiny-sd3", refiner_switch_at=0.5)
    yield _sd3("refiner SD 1", refiner_checkpoint="tiny-a", refiner_switch_at=0.5)
    loops = {"script_name": "Loopback", "script_args": [2, 0.6, "Linear", "None"]}
    yield _sd3("Loopback", "img2img", **source(0.6), **loops)
    yield _sd3(
        "SD upscale", "img2img", **source(0.4), script_name="SD upscale", script_args=["", 16, "None", 1.5]
    )


def cases() -> Iterator[Case]:
    yield from _sampling()
    yield from _prompts()
    yield from _networks()
    yield from _passes()
