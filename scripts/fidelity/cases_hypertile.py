"""Requests with HyperTile: the webui's built-in extension whose tiles are chosen by random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scripts.fidelity.case import Case, case, hires_fields, source, under
from scripts.fidelity.cases_scripts import xyz

LARGE = {"width": 320, "height": 256, "steps": 3}
"""Tiles are at least 128 pixels a side, so smaller pictures have one."""
UNET = {"hypertile_enable_unet": True}
VAE = {"hypertile_enable_vae": True}
SECOND = {"hypertile_enable_unet_secondpass": True}
_INFOTEXT = "a\nSteps: 3, Sampler: Euler a, Hypertile VAE: True, Hypertile VAE swap size: 2"
ALL = {**UNET, **VAE, "hypertile_max_tile_unet": 128}


def _tiled(name: str, options: dict[str, Any], route: str = "txt2img", /, **fields: Any) -> Case:
    own = {**options, **fields.pop("override_settings", {})}
    return case("hypertile", f"HyperTile, {name}", route, **{**LARGE, **fields, "override_settings": own})


def cases() -> Iterator[Case]:
    yield _tiled("U-Net", UNET)
    yield _tiled("VAE", VAE)
    yield _tiled("both", ALL)
    yield under(_tiled("saved options", {}), **ALL)
    yield _tiled("a picture of one tile", ALL, width=64, height=64)
    for name, changes in _sizes().items():
        yield _tiled(f"size {name}", ALL, **changes)
    for name, options in _options().items():
        yield _tiled(name, {**ALL, **options}, width=512, height=256)
    for name, changes in _requests().items():
        yield _tiled(name, ALL, **changes)
    for checkpoint in ("tiny-sd2v", "tiny-sdxl"):
        own = {"sd_model_checkpoint": checkpoint}
        yield _tiled(checkpoint, ALL, override_settings=own)
        yield _tiled(f"{checkpoint}, depth 0", {**ALL, "hypertile_max_depth_unet": 0}, override_settings=own)
    sd3 = {"sd_model_checkpoint": "tiny-sd3"}
    yield _tiled("tiny-sd3", ALL, width=256, sampler_name="Euler", override_settings=sd3)
    passes = (("both passes", ALL), ("second pass", SECOND), ("second pass and VAE", SECOND | VAE))
    for name, options in passes:
        for upscaler in ("Latent", "Lanczos"):
            for batches in (1, 2):
                fields = {**hires_fields(hr_upscaler=upscaler), "n_iter": batches, "hr_second_pass_steps": 2}
                yield _tiled(f"{name}, hires {upscaler}, {batches} batches", options, **fields)
    large = {**hires_fields(), "hr_checkpoint_name": "tiny-sdxl", "n_iter": 2}
    yield _tiled("hires another family", ALL, **large)
    cut = {**hires_fields(hr_upscaler="Lanczos"), "hr_resize_x": 512, "hr_resize_y": 256}
    yield _tiled("hires cut to size", ALL, **cut)
    lines: tuple[tuple[int, Any], ...] = ((44, ["0", "1"]), (47, ["True", "False"]))
    yield _plot("depth and VAE", lines, UNET)
    yield _plot("U-Net and size", ((42, ["true", "False"]), (45, "128-256 (+128)")), {})
    yield _tiled("img2img", ALL, "img2img", **{**source(0.6), **LARGE})


def _plot(name: str, lines: tuple[tuple[int, Any], ...], options: dict[str, Any]) -> Case:
    plot = xyz(name, "txt2img", *lines, include_lone_images=True, **LARGE, override_settings=options)
    return replace(plot, group="hypertile", name=f"HyperTile, {plot.name}")


def _sizes() -> dict[str, dict[str, Any]]:
    sizes = ((256, 512), (384, 256), (264, 296), (512, 512), (260, 300))
    return {f"{width}x{height}": {"width": width, "height": height} for width, height in sizes}


def _options() -> dict[str, dict[str, Any]]:
    return {
        "depth 0": {"hypertile_max_depth_unet": 0},
        "depth 1 and 2": {"hypertile_max_depth_unet": 1, "hypertile_max_depth_vae": 2},
        "tiles of 256": {"hypertile_max_tile_unet": 256, "hypertile_max_tile_vae": 256},
        "tiles of 64": {"hypertile_max_tile_unet": 64, "hypertile_max_tile_vae": 64},
        "swap size 1": {"hypertile_swap_size_unet": 1, "hypertile_swap_size_vae": 1},
        "swap size 0": {"hypertile_swap_size_unet": 0, "hypertile_swap_size_vae": 0},
        "swap size 8": {"hypertile_swap_size_unet": 8, "hypertile_swap_size_vae": 8},
        "token merging": {"token_merging_ratio": 0.4},
        "negative guidance left out": {"s_min_uncond": 3.0, "s_min_uncond_all": True},
        "one half at a time": {"batch_cond_uncond": False},
    }


def _requests() -> dict[str, dict[str, Any]]:
    return {
        "batch of 2": {"batch_size": 2},
        "2 batches": {"n_iter": 2},
        "a seed of 0": {"seed": 0},
        "subseed": {"subseed": 5, "subseed_strength": 0.4},
        "DPM++ SDE": {"sampler_name": "DPM++ SDE"},
        "a long negative prompt": {"negative_prompt": "blurry, " * 60},
        "AND": {"prompt": "a cat AND a dog :0.5 AND a house :0.3"},
        "AND, long": {"prompt": "a cat AND a dog :0.5 AND a house :0.3", "negative_prompt": "bad, " * 60},
        "refiner": {"refiner_checkpoint": "tiny-b", "refiner_switch_at": 0.5, "n_iter": 2},
        "refiner of another family": {"refiner_checkpoint": "tiny-sd2v", "refiner_switch_at": 0.5},
        "tiling": {"tiling": True},
        "a LoRA": {"prompt": "a cat <lora:tiny-style:0.8>"},
        "told by an infotext": {"infotext": _INFOTEXT},
    }
