"""Requests with ControlNet units, for the models of :mod:`scripts.fidelity.controlnet_models`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scripts.fidelity import pictures
from scripts.fidelity.case import Case, case, hires_fields

CANNY = "control_v11p_sd15_canny"
SHUFFLE = "control_v11e_sd15_shuffle"
FEW = {"steps": 3, "sampler_name": "Euler"}
INSIDE = {"width": 96, "height": 64, "mask": pictures.mask(), "init_images": [pictures.plain()]}


def unit(module: str = "canny", model: str = CANNY, **fields: Any) -> dict[str, Any]:
    """A unit; its resolution is small because the pictures are."""
    given = {"enabled": True, "module": module, "model": model, "image": pictures.plain()}
    return {**given, "processor_res": 128, **fields}


def controlled(
    name: str, *units: dict[str, Any], route: str = "txt2img", checkpoint: str = "tiny-a", **fields: Any
) -> Case:
    scripts = {"controlnet": {"args": list(units)}}
    options = {"sd_model_checkpoint": checkpoint, **fields.pop("override_settings", {})}
    given = {**FEW, **fields, "alwayson_scripts": scripts, "override_settings": options}
    return case("ControlNet", name, route, **given)


def cases() -> list[Case]:
    groups = {
        "units": _units,
        "passes": _passes,
        "tile_colorfix in both passes": _coloured_passes,
        "inpainting": _inpainting,
        "ControlNet files": _files,
        "Control-LoRA, LLLite, light adapter": _kinds,
        "several units": _several,
        "refiner, hires checkpoint": _other_checkpoints,
        "SD 2": _sd2,
        "SDXL": _sdxl,
        "inpainting checkpoint": _inpainting_checkpoint,
    }
    return [replace(one, group=f"ControlNet: {name}") for name, part in groups.items() for one in part()]


def wide_cases() -> list[Case]:
    """Those of plain ControlNets, with the checkpoint that is as wide as a real one."""
    options = {"sd_model_checkpoint": "wide"}
    return [
        replace(one, group="ControlNet, wide", request={**one.request, "override_settings": options})
        for part in (_units, _passes, _inpainting, _files)
        for one in part()
    ]


def _units() -> Iterator[Case]:
    yield controlled("no unit")
    yield controlled("canny", unit())
    yield controlled("none", unit("none"))
    yield controlled("tile", unit("tile_resample", threshold_a=2.0))
    yield controlled("tile_colorfix", unit("tile_colorfix", threshold_a=2))
    yield controlled("tile_colorfix+sharp", unit("tile_colorfix+sharp", threshold_a=2, threshold_b=1.2))
    yield controlled("weight 0.4", unit(weight=0.4))
    yield controlled("weight 1.7", unit(weight=1.7))
    yield controlled("from 0.3 to 0.7", unit(guidance_start=0.3, guidance_end=0.7), steps=6)
    for mode in ("My prompt is more important", "ControlNet is more important"):
        yield controlled(mode, unit(control_mode=mode))
    yield controlled("advanced weighting", unit(advanced_weighting=[0.1 * layer for layer in range(13)]))
    yield controlled("region", unit(effective_region_mask=pictures.plain()))
    yield controlled("two units", unit(weight=0.6), unit("none", image=pictures.other(), weight=0.5))
    yield controlled("batches", unit(), batch_size=2, n_iter=2)
    yield controlled("Resize and Fill", unit("none", resize_mode="Resize and Fill"), width=96)
    yield controlled("88x72", unit(pixel_perfect=True), width=88, height=72)
    yield controlled("DPM++ 2M, AND", unit(), sampler_name="DPM++ 2M", prompt="a cat AND a house :0.6")


def _passes() -> Iterator[Case]:
    for option in ("Both", "Low res only", "High res only"):
        yield controlled(
            f"hires, {option}", unit("none", hr_option=option), **hires_fields(hr_second_pass_steps=2)
        )
    yield controlled("hires, canny", unit(), **hires_fields(hr_second_pass_steps=2))
    init = {"init_images": [pictures.plain()], "denoising_strength": 0.7}
    yield controlled("img2img", unit(image=pictures.other()), route="img2img", **init)
    own = {key: value for key, value in unit().items() if key != "image"}
    yield controlled("img2img, its own picture", own, route="img2img", **init)


def _coloured_passes() -> Iterator[Case]:
    for option in ("Both", "Low res only", "High res only"):
        one = unit("tile_colorfix", threshold_a=2, hr_option=option)
        yield controlled(f"hires, tile_colorfix, {option}", one, **hires_fields(hr_second_pass_steps=2))


def _inpainting() -> Iterator[Case]:
    seen = {"image": pictures.plain(), "mask": pictures.mask()}
    yield controlled("inpaint", unit("inpaint", **seen))
    yield controlled("inpaint_only", unit("inpaint_only", **seen))
    without = {key: value for key, value in unit("inpaint_only").items() if key != "image"}
    inside = {**INSIDE, "denoising_strength": 0.8, "inpainting_fill": 1, "route": "img2img"}
    masked = {**inside, "inpaint_full_res": True, "inpaint_full_res_padding": 16}
    yield controlled("img2img with a mask", unit("none"), **inside)
    yield controlled("img2img with a mask, inpaint_only", without, **inside)
    yield controlled("only masked", unit("none"), **masked)
    yield controlled("only masked, canny, another picture", unit(image=pictures.other()), **masked)
    yield controlled("only masked, not cropped", unit(inpaint_crop_input_image=False), **masked)
    yield controlled("only masked, Resize and Fill", unit("none", resize_mode="Resize and Fill"), **masked)
    yield controlled("only masked, Just Resize", unit("none", resize_mode="Just Resize"), **masked)
    yield controlled("only masked, its own picture, inpaint_only", without, **masked)
    yield controlled("only masked, its own picture", {**without, "module": "canny"}, **masked)
    yield controlled("only masked, inverted", unit(), **masked, inpainting_mask_invert=1)
    yield controlled("only masked, blurred, 4 px around", unit(), **{**masked, "inpaint_full_res_padding": 4})


def _files() -> Iterator[Case]:
    yield controlled("shuffle model", unit("none", SHUFFLE))
    yield controlled(
        "shuffle model, soft", unit("shuffle", SHUFFLE, control_mode="My prompt is more important")
    )
    yield controlled("difference", unit(model="difference_sd15_canny"))
    yield controlled("diffusers' layout", unit(model="diffusers_sd15_canny"))


def _modes(what: str, one: dict[str, Any], **fields: Any) -> Iterator[Case]:
    """What changes how strongly a model works, where and when."""
    for mode in ("Balanced", "My prompt is more important", "ControlNet is more important"):
        yield controlled(f"{what}, {mode}", {**one, "control_mode": mode}, **fields)
    yield controlled(f"{what}, weight 0.6", {**one, "weight": 0.6}, **fields)
    late = {**one, "guidance_start": 0.4}
    yield controlled(f"{what}, from 0.4", late, **{**fields, "steps": 6})
    yield controlled(f"{what}, two units", {**one, "weight": 0.5}, one, **fields)
    yield controlled(f"{what}, batches", one, **fields, batch_size=2, n_iter=2)
    yield controlled(f"{what}, hires", one, **fields, **hires_fields(hr_second_pass_steps=2))


def _kinds() -> Iterator[Case]:
    for what, model in (
        ("Control-LoRA", "control_lora_sd15"),
        ("LLLite", "lllite_sd15"),
        ("light adapter", "t2iadapter_light_sd15"),
    ):
        yield from _modes(what, unit("none", model))
    late = unit("none", "lllite_sd15", hr_option="High res only")
    yield controlled("LLLite, High res only", late, **hires_fields(hr_second_pass_steps=2))
    both = (unit(), unit("none", "lllite_sd15"), unit("none", "t2iadapter_light_sd15", weight=0.5))
    yield controlled("LLLite beside others", *both)
    yield controlled("LLLite, 88x72", unit("none", "lllite_sd15"), width=88, height=72)
    weights = [0.1 * layer for layer in range(13)]
    layered = unit(model="control_lora_sd15", advanced_weighting=weights)
    yield controlled("Control-LoRA, advanced weighting", layered)
    for module in ("tile_colorfix", "tile_colorfix+sharp", "inpaint_only"):
        one = unit(module, "lllite_sd15", threshold_a=2, threshold_b=1.2, mask=pictures.mask())
        yield controlled(f"LLLite, {module}", one)


def _several() -> Iterator[Case]:
    """What of several units is the last one's, and what they have in common."""
    one, other = ({"image": of, "mask": pictures.mask()} for of in (pictures.plain(), pictures.other()))
    painted = unit("inpaint_only", **one)
    yield controlled("two inpaint_only", painted, unit("inpaint_only", **other, weight=0.6))
    yield controlled("two inpaint_only, one picture", painted, {**painted, "weight": 0.6})
    luminance, fixed = unit("recolor_luminance"), unit("tile_colorfix", threshold_a=2)
    yield controlled("two recolor", luminance, unit("recolor_intensity", image=pictures.other()))
    yield controlled("recolor beside inpaint_only", luminance, unit("inpaint_only", **other))
    yield controlled("two tile_colorfix, one picture", fixed, {**fixed, "weight": 0.5})
    yield controlled("inpaint_only before tile_colorfix", {**painted, "weight": 0.7}, fixed)
    reference = unit("reference_only", "None", threshold_a=0.5)
    yield controlled("two references, one picture", reference, {**reference, "weight": 0.5})


