"""A native request made whole and checked: what the engine gets has only names that are there.

Every refusal names the field, the fact and what would do. Samplers, schedulers and scripts are
looked up as the webui looks them up (any case, aliases, ``DPM++ 2M Karras`` in one word), but
where the webui takes its default for a name it does not know, the request is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sd_cloud.engines.base import Catalogue
from sd_cloud.errors import BadRequest, CheckpointNotFound, NotFound, NotImplementedHere
from sd_cloud.job import Kind

LATENT_UPSCALE_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
#: Always there, and without arguments: its options say what it does.
HYPERTILE = "Hypertile"
EXTRA_OPTIONS = "extra options"
SOFT_INPAINTING = "soft inpainting"
#: Names for the script that the engine has where the webui has an extension.
CONTROLNET = "controlnet"
#: What else a webui 1.10.1 brings along.
WEBUI_SCRIPTS = frozenset({"custom code", "comments"})

LIMIT_SIDE_PIXELS = 16384
LIMIT_PICTURES = 1000
#: field: (least, most)
RANGES: Mapping[str, tuple[float, float]] = {
    "width": (8, LIMIT_SIDE_PIXELS),
    "height": (8, LIMIT_SIDE_PIXELS),
    "steps": (1, 1000),
    "batch_size": (1, 128),
    "n_iter": (1, LIMIT_PICTURES),
    "seed": (-1, 2**64 - 1),
    "subseed": (-1, 2**64 - 1),
    "subseed_strength": (0, 1),
    "denoising_strength": (0, 1),
    "eta": (0, 1000),
    "s_noise": (-1000, 1000),
    "initial_noise_multiplier": (-1000, 1000),
    "cfg_scale": (-1000, 1000),
    "image_cfg_scale": (-1000, 1000),
    "refiner_switch_at": (0, 1),
    "hr_scale": (0.05, 16),
    "hr_second_pass_steps": (0, 1000),
    "hr_resize_x": (0, LIMIT_SIDE_PIXELS),
    "hr_resize_y": (0, LIMIT_SIDE_PIXELS),
    "firstphase_width": (0, LIMIT_SIDE_PIXELS),
    "firstphase_height": (0, LIMIT_SIDE_PIXELS),
    "seed_resize_from_w": (-1, LIMIT_SIDE_PIXELS),
    "seed_resize_from_h": (-1, LIMIT_SIDE_PIXELS),
    "resize_mode": (0, 3),
    "inpainting_fill": (0, 3),
    "inpainting_mask_invert": (0, 1),
    "inpaint_full_res_padding": (0, LIMIT_SIDE_PIXELS),
    "mask_blur": (0, 1024),
    "mask_blur_x": (0, 1024),
    "mask_blur_y": (0, 1024),
}


def checked_payload(
    kind: Kind, payload: Mapping[str, Any], catalogue: Catalogue, *, limit_pixels: int
) -> dict[str, Any]:
    """The payload of a txt2img or img2img request with the catalogue's own names in it.

    ``payload`` has the webui's defaults filled in. ``limit_pixels`` bounds one picture, its hires
    fix included. Raises BadRequest, NotFound, CheckpointNotFound, NotImplementedHere.
    """
    whole = dict(payload)
    check_values(whole)
    for field, (least, most) in RANGES.items():
        value = whole.get(field)
        if value is not None and not least <= value <= most:
            raise BadRequest(f"expected {least} to {most}, got {value!r}", field=field)
    _check_sizes(whole, limit_pixels)
    if kind == "img2img":
        _check_init_images(whole)
    _name_samplers(whole, catalogue)
    _check_models(whole, catalogue)
    _check_scripts(kind, whole, catalogue)
    return whole


def check_values(value: Any, field: str = "") -> None:
    """Raise BadRequest for numbers and texts that JSON lets through and nothing after it can hold."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRequest("expected a finite number", field=field)
    elif isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadRequest("the text holds half a surrogate pair", field=field) from None
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_values(str(key), field)
            check_values(inner, f"{field}.{key}" if field else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_values(inner, f"{field}[{index}]")


def _check_sizes(payload: Mapping[str, Any], limit_pixels: int) -> None:
    width, height = int(payload["width"]), int(payload["height"])
    pixels, where = width * height, "width, height"
    if payload.get("enable_hr"):
        x, y = payload.get("hr_resize_x") or 0, payload.get("hr_resize_y") or 0
        # Enlarged until it covers both sides; what is too much is cut afterwards.
        scale = max(x / width, y / height) or float(payload.get("hr_scale") or 1)
        pixels = max(pixels, int(pixels * scale**2))
        where = "hr_scale, hr_resize_x, hr_resize_y"
    if pixels > limit_pixels:
        raise BadRequest(f"a picture of {pixels} pixels is more than {limit_pixels}", field=where)
    pictures = int(payload["batch_size"]) * int(payload["n_iter"])
    if pictures > LIMIT_PICTURES:
        raise BadRequest(f"{pictures} pictures in one request; at most {LIMIT_PICTURES}", field="n_iter")


def _check_init_images(payload: Mapping[str, Any]) -> None:
    pictures = payload.get("init_images")
    if not pictures:
        raise NotFound("Init image not found")
    for index, picture in enumerate(pictures):
        if not isinstance(picture, str) or not picture:
            raise BadRequest("Invalid encoded image: expected base64", field=f"init_images[{index}]")


# -- names ------------------------------------------------------------------------------------------


def _name_samplers(payload: dict[str, Any], catalogue: Catalogue) -> None:
    asked = payload.get("sampler_name") or payload.get("sampler_index") or "Euler"
    payload["sampler_name"], payload["scheduler"] = sampler_and_scheduler(
        asked, payload.get("scheduler"), catalogue
    )
    hires = payload.get("hr_sampler_name")
    hires_scheduler = payload.get("hr_scheduler")
    if hires in (None, "", "Use same sampler"):
        payload["hr_sampler_name"] = None
    else:
        payload["hr_sampler_name"], found = sampler_and_scheduler(hires, None, catalogue, prefix="hr_")
        hires_scheduler = hires_scheduler or (found if found != "Automatic" else None)
    if hires_scheduler in (None, "", "Use same scheduler"):
        payload["hr_scheduler"] = None
    else:
        payload["hr_scheduler"] = _scheduler(hires_scheduler, catalogue, "hr_scheduler").label


def sampler_and_scheduler(
    sampler: str, scheduler: str | None, catalogue: Catalogue, *, prefix: str = ""
) -> tuple[str, str]:
    """The sampler's name and the scheduler's label. Raises NotFound, which lists those there are.

    The scheduler that a sampler has by itself is called ``Automatic``, as in the webui's infotext.
    """
    found = _scheduler(scheduler, catalogue, f"{prefix}scheduler") if scheduler else None
    name = sampler
    by_name = {alias.lower(): one for one in catalogue.samplers for alias in (one.name, *one.aliases)}
    if name.lower() not in by_name:
        for one in catalogue.schedulers:
            for ending in (one.label, one.name, *one.aliases):
                if name.lower().endswith(f" {ending.lower()}"):
                    name, found = name[: -len(ending) - 1], one
                    break
    known = by_name.get(name.lower())
    if known is None:
        names = _listed(one.name for one in catalogue.samplers)
        raise NotFound(f"Sampler not found: {sampler!r}; there are {names}", field=f"{prefix}sampler_name")
    if found is None or known.options.get("scheduler") == found.name:
        return known.name, "Automatic"
    return known.name, found.label


def _scheduler(wanted: str, catalogue: Catalogue, field: str) -> Any:
    for one in catalogue.schedulers:
        if wanted.lower() in {name.lower() for name in (one.name, one.label, *one.aliases)}:
            return one
    names = _listed(one.label for one in catalogue.schedulers)
    raise NotFound(f"Scheduler not found: {wanted!r}; there are {names}", field=field)


def _check_models(payload: Mapping[str, Any], catalogue: Catalogue) -> None:
    for field, same in (("refiner_checkpoint", "None"), ("hr_checkpoint_name", "Use same checkpoint")):
        wanted = payload.get(field)
        if wanted and wanted != same and catalogue.checkpoint(wanted) is None:
            names = _listed(one.name for one in catalogue.checkpoints)
            remark = catalogue.unhashed_remark(str(wanted))
            raise CheckpointNotFound(f"no checkpoint {wanted!r}; installed: {names}{remark}", field=field)
    if payload.get("enable_hr") and payload.get("hr_upscaler"):
        check_upscaler(payload["hr_upscaler"], catalogue, "hr_upscaler", LATENT_UPSCALE_MODES)


def check_vae(wanted: str | None, catalogue: Catalogue, field: str) -> None:
    """Raises CheckpointNotFound for a VAE that is not installed."""
    if wanted is None or wanted in ("Automatic", "None", "auto", "none"):
        return
    if wanted not in {one.name for one in catalogue.vaes}:
        names = _listed(["Automatic", "None", *(one.name for one in catalogue.vaes)])
        raise CheckpointNotFound(f"no VAE {wanted!r}; there are {names}", field=field)


def check_upscaler(wanted: str, catalogue: Catalogue, field: str, more: tuple[str, ...] = ()) -> None:
    """Raises NotFound for an upscaler that is not there."""
    names = [*more, *(one.name for one in catalogue.upscalers)]
    if wanted not in names:
        raise NotFound(f"Upscaler not found: {wanted!r}; there are {_listed(names)}", field=field)


def _check_scripts(kind: Kind, payload: dict[str, Any], catalogue: Catalogue) -> None:
    there = set(scripts_of(kind, catalogue))
    name = payload.get("script_name")
    if name and name.lower() != "none" and name.lower() not in there:
        raise _no_script(f"Script '{name}'", name, there, "script_name")
    always = payload.get("alwayson_scripts") or {}
    for name, given in always.items():
        field = f"alwayson_scripts.{name}"
        if name.lower() in there:
            raise BadRequest("Cannot have a selectable script in the always on scripts params", field=field)
        if name.lower() not in map(str.lower, always_on(kind)):
            raise _no_script(f"Always on script {name}", name, always_on(kind), field)
        if name.lower() == CONTROLNET:  # which has its own rules
            continue
        if not isinstance(given, Mapping):
            raise BadRequest('expected an object such as {"args": []}', field=field)
        if not isinstance(given.get("args") or [], list):
            raise BadRequest("expected a list", field=f"{field}.args")


def scripts_of(kind: Kind, catalogue: Catalogue) -> list[str]:
    """The selectable scripts of txt2img or of img2img."""
    return [one.name for one in catalogue.scripts if kind in one.arguments]


def always_on(kind: Kind) -> tuple[str, ...]:
    """The scripts of txt2img or of img2img that ``alwayson_scripts`` may name, in the webui's order.

    The values of the last ones are the request's own fields, so that over the API they are seldom sent.
    """
    soft = (SOFT_INPAINTING,) if kind == "img2img" else ()
    return (CONTROLNET, EXTRA_OPTIONS, HYPERTILE, *soft, "refiner", "sampler", "seed")


def _no_script(title: str, name: str, there: Iterable[str], field: str) -> BadRequest | NotImplementedHere:
    if name.lower() in WEBUI_SCRIPTS and name.lower() not in there:
        return NotImplementedHere(f"{title} is the webui's and not part of this service", field=field)
    return BadRequest(f"{title} not found; there are {_listed(sorted(there))}", field=field)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
