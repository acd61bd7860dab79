"""What is written into a picture about how it was made, and the ``info`` object: the webui's words."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sd_cloud.engines.diffusion.eight_bits import Storage
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Request

VERSION = "1.10.1"
"""The webui whose behaviour, and whose infotext, this engine has."""


@dataclass(frozen=True)
class Names:
    """Of the checkpoint and the VAE; hashes are 10 digits, None where they are not computed."""

    model: str
    model_hash: str | None
    vae: str | None
    vae_hash: str | None


@dataclass(frozen=True)
class Texts:
    """Prompts and seeds of all pictures of a job, in order."""

    prompts: Sequence[str]
    negative_prompts: Sequence[str]
    seeds: Sequence[int]
    subseeds: Sequence[int]
    hires_prompts: Sequence[str] = ()
    hires_negative_prompts: Sequence[str] = ()


def infotext(
    request: Request,
    options: Options,
    names: Names,
    texts: Texts,
    marks: Mapping[str, Any],
    index: int,
    *,
    user: str | None = None,
    inpainting: bool = False,
    image_cfg_scale: float | None = None,
    storage: Storage | None = None,
) -> str:
    """The text of picture ``index``. ``marks`` are the webui's ``extra_generation_params``.

    ``storage``: what was asked for, where weights are held in 8 bits.
    """
    strength = request.seeds.subseed_strength
    seeds = request.seeds
    clip_skip = options.whole("CLIP_stop_at_last_layers")
    ensd = options.whole("eta_noise_seed_delta")
    merging = options.merging_ratio(source=request.source is not None, second=False)
    merging_second = options.merging_ratio(source=False, second=True) if request.hires else 0
    facts: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler.name,
        "Schedule type": request.scheduler.label,
        "CFG scale": request.cfg_scale,
        "Image CFG scale": image_cfg_scale,
        "Seed": texts.seeds[index],
        "Face restoration": options.text("face_restoration_model") if request.restore_faces else None,
        "Size": f"{request.width}x{request.height}",
        "Model hash": names.model_hash if options.flag("add_model_hash_to_info") else None,
        "Model": names.model if options.flag("add_model_name_to_info") else None,
        "FP8 weight": storage.fp8 if storage else None,
        "Cache FP16 weight for LoRA": storage.keeps_half if storage else None,
        "VAE hash": names.vae_hash if options.flag("add_vae_hash_to_info") else None,
        "VAE": names.vae if options.flag("add_vae_name_to_info") else None,
        "Variation seed": texts.subseeds[index] if strength != 0 else None,
        "Variation seed strength": strength if strength != 0 else None,
        "Seed resize from": (
            f"{seeds.resize_width}x{seeds.resize_height}"
            if seeds.resize_width > 0 and seeds.resize_height > 0
            else None
        ),
        "Denoising strength": marks.get("Denoising strength"),
        "Conditional mask weight": options.number("inpainting_mask_weight") if inpainting else None,
        "Clip skip": clip_skip if clip_skip > 1 else None,
        "ENSD": ensd if ensd and _draws_while_sampling(request, options) else None,
        "Token merging ratio": merging or None,
        "Token merging ratio hr": merging_second or None,
        "RNG": options.text("randn_source") if options.text("randn_source") != "GPU" else None,
        "Tiling": "True" if request.tiling else None,
        **marks,
        "Version": VERSION if options.flag("add_version_to_infotext") else None,
        "User": user if options.flag("add_user_name_to_info") else None,
    }
    if request.hires is not None:
        facts["Hires prompt"] = _differing(texts.hires_prompts, texts.prompts, index)
        facts["Hires negative prompt"] = _differing(
            texts.hires_negative_prompts, texts.negative_prompts, index
        )
    written = ", ".join(
        key if key == value else f"{key}: {quoted(value)}"
        for key, value in facts.items()
        if value is not None
    )
    negative = texts.negative_prompts[index]
    second = f"\nNegative prompt: {negative}" if negative else ""
    return f"{texts.prompts[index]}{second}\n{written}".strip()


def _differing(hires: Sequence[str], first: Sequence[str], index: int) -> str | None:
    return hires[index] if hires and hires[index] != first[index] else None


def _draws_while_sampling(request: Request, options: Options) -> bool:
    eta = request.knobs.eta
    if eta is None:
        eta = options.number("eta_ancestral")
    return eta != 0 and bool(request.sampler.options.get("uses_ensd"))


def quoted(value: Any) -> Any:
    """In quotes when it holds what separates entries."""
    text = str(value)
    if "," not in text and "\n" not in text and ":" not in text:
        return value
    return json.dumps(value, ensure_ascii=False)


def info_object(
    request: Request,
    options: Options,
    names: Names,
    texts: Texts,
    marks: Mapping[str, Any],
    infotexts: Sequence[str],
    *,
    first_image: int,
    inpainting: bool,
    began: datetime.datetime,
    comments: Sequence[str],
) -> dict[str, Any]:
    """The webui's ``info``. ``comments`` are put in where there are any."""
    info: dict[str, Any] = {
        "prompt": texts.prompts[0],
        "all_prompts": list(texts.prompts),
        "negative_prompt": texts.negative_prompts[0],
        "all_negative_prompts": list(texts.negative_prompts),
        "seed": texts.seeds[0],
        "all_seeds": list(texts.seeds),
        "subseed": texts.subseeds[0],
        "all_subseeds": list(texts.subseeds),
        "subseed_strength": request.seeds.subseed_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler.name,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": request.restore_faces,
        "face_restoration_model": options.text("face_restoration_model") if request.restore_faces else None,
        "sd_model_name": names.model,
        "sd_model_hash": names.model_hash,
        "sd_vae_name": names.vae,
        "sd_vae_hash": names.vae_hash,
        "seed_resize_from_w": request.seeds.resize_width,
        "seed_resize_from_h": request.seeds.resize_height,
        "denoising_strength": request.denoising_strength,
        "extra_generation_params": dict(marks),
        "index_of_first_image": first_image,
        "infotexts": list(infotexts),
        "styles": list(request.styles),
        "job_timestamp": began.strftime("%Y%m%d%H%M%S"),
        "clip_skip": options.whole("CLIP_stop_at_last_layers"),
        "is_using_inpainting_conditioning": inpainting,
        "version": VERSION,
    }
    if comments:
        info["comments"] = "".join(f"{comment}\n" for comment in comments)
    return info
