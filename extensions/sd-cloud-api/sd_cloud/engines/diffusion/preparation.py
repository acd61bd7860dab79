"""What a job prepares once, before its first batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sd_cloud.engines.diffusion import hires, img2img, pictures
from sd_cloud.engines.diffusion.controlnet.control import Control
from sd_cloud.engines.diffusion.controlnet.maps import Canvas, map_seed
from sd_cloud.engines.diffusion.controlnet.preparing import Surroundings, prepare
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit
from sd_cloud.engines.diffusion.hires import HiresPlan
from sd_cloud.engines.diffusion.job_models import JobModels
from sd_cloud.engines.diffusion.job_state import JobState
from sd_cloud.engines.diffusion.models_wanted import find_checkpoint
from sd_cloud.engines.diffusion.noise import LATENT_PIXELS, GlobalSource
from sd_cloud.engines.diffusion.passes import enlarge
from sd_cloud.engines.diffusion.upscale import find_upscaler

UPSCALER_FIELD = "override_settings.upscaler_for_img2img"


def prepare_source(
    state: JobState, models: JobModels, colour_target: NDArray[np.uint8] | None
) -> img2img.Prepared:
    """The pictures of img2img as latents. A batch becomes as large as there are pictures."""
    preparation = img2img.Preparation(
        request=state.request,
        options=state.options,
        coder=models.chosen_coder(),
        enlarge=enlarge(
            state,
            state.options.get("upscaler_for_img2img"),
            UPSCALER_FIELD,
        ),
        source=state.generator,
        random=state.random,
        seeds=list(state.texts.seeds),
        marks=state.marks,
        comments=state.comments,
        colour_target=colour_target,
    )
    prepared = preparation.run()
    if prepared.batch_size != state.request.batch_size:
        state.request = replace(state.request, batch_size=prepared.batch_size)
    if models.current.layout.edits:
        assert state.request.source is not None
        state.image_cfg_scale = state.request.source.image_cfg_scale
        return replace(prepared, condition=models.coder().likeliest(prepared.pixels))
    if not models.current.layout.inpainting:
        return prepared
    state.inpainting = True
    source = state.request.source
    assert source is not None
    condition = img2img.inpainting_condition(
        prepared.pixels,
        prepared.latent,
        prepared.mask,
        models.coder(),
        state.generator,
        state.options.number("inpainting_mask_weight"),
        rounded=source.mask_round,
    )
    return replace(prepared, condition=condition)


def plan_second_pass(state: JobState) -> HiresPlan | None:
    """Where the second pass goes to; its words in the infotext come in the webui's order."""
    request, own = state.request, state.request.hires
    if own is None:
        return None
    marks = state.marks
    marks["Denoising strength"] = request.denoising_strength
    checkpoint = None
    if own.checkpoint is not None:
        checkpoint = find_checkpoint(own.checkpoint, state.catalogue, "hr_checkpoint_name")
        marks["Hires checkpoint"] = state.workshop.short_title(checkpoint)
    if own.sampler is not None and own.sampler.name != request.sampler.name:
        marks["Hires sampler"] = own.sampler.name
    marks |= {"Hires prompt": None, "Hires negative prompt": None, "Hires schedule type": None}
    if not hires.is_latent(own):
        find_upscaler(own.upscaler or "", state.workshop.settings, field="hr_upscaler")
    target = hires.target_size(request, own, marks)
    if own.steps:
        marks["Hires steps"] = own.steps
    if own.upscaler is not None:
        marks["Hires upscaler"] = own.upscaler
    return HiresPlan(own, target, checkpoint)


def numbers_drawn_early(state: JobState, models: JobModels, units: Sequence[ControlUnit]) -> int:
    """How many random numbers the units' maps take to be encoded, which comes before img2img's pictures."""
    request = state.request
    cells = (request.height // LATENT_PIXELS) * (request.width // LATENT_PIXELS)
    return sum(unit.fills for unit in units) * models.current.latent_channels * cells


def prepare_controls(
    state: JobState,
    models: JobModels,
    units: Sequence[ControlUnit],
    prepared: img2img.Prepared | None,
    second: HiresPlan | None,
    early: GlobalSource,
) -> Control | None:
    """The ControlNets of the job with their maps; None without units.

    ``early``: what random numbers come from before img2img's pictures are encoded.
    """
    if not units:
        return None
    request, coder = state.request, models.coder()
    source, seed = request.source, state.texts.seeds[0]
    canvas = Canvas(
        size=(request.width, request.height),
        hires_size=(second.target.width, second.target.height) if second else None,
        seed=map_seed(state.job.payload, seed),
        init_image=pictures.decode_picture(source.images[0], "init_images[0]") if source else None,
        init_mode=source.resize_mode if source else 0,
        mask=prepared.whole_mask if prepared else None,
        crop=prepared.crop if prepared else None,
    )
    around = Surroundings(
        settings=state.workshop.settings,
        models=state.catalogue.controlnets,
        unet=models.current.unet,
        shelf=state.workshop.controlnets,
        encode=lambda pixels: coder.encode(pixels.to(state.workshop.device), state.generator),
        encode_early=lambda pixels: coder.encode(pixels.to(state.workshop.device), early),
        draw=state.draw_unasked,
        option=state.job.option,
        promptless=not (request.prompt or request.negative_prompt),
    )
    return prepare(units, canvas, around)
