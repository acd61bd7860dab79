"""Jobs of kind ``detect``: the control maps of pictures, as ``POST /controlnet/detect`` asks for them.

The payload is that request's body after `controlnet.api.checked_detection` has been over it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from sd_cloud.engines.base import Control, Report
from sd_cloud.engines.diffusion.controlnet.request import picture
from sd_cloud.engines.diffusion.preprocess.detect import Detection, detected
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.engines.diffusion.preprocess.table import find_module
from sd_cloud.errors import BadRequest, Cancelled
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.settings import Settings


def run_detection(job: Job, report: Report, control: Control, *, settings: Settings) -> Outcome:
    """One control map for each picture; ``info`` has the people that a pose's preprocessor saw, ``poses``.

    Raises BadRequest, CheckpointBroken and NotImplementedHere naming the field, and Cancelled once it is
    asked for.
    """
    began = time.monotonic()
    payload = job.payload
    module = find_module(payload["controlnet_module"])
    if module is None:
        raise BadRequest("Module not available", field="controlnet_module")
    detection = Detection(
        module.resolution.settle(payload["controlnet_processor_res"]),
        module.slider_1.settle(payload["controlnet_threshold_a"]),
        module.slider_2.settle(payload["controlnet_threshold_b"]),
    )
    count = len(payload["controlnet_input_images"])
    pictures: list[Picture] = []
    poses: list[Mapping[str, Any]] = []
    for place in range(count):
        report(Progress(step=0, steps=1, job_no=place, job_count=count, stage="Detect"))
        if control.verdict == "interrupt":
            break
        pixels = _seen(module, payload, place)
        found = detected(module, pixels, detection, settings, field="controlnet_module")
        if control.cancelled:
            raise Cancelled("the task was cancelled while it ran")
        pictures.append(Picture(Image.fromarray(shown(module, found.map)), role="control_map"))
        if found.pose is not None:
            poses.append(found.pose)
    return Outcome(
        tuple(pictures),
        {"poses": poses},
        interrupted=control.verdict == "interrupt",
        seconds=time.monotonic() - began,
    )


def _seen(module: Module, payload: Mapping[str, Any], place: int) -> Pixels:
    """RGB; for inpainting with the mask as a fourth channel, white where it is to be painted."""
    field = "controlnet_input_images"
    pixels = np.asarray(picture(payload[field][place], f"{field}[{place}]"))
    if not module.is_inpaint:
        return pixels
    field = "controlnet_masks"
    mask = picture(payload[field][place], f"{field}[{place}]").getchannel("R")
    return np.dstack([pixels, np.asarray(mask.resize((pixels.shape[1], pixels.shape[0])))])


def shown(module: Module, found: Pixels) -> Pixels:
    """The extension shows a mask as half transparent, and what a network painted without it."""
    if not module.is_inpaint:
        return found
    colours = found[:, :, :3]
    return colours if module.weights else np.dstack([colours, 255 - found[:, :, 3] // 2])
