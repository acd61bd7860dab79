"""Hires fix, img2img, inpainting and the refiner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.fidelity import pictures
from scripts.fidelity.case import CAT, Case, case, hires_fields, source

LATENT_UPSCALERS = (
    "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
    "Latent (nearest-exact)",
)  # fmt: skip


def _set(**options: Any) -> dict[str, Any]:
    return {"override_settings": options}


def _hires() -> Iterator[Case]:
    for name in (*LATENT_UPSCALERS, "Lanczos", "Nearest", "None"):
        yield case("hires", f"hires {name}", **hires_fields(hr_upscaler=name))
    changes: dict[str, dict[str, Any]] = {
        "resize_x": {"hr_resize_x": 96},
        "resize_y": {"hr_resize_y": 80},
        "resize_x and y, crop": {"hr_resize_x": 96, "hr_resize_y": 72},
        "resize_x and y, crop, Lanczos": {"hr_resize_x": 72, "hr_resize_y": 96, "hr_upscaler": "Lanczos"},
        "resize not a multiple": {"hr_resize_x": 94, "hr_resize_y": 75},
        "scale 1": {"hr_scale": 1},
        "scale 1.33": {"hr_scale": 1.33, "width": 72},
        "own sampler": {"hr_sampler_name": "DPM++ 2M"},
        "own sampler DDIM": {"hr_sampler_name": "DDIM"},
        "own scheduler": {"hr_scheduler": "Karras"},
        "own sampler, own scheduler": {"hr_sampler_name": "Euler", "hr_scheduler": "Exponential"},
        "own prompt": {"hr_prompt": "a blue dog", "hr_negative_prompt": "red"},
        "own prompt the same": {"hr_prompt": CAT},
        "own negative": {"hr_negative_prompt": "red"},
        "own checkpoint": {"hr_checkpoint_name": "tiny-b"},
        "own checkpoint, Lanczos": {"hr_checkpoint_name": "tiny-b", "hr_upscaler": "Lanczos"},
        "own checkpoint of one configuration, Lanczos": {
            "hr_checkpoint_name": "twins/twin.ckpt",
            "hr_upscaler": "Lanczos",
            **_set(sd_model_checkpoint="twins/twin.safetensors"),
        },
        "ESRGAN": {"hr_upscaler": "tiny-x4"},
        "ESRGAN, compact": {"hr_upscaler": "tiny-compact", "hr_scale": 3},
        "ESRGAN, batch of 2 x 2": {"hr_upscaler": "tiny-x4", "batch_size": 2, "n_iter": 2},
        "ESRGAN, own checkpoint": {"hr_upscaler": "tiny-x4", "hr_checkpoint_name": "tiny-b"},
        "second pass steps 0": {"hr_second_pass_steps": 0},
        "denoising 0": {"denoising_strength": 0},
        "denoising 1": {"denoising_strength": 1},
        "denoising 0.05": {"denoising_strength": 0.05},
        "denoising 0.01": {"denoising_strength": 0.01},
        "denoising 0.01, Karras": {"denoising_strength": 0.01, "hr_scheduler": "Karras"},
        "no denoising given": {"denoising_strength": None},
        "no upscaler given": {"hr_upscaler": None},
        "batch of 2 x 2": {"batch_size": 2, "n_iter": 2, "steps": 3},
        "batch of 2, Lanczos": {"batch_size": 2, "hr_upscaler": "Lanczos"},
        "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
        "UniPC": {"sampler_name": "UniPC"},
        "editing": {"prompt": "a [cat:dog:0.5] [x:y:1.5] [p:q:3]"},
        "firstphase": {"firstphase_width": 64, "firstphase_height": 64, "width": 96, "height": 80},
        "subseed": {"subseed": 5, "subseed_strength": 0.4},
        "seed resize": {"seed_resize_from_w": 96, "seed_resize_from_h": 48},
        "ENSD": {**_set(eta_noise_seed_delta=31337)},
        "extra noise": {**_set(img2img_extra_noise=0.3)},
        "fix steps": {**_set(img2img_fix_steps=True), "hr_second_pass_steps": 0},
        "old width and height": {
            **_set(use_old_hires_fix_width_height=True),
            "hr_resize_x": 128,
            "hr_resize_y": 96,
        },
        "Lanczos, VAE": {**_set(sd_vae="tiny-vae.safetensors"), "hr_upscaler": "Lanczos"},
        "first pass picture": {"firstpass_image": pictures.plain()},
        "first pass picture, Lanczos": {"firstpass_image": pictures.plain(), "hr_upscaler": "Lanczos"},
    }
    for name, fields in changes.items():
        yield case("hires", f"hires {name}", **hires_fields(**fields))
    options = {"sd_model_checkpoint": "tiny-sdxl"}
    yield case("hires", "hires SDXL", **hires_fields(override_settings=options))
    yield case(
        "hires", "hires SDXL Lanczos", **hires_fields(override_settings=options, hr_upscaler="Lanczos")
    )


def _img2img() -> Iterator[Case]:
    for mode in (0, 1, 2, 3):
        for width, height in ((192, 96), (96, 160)):
            if mode == 3 and width > height:
                continue
            fields = {"resize_mode": mode, "width": width, "height": height}
            yield case(
                "img2img", f"resize_mode {mode} to {width}x{height}", "img2img", **{**source(0.5), **fields}
            )
    for denoising in (0, 0.2, 0.95, 1.0):
        yield case("img2img", f"denoising {denoising}", "img2img", **source(denoising))
    changes: dict[str, dict[str, Any]] = {
        "RGBA": {"init_images": [pictures.transparent()]},
        "RGBA, own background": {
            "init_images": [pictures.transparent()],
            **_set(img2img_background_color="#204080"),
        },
        "grey": {"init_images": [pictures.grey()]},
        "palette": {"init_images": [pictures.palette()]},
        "two pictures": {"init_images": [pictures.plain(), pictures.other()], "batch_size": 2},
        "one picture, batch of 2": {"batch_size": 2},
        "one picture, 2 batches": {"n_iter": 2},
        "JPEG with orientation": {"init_images": [pictures.turned()]},
        "noise multiplier": {"initial_noise_multiplier": 0.8},
        "noise multiplier by option": {**_set(initial_noise_multiplier=1.1)},
        "extra noise": {**_set(img2img_extra_noise=0.3)},
        "colour correction": {**_set(img2img_color_correction=True)},
        "do exactly the steps": {**_set(img2img_fix_steps=True)},
        "do exactly the steps, DDIM": {**_set(img2img_fix_steps=True), "sampler_name": "DDIM"},
        "do exactly the steps, 0.05": {**_set(img2img_fix_steps=True), "denoising_strength": 0.05},
        "image_cfg_scale": {"image_cfg_scale": 1.2},
        "checkpoint b": {**_set(sd_model_checkpoint="tiny-b")},
        "SDXL": {**_set(sd_model_checkpoint="tiny-sdxl")},
        "SD 2": {**_set(sd_model_checkpoint="tiny-sd2v")},
        "VAE": {**_set(sd_vae="tiny-vae.safetensors")},
        "upscaler": {**_set(upscaler_for_img2img="Nearest"), "width": 256, "height": 192},
        "ESRGAN": {**_set(upscaler_for_img2img="tiny-x4"), "width": 256, "height": 192},
        "ESRGAN, two pictures": {
            **_set(upscaler_for_img2img="tiny-compact"),
            "init_images": [pictures.plain(), pictures.other()],
            "batch_size": 2,
            "width": 256,
            "height": 192,
        },
        "include_init_images": {"include_init_images": True},
        "subseed": {"subseed": 4, "subseed_strength": 0.4},
        "tiling": {"tiling": True},
        "1 step": {"steps": 1},
        "denoising left out": {"denoising_strength": None},
    }
    for name, fields in changes.items():
        yield case("img2img", f"img2img {name}", "img2img", **{**source(0.5), **fields})


def _inpainting() -> Iterator[Case]:
    def inpaint(name: str, **fields: Any) -> Case:
        base = {**source(0.8), "mask": pictures.mask(), "width": 160, "inpaint_full_res": False}
        return case("inpainting", f"inpaint {name}", "img2img", **{**base, **fields})

    for fill in (0, 1, 2, 3):
        yield inpaint(f"fill {fill}", inpainting_fill=fill)
        yield inpaint(
            f"fill {fill}, full res", inpainting_fill=fill, inpaint_full_res=True, inpaint_full_res_padding=8
        )
    for blur in (
        {"mask_blur": 0},
        {"mask_blur": 12},
        {"mask_blur_x": 9, "mask_blur_y": 0},
        {"mask_blur_x": 0, "mask_blur_y": 6},
    ):
        yield inpaint(f"{blur}", inpainting_fill=1, **blur)
        yield inpaint(f"{blur}, full res", inpainting_fill=1, inpaint_full_res=True, **blur)
    yield inpaint("invert", inpainting_mask_invert=1, inpainting_fill=1)
    yield inpaint(
        "invert, full res", inpainting_mask_invert=1, inpaint_full_res=True, inpaint_full_res_padding=4
    )
    for padding in (0, 32, 200):
        yield inpaint(
            f"full res, padding {padding}",
            inpaint_full_res=True,
            inpaint_full_res_padding=padding,
            inpainting_fill=1,
        )
    yield inpaint("full res, wide", inpaint_full_res=True, width=192, height=64, inpaint_full_res_padding=8)
    for mode in (0, 1, 2, 3):
        yield inpaint(f"resize_mode {mode}", resize_mode=mode, width=128, height=96, inpainting_fill=1)
    yield inpaint("mask with alpha", mask=pictures.transparent_mask(), inpainting_fill=1)
    yield inpaint("mask of another size", mask=pictures.mask(80, 64), inpainting_fill=1)
    yield inpaint("mask_round off", mask_round=False, inpainting_fill=1, mask=pictures.soft_mask())
    yield inpaint("soft mask", inpainting_fill=1, mask=pictures.soft_mask(), mask_blur=0)
    yield inpaint("empty mask, full res", mask=pictures.empty_mask(), inpaint_full_res=True)
    yield inpaint("empty mask", mask=pictures.empty_mask(), inpainting_fill=1)
    yield inpaint("latent_mask", mask=None, latent_mask=pictures.mask(), inpainting_fill=1)
    yield inpaint("RGBA picture", init_images=[pictures.transparent()], inpainting_fill=1)
    yield inpaint("batch of 2, fill noise", batch_size=2, inpainting_fill=2)
    yield inpaint("2 batches, full res", n_iter=2, inpaint_full_res=True)
    yield inpaint("denoising 0", denoising_strength=0)
    yield inpaint("denoising 1, DDIM", denoising_strength=1, sampler_name="DDIM", inpainting_fill=1)
    for name in ("DPM++ SDE", "UniPC", "LCM", "DPM2", "Heun", "PLMS", "DPM++ 2M"):
        yield inpaint(name, sampler_name=name, inpainting_fill=1)
    yield inpaint("colour correction", inpainting_fill=1, **_set(img2img_color_correction=True))
    yield inpaint(
        "colour correction, full res",
        inpaint_full_res=True,
        **_set(img2img_color_correction=True),
    )
    yield inpaint(
        "return_mask",
        inpainting_fill=1,
        **_set(return_mask=True, return_mask_composite=True),
    )
    yield inpaint(
        "return_mask, full res",
        inpaint_full_res=True,
        **_set(return_mask=True, return_mask_composite=True),
    )
    yield inpaint("no overlay", inpainting_fill=1, **_set(overlay_inpaint=False))
    yield inpaint("SDXL", inpainting_fill=0, **_set(sd_model_checkpoint="tiny-sdxl"))


def _refiner() -> Iterator[Case]:
    refiner = {"refiner_checkpoint": "tiny-b", "refiner_switch_at": 0.5}
    yield case("refiner", "refiner at 0.5", **refiner)
    yield case("refiner", "refiner at 0.8", **{**refiner, "refiner_switch_at": 0.8})
    yield case("refiner", "refiner at 0", **{**refiner, "refiner_switch_at": 0})
    yield case("refiner", "refiner at 1", **{**refiner, "refiner_switch_at": 1})
    yield case("refiner", "refiner, DDIM", sampler_name="DDIM", **refiner)
    yield case("refiner", "refiner, img2img", "img2img", **source(0.8), **refiner)
    yield case("refiner", "refiner, two batches", n_iter=2, **refiner)
    yield case(
        "refiner",
        "refiner, by sampling steps",
        **_set(refiner_switch_by_sample_steps=True),
        **refiner,
    )
    for which in ("first pass", "second pass", "both passes"):
        options = {"hires_fix_refiner_pass": which}
        yield case(
            "refiner", f"refiner, hires, {which}", override_settings=options, **hires_fields(), **refiner
        )
    yield case("refiner", "refiner by script", alwayson_scripts={"Refiner": {"args": [True, "tiny-b", 0.5]}})
    yield case("refiner", "refiner with LoRA", prompt=f"{CAT} <lora:tiny-style:0.8>", **refiner)
    twin = {"refiner_checkpoint": "twins/twin.ckpt", "refiner_switch_at": 0.5}
    yield case(
        "refiner",
        "refiner of one configuration with LoRA",
        prompt=f"{CAT} <lora:tiny-style:0.8>",
        **_set(sd_model_checkpoint="twins/twin.safetensors"),
        **twin,
    )
    yield case(
        "refiner",
        "refiner with LoRA, hires, both passes, Lanczos",
        override_settings={"hires_fix_refiner_pass": "both passes"},
        **{**hires_fields(hr_upscaler="Lanczos"), "prompt": f"{CAT} <lora:tiny-style:0.8>"},
        **refiner,
    )
    yield case("refiner", "refiner, editing", prompt="a [cat:dog:0.7] [x|y]", **refiner)
    yield case("refiner", "the refiner is the checkpoint", refiner_checkpoint="tiny-a", refiner_switch_at=0.5)


def cases() -> Iterator[Case]:
    yield from _hires()
    yield from _img2img()
    yield from _inpainting()
    yield from _refiner()
