"""Samplers, schedulers, steps, their numbers, seeds and sizes."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.fidelity.case import PARTS, Case, case, source

SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a",
    "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++",
    "PLMS", "UniPC", "LCM",
)  # fmt: skip
SCHEDULERS = (
    "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip


def _samplers() -> Iterator[Case]:
    for name in SAMPLERS:
        yield case("samplers", f"{name}", sampler_name=name)
        yield case("samplers", f"img2img {name}", "img2img", sampler_name=name, **source(0.6))
    for name in ("DPM++ 2M", "DPM++ SDE", "Heun", "UniPC", "PLMS", "LCM", "Restart", "DDIM"):
        fields = {"sampler_name": name, "override_settings": {"sd_model_checkpoint": "tiny-sd2v"}}
        yield case("samplers", f"SD 2 v-prediction {name}", **fields)
    for name in ("DPM++ 2M Karras", "k_dpmpp_2m", "k_euler_a", "DPM++ 2M SDE Exponential", "LMS Karras"):
        yield case("samplers", f"by the name {name}", sampler_name=name)
    yield case("samplers", "by sampler_index", sampler_name=None, sampler_index="Heun")
    yield case("samplers", "Euler a, batch of 2", batch_size=2)
    for name in ("DPM++ SDE", "DPM++ 2M SDE", "LCM", "DPM2 a", "DPM++ 3M SDE"):
        yield case("samplers", f"{name}, batch of 2", sampler_name=name, batch_size=2)


def _schedulers() -> Iterator[Case]:
    for name in SCHEDULERS:
        for sampler in ("Euler", "DPM++ 2M"):
            yield case("schedulers", f"{sampler}, {name}", sampler_name=sampler, scheduler=name)
        yield case(
            "schedulers",
            f"img2img Euler, {name}",
            "img2img",
            sampler_name="Euler",
            scheduler=name,
            **source(0.5),
        )
    for name in ("Align Your Steps", "SGM Uniform", "Beta", "Karras"):
        sdxl = {"sd_model_checkpoint": "tiny-sdxl"}
        yield case(
            "schedulers", f"SDXL Euler, {name}", sampler_name="Euler", scheduler=name, override_settings=sdxl
        )
    for name in ("karras", "kl_optimal", "SGMUniform"):
        yield case("schedulers", f"by the name {name}", sampler_name="Euler", scheduler=name)
    for sampler, scheduler in (("DDIM", "Karras"), ("UniPC", "Exponential"), ("DPM fast", "Karras")):
        yield case("schedulers", f"{sampler}, {scheduler}", sampler_name=sampler, scheduler=scheduler)


def _steps() -> Iterator[Case]:
    for steps in (1, 2, 7):
        for sampler in (
            SAMPLERS if steps < 7 else ("DPM fast", "LMS", "PLMS", "UniPC", "DPM++ 3M SDE", "Restart")
        ):
            if sampler != "DPM adaptive":
                yield case("steps", f"{sampler}, {steps} steps", sampler_name=sampler, steps=steps)
    for cfg_scale in (1, 0, 3.5, 30):
        yield case("steps", f"CFG scale {cfg_scale}", cfg_scale=cfg_scale)


def _knobs() -> Iterator[Case]:
    churn = {"s_churn": 10, "s_tmin": 0.3, "s_tmax": 8, "s_noise": 1.02}
    yield case("knobs", "eta 0.5", eta=0.5)
    yield case("knobs", "eta 0 Euler a", eta=0)
    yield case("knobs", "eta 0.7 DDIM", eta=0.7, sampler_name="DDIM")
    yield case("knobs", "eta_ancestral 0.6 by option", override_settings={"eta_ancestral": 0.6})
    yield case("knobs", "eta_ddim 0.6 by option", sampler_name="DDIM", override_settings={"eta_ddim": 0.6})
    for sampler in ("Euler", "Heun", "DPM2", "Euler a", "DPM++ SDE", "Restart"):
        yield case("knobs", f"s_churn and the like, {sampler}", sampler_name=sampler, **churn)
    yield case("knobs", "s_noise by option", override_settings={"s_noise": 1.1})
    yield case("knobs", "s_churn by option", sampler_name="Euler", override_settings={"s_churn": 5})
    yield case("knobs", "s_min_uncond 3", s_min_uncond=3)
    yield case("knobs", "s_min_uncond_all", s_min_uncond=3, override_settings={"s_min_uncond_all": True})
    yield case("knobs", "s_min_uncond long negative", s_min_uncond=3, negative_prompt=PARTS)
    yield case("knobs", "skip_early_cond", override_settings={"skip_early_cond": 0.4})
    yield case("knobs", "ENSD", override_settings={"eta_noise_seed_delta": 31337})
    yield case(
        "knobs", "ENSD DPM2 a", sampler_name="DPM2 a", override_settings={"eta_noise_seed_delta": 31337}
    )
    yield case("knobs", "ENSD Euler", sampler_name="Euler", override_settings={"eta_noise_seed_delta": 31337})
    yield case("knobs", "randn_source CPU", override_settings={"randn_source": "CPU"})
    yield case("knobs", "randn_source NV", override_settings={"randn_source": "NV"})
    yield case(
        "knobs",
        "randn_source NV, DPM++ SDE",
        sampler_name="DPM++ SDE",
        override_settings={"randn_source": "NV"},
    )
    yield case(
        "knobs",
        "randn_source NV, img2img",
        "img2img",
        **source(0.6),
        override_settings={"randn_source": "NV"},
    )


def _seeds() -> Iterator[Case]:
    resize = {"seed_resize_from_w": 96, "seed_resize_from_h": 48}
    yield case("seeds", "seed resize", **resize)
    yield case("seeds", "subseed with seed resize", subseed=7, subseed_strength=0.3, **resize)
    yield case("seeds", "seed resize from smaller", seed_resize_from_w=32, seed_resize_from_h=32)
    yield case("seeds", "subseed strength 1", subseed=9, subseed_strength=1)
    yield case("seeds", "subseeds in a batch", subseed=9, subseed_strength=0.5, batch_size=2, n_iter=2)
    yield case("seeds", "batch 3 x 2", batch_size=3, n_iter=2, steps=3)
    yield case("seeds", "seed 0", seed=0)
    yield case("seeds", "seed 4294967295", seed=4294967295, subseed=3)
    yield case(
        "seeds", "subseed 0.25, DPM++ 2M SDE", sampler_name="DPM++ 2M SDE", subseed=3, subseed_strength=0.25
    )


def _sizes() -> Iterator[Case]:
    for width, height in ((72, 200), (130, 100), (136, 120), (127, 129)):
        yield case("sizes", f"{width}x{height}", width=width, height=height)
    yield case("sizes", "tiling 136x72", tiling=True, width=136, height=72)
    yield case(
        "sizes", "tiling hires", tiling=True, enable_hr=True, hr_upscaler="Latent", denoising_strength=0.6
    )
    yield case("sizes", "img2img 130x100", "img2img", **{**source(0.6), "width": 130, "height": 100})


def cases() -> Iterator[Case]:
    yield from _samplers()
    yield from _schedulers()
    yield from _steps()
    yield from _knobs()
    yield from _seeds()
    yield from _sizes()