def _other_checkpoints() -> Iterator[Case]:
    """Where the webui builds another model while it works: for a refiner, and for the hires pass."""
    yield controlled("another checkpoint", unit(), checkpoint="tiny-b")
    seen = {"image": pictures.plain(), "mask": pictures.mask()}
    units = {
        "canny": unit(),
        "light adapter": unit("none", "t2iadapter_light_sd15"),
        "LLLite": unit("none", "lllite_sd15"),
        "reference_only": unit("reference_only", "None", threshold_a=0.5),
        "inpaint_only": unit("inpaint_only", **seen),
        "tile_colorfix": unit("tile_colorfix", threshold_a=2),
    }
    refined = {"refiner_checkpoint": "tiny-b", "refiner_switch_at": 0.5, "steps": 6, "n_iter": 2}
    twins = {"checkpoint": "twins/twin.safetensors", "refiner_checkpoint": "twins/twin.ckpt"}
    second = hires_fields(hr_second_pass_steps=2)
    init = {"route": "img2img", "init_images": [pictures.other()], "denoising_strength": 0.8}
    for name, one in units.items():
        yield controlled(f"refiner, {name}", one, **refined)
        yield controlled(f"hires checkpoint, {name}", one, **second, hr_checkpoint_name="tiny-b", n_iter=3)
    for name in ("inpaint_only", "tile_colorfix"):
        # One batch: a second is a 500 in the webui, whose sampler holds the model from before the refiner.
        yield controlled(f"refiner, img2img, {name}", units[name], **{**refined, **init, "n_iter": 1})
        yield controlled(f"refiner, hires, {name}", units[name], **{**second, **refined})
        yield controlled(f"refiner of the same configuration, {name}", units[name], **{**refined, **twins})
    at_once = {**refined, "refiner_switch_at": 0}
    yield controlled("refiner from the first step", units["tile_colorfix"], **at_once)
    early = {"hires_fix_use_firstpass_conds": True}
    yield controlled(
        "refiner, hires, first pass's prompts", unit(), **{**second, **refined}, override_settings=early
    )
    divided = {**second, "hr_checkpoint_name": "tiny-b", "n_iter": 2, "prompt": "a cat AND a house :0.6"}
    yield controlled("hires checkpoint, AND", unit(), **divided)


