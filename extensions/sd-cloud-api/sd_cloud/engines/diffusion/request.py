"""The native txt2img and img2img requests as one checked, frozen value.

Field names, defaults and meanings: the webui's ``StableDiffusionProcessingTxt2Img`` and
``…Img2Img`` models in its OpenAPI file.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from sd_cloud.engines.base import Sampler, Scheduler
from sd_cloud.engines.diffusion.catalogue_samplers import SAMPLERS, SCHEDULERS
from sd_cloud.engines.diffusion.fields import Fields
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job

LIMIT_SIDE_PIXELS = 8192
SEEDS = 4294967294
AUTOMATIC = SCHEDULERS[0]


@dataclass(frozen=True)
class Seeds:
    """``resize_width``/``resize_height``: the size whose noise is kept (0 or less: none)."""

    first: int
    subseed: int
    subseed_strength: float
    resize_width: int
    resize_height: int


@dataclass(frozen=True)
class Knobs:
    """Numbers that samplers read. ``None``: what the options say."""

    eta: float | None
    s_min_uncond: float
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float


@dataclass(frozen=True)
class Hires:
    upscaler: str | None
    scale: float
    steps: int
    resize_x: int
    resize_y: int
    checkpoint: str | None
    sampler: Sampler | None
    scheduler: Scheduler | None
    prompt: str
    negative_prompt: str


@dataclass(frozen=True)
class Source:
    """What img2img starts from. Pictures are base64 as they came."""

    images: tuple[str, ...]
    mask: str | None
    latent_mask: str | None
    resize_mode: int
    mask_blur_x: int
    mask_blur_y: int
    mask_round: bool
    fill: int
    full_res: bool
    full_res_padding: int
    invert_mask: bool
    noise_multiplier: float
    image_cfg_scale: float | None


@dataclass(frozen=True)
class Refiner:
    checkpoint: str
    switch_at: float | None


@dataclass(frozen=True)
class Request:
    """One request. ``width``/``height``: of the first pass, in pixels."""

    prompt: str
    negative_prompt: str
    styles: tuple[str, ...]
    seeds: Seeds
    sampler: Sampler
    scheduler: Scheduler
    batch_size: int
    n_iter: int
    steps: int
    cfg_scale: float
    width: int
    height: int
    restore_faces: bool
    tiling: bool
    denoising_strength: float | None
    knobs: Knobs
    refiner: Refiner | None
    extra_networks: bool
    save_images: bool
    firstpass_image: str | None
    hires: Hires | None = None
    source: Source | None = None

    @property
    def count(self) -> int:
        return self.batch_size * self.n_iter


def parse_request(job: Job, options: Options) -> Request:
    """Check a txt2img or img2img payload. Raises BadRequest, naming the field."""
    fields = Fields(job.payload)
    is_img2img = job.kind == "img2img"
    name = fields.text("sampler_name") or fields.text("sampler_index", "Euler")
    sampler, scheduler = find_sampler(name, fields.text("scheduler") or None, "sampler_name", "scheduler")
    width = fields.whole("width", 512, least=8, most=LIMIT_SIDE_PIXELS)
    height = fields.whole("height", 512, least=8, most=LIMIT_SIDE_PIXELS)
    denoising = fields.number("denoising_strength", 0.75 if is_img2img else None, least=0.0, most=1.0)
    hires = None
    if not is_img2img and fields.flag("enable_hr", False):
        first_width = fields.whole("firstphase_width", 0, least=0, most=LIMIT_SIDE_PIXELS)
        first_height = fields.whole("firstphase_height", 0, least=0, most=LIMIT_SIDE_PIXELS)
        hires = _hires(fields)
        if first_width and first_height:
            width, height = first_width, first_height
        denoising = 0.75 if denoising is None else denoising
    return Request(
        prompt=fields.text("prompt"),
        negative_prompt=fields.text("negative_prompt"),
        styles=fields.texts("styles"),
        seeds=Seeds(
            first=_seed(fields, "seed"),
            subseed=_seed(fields, "subseed"),
            subseed_strength=fields.number("subseed_strength", 0, least=0.0, most=1.0) or 0,
            resize_width=fields.whole("seed_resize_from_w", -1),
            resize_height=fields.whole("seed_resize_from_h", -1),
        ),
        sampler=sampler,
        scheduler=scheduler,
        batch_size=fields.whole("batch_size", 1, least=1, most=128),
        n_iter=fields.whole("n_iter", 1, least=1, most=1000),
        steps=fields.whole("steps", 50, least=1, most=1000),
        cfg_scale=_given(fields.number("cfg_scale", 7.0)),
        width=width,
        height=height,
        restore_faces=_flag(fields, options, "restore_faces", "face_restoration"),
        tiling=_flag(fields, options, "tiling", "tiling"),
        denoising_strength=denoising,
        knobs=_knobs(fields, options),
        refiner=_refiner(fields),
        extra_networks=not fields.flag("disable_extra_networks", False),
        save_images=bool(fields.flag("save_images", False)),
        firstpass_image=fields.text("firstpass_image") or None,
        hires=hires,
        source=_source(fields, options) if is_img2img else None,
    )


def find_sampler(
    name: str, scheduler: str | None, sampler_field: str, scheduler_field: str
) -> tuple[Sampler, Scheduler]:
    """A sampler by name or alias, and a scheduler by name, label or alias.

    A scheduler's name at the end of the sampler's counts (``DPM++ 2M Karras``). Raises BadRequest,
    listing those that are there.
    """
    found = _scheduler(scheduler, scheduler_field)
    sampler = _sampler(name)
    if sampler is None:
        for one in SCHEDULERS:
            for label in (one.label, one.name, *one.aliases):
                if name.lower().endswith(" " + label.lower()):
                    sampler = _sampler(name[: -len(label) - 1])
                    found = one if sampler else found
    if sampler is None:
        there = ", ".join(one.name for one in SAMPLERS)
        raise BadRequest(f"no sampler is called {name!r}; there are {there}", field=sampler_field)
    return sampler, found


def _sampler(name: str) -> Sampler | None:
    wanted = name.strip().lower()
    return next((one for one in SAMPLERS if wanted in {one.name.lower(), *map(str.lower, one.aliases)}), None)


def _scheduler(name: str | None, field: str) -> Scheduler:
    if name is None:
        return AUTOMATIC
    wanted = name.strip().lower()
    for one in SCHEDULERS:
        if wanted in {one.name.lower(), one.label.lower(), *map(str.lower, one.aliases)}:
            return one
    there = ", ".join(one.label for one in SCHEDULERS)
    raise BadRequest(f"no scheduler is called {name!r}; there are {there}", field=field)


def _given(value: float | None) -> float:
    assert value is not None
    return value


def _seed(fields: Fields, name: str) -> int:
    raw = fields.raw(name)
    value = -1 if raw == "" else fields.whole(name, -1)
    return random.randrange(SEEDS) if value == -1 else value


def _flag(fields: Fields, options: Options, name: str, option: str) -> bool:
    given = fields.flag(name, None)
    return options.flag(option) if given is None else given


def _knobs(fields: Fields, options: Options) -> Knobs:
    def number(name: str) -> float:
        value = fields.number(name, None)
        return options.number(name) if value is None else value

    return Knobs(
        eta=fields.number("eta", None, least=0.0),
        s_min_uncond=number("s_min_uncond"),
        s_churn=number("s_churn"),
        s_tmin=number("s_tmin"),
        s_tmax=number("s_tmax") or math.inf,
        s_noise=number("s_noise"),
    )


def _hires(fields: Fields) -> Hires:
    sampler = scheduler = None
    name = fields.text("hr_sampler_name")
    if name and name != "Use same sampler":
        sampler, scheduler = find_sampler(name, None, "hr_sampler_name", "hr_scheduler")
        scheduler = None if scheduler is AUTOMATIC else scheduler
    own = fields.text("hr_scheduler")
    if own and own != "Use same scheduler":
        scheduler = _scheduler(own, "hr_scheduler")
    checkpoint = fields.text("hr_checkpoint_name")
    side = LIMIT_SIDE_PIXELS
    # firstphase_* is the older way to say it: then width and height are the size wanted.
    old_way = bool(fields.whole("firstphase_width", 0) and fields.whole("firstphase_height", 0))
    return Hires(
        upscaler=fields.text("hr_upscaler") or None,
        scale=_given(fields.number("hr_scale", 2.0, least=0.05, most=16.0)),
        steps=fields.whole("hr_second_pass_steps", 0, least=0, most=1000),
        resize_x=fields.whole(
            "hr_resize_x", fields.whole("width", 512) if old_way else 0, least=0, most=side
        ),
        resize_y=fields.whole(
            "hr_resize_y", fields.whole("height", 512) if old_way else 0, least=0, most=side
        ),
        checkpoint=None if checkpoint in ("", "Use same checkpoint") else checkpoint,
        sampler=sampler,
        scheduler=scheduler,
        prompt=fields.text("hr_prompt"),
        negative_prompt=fields.text("hr_negative_prompt"),
    )


def _source(fields: Fields, options: Options) -> Source:
    images = fields.raw("init_images")
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list | tuple) or not images or not all(isinstance(one, str) for one in images):
        raise BadRequest("must be a list of pictures in base64, at least one", field="init_images")
    blur = fields.raw("mask_blur")
    both = None if blur is None else fields.whole("mask_blur", 4, least=0, most=1000)
    multiplier = fields.number("initial_noise_multiplier", None)
    return Source(
        images=tuple(images),
        mask=fields.text("mask") or None,
        latent_mask=fields.text("latent_mask") or None,
        resize_mode=fields.whole("resize_mode", 0, least=0, most=3),
        mask_blur_x=fields.whole("mask_blur_x", 4, least=0, most=1000) if both is None else both,
        mask_blur_y=fields.whole("mask_blur_y", 4, least=0, most=1000) if both is None else both,
        mask_round=bool(fields.flag("mask_round", True)),
        fill=fields.whole("inpainting_fill", 0, least=0, most=3),
        full_res=bool(fields.flag("inpaint_full_res", True)),
        full_res_padding=fields.whole("inpaint_full_res_padding", 0, least=0, most=LIMIT_SIDE_PIXELS),
        invert_mask=bool(fields.whole("inpainting_mask_invert", 0, least=0, most=1)),
        noise_multiplier=options.number("initial_noise_multiplier") if multiplier is None else multiplier,
        image_cfg_scale=fields.number("image_cfg_scale", None),
    )


def _refiner(fields: Fields) -> Refiner | None:
    """``refiner_checkpoint`` of the request, or the arguments of the ``refiner`` script."""
    checkpoint, switch_at = fields.text("refiner_checkpoint"), fields.number("refiner_switch_at", None)
    scripts: Any = fields.raw("alwayson_scripts") or {}
    own = next((value for key, value in scripts.items() if key.lower() == "refiner"), None)
    if isinstance(own, dict) and isinstance(own.get("args"), list):
        enabled, name, share = (*own["args"], None, None, None)[:3]
        checkpoint, switch_at = (str(name or ""), share) if enabled else ("", None)
        if isinstance(switch_at, bool) or not isinstance(switch_at, int | float | None):
            raise BadRequest(
                f"expected a share of 0 to 1, not {share!r:.80}", field="alwayson_scripts.refiner.args[2]"
            )
    if checkpoint in ("", "None", "none"):
        return None
    return Refiner(checkpoint, None if switch_at is None else float(switch_at))