def _sd2() -> Iterator[Case]:
    own = unit("none", "controlnet_sd2")
    yield controlled("SD 2", own, checkpoint="tiny-sd2v")
    yield controlled("SD 2, weight 0.6", {**own, "weight": 0.6}, checkpoint="tiny-sd2v", steps=6)
    second = hires_fields(hr_second_pass_steps=2)
    yield controlled("SD 2, hires", own, checkpoint="tiny-sd2v", **second)


def _sdxl() -> Iterator[Case]:
    for what, model in (
        ("SDXL", "controlnet_sdxl"),
        ("SDXL Control-LoRA", "control_lora_sdxl"),
        ("SDXL Union", "union_sdxl"),
        ("SDXL LLLite", "lllite_sdxl"),
    ):
        yield from _modes(what, unit("none", model), checkpoint="tiny-sdxl")
    kinds = ("OpenPose", "Depth", "Soft Edge", "Hard Edge", "Normal Map", "Segmentation", "Tile", "Inpaint")
    for kind in kinds:
        one = unit("none", "union_sdxl", union_control_type=kind)
        yield controlled(f"SDXL Union, {kind}", one, checkpoint="tiny-sdxl")
    painted = unit("inpaint", "union_sdxl", union_control_type="Inpaint", mask=pictures.mask())
    yield controlled("SDXL Union, Inpaint with a mask", painted, checkpoint="tiny-sdxl")
    for kind in ("Segmentation", "Tile"):
        one = unit("none", "union_six_sdxl", union_control_type=kind)
        yield controlled(f"SDXL Union of six, {kind}", one, checkpoint="tiny-sdxl")


def _inpainting_checkpoint() -> Iterator[Case]:
    """What an inpainting checkpoint sees of the picture becomes the unit's."""
    seen = {"image": pictures.plain(), "mask": pictures.mask()}
    own = {"checkpoint": "tiny-inpaint"}
    inside = {**INSIDE, "route": "img2img", "denoising_strength": 0.8}
    for model in (CANNY, "t2iadapter_light_sd15"):
        one = unit("inpaint", model, **seen)
        yield controlled(f"inpainting checkpoint, {model}", one, **own)
        yield controlled(f"inpainting checkpoint, {model}, img2img", one, **own, **inside)
    yield controlled("inpainting checkpoint, inpaint_only", unit("inpaint_only", **seen), **own)
    yield controlled("inpainting checkpoint, canny", unit(), **own)
