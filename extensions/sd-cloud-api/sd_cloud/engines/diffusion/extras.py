"""Jobs of kind ``extras``: pictures upscaled without diffusion, as the webui's two extra routes do."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from sd_cloud.engines.base import Control, Report
from sd_cloud.engines.diffusion.extras_faces import Restorer, restore_faces
from sd_cloud.engines.diffusion.pictures import decode_picture
from sd_cloud.engines.diffusion.upscale import find_upscaler, upscale
from sd_cloud.engines.diffusion.upscale_tiles import Tilings
from sd_cloud.errors import BadRequest, Cancelled
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.settings import Settings


@dataclass(frozen=True)
class ExtrasRequest:
    """The fields of ``extra-single-image`` and ``extra-batch-images``, checked.

    ``upscale_first`` is accepted and has no effect, as in webui 1.10.1.
    """

    images: tuple[tuple[str, str], ...]  # (field, base64)
    resize_mode: int = 0
    scale: float = 2.0
    width: int = 512
    height: int = 512
    crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    visibility_2: float = 0.0
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0
    codeformer_weight: float = 0.0

    @classmethod
    def of_payload(cls, payload: Mapping[str, Any]) -> ExtrasRequest:
        """Raises BadRequest for a field out of range."""
        mode = payload.get("resize_mode", 0)
        if mode not in (0, 1) or isinstance(mode, bool):
            raise BadRequest(f"{mode!r} is neither 0 (by a factor) nor 1 (to a size)", field="resize_mode")
        scale = _number(payload, "upscaling_resize", 2, 0.0, 64.0)
        if scale == 0:
            raise BadRequest("must be greater than 0", field="upscaling_resize")
        return cls(
            images=_images(payload),
            resize_mode=int(mode),
            scale=scale,
            width=int(_number(payload, "upscaling_resize_w", 512, 1, 32768)),
            height=int(_number(payload, "upscaling_resize_h", 512, 1, 32768)),
            crop=bool(payload.get("upscaling_crop", True)),
            upscaler_1=_name(payload, "upscaler_1"),
            upscaler_2=_name(payload, "upscaler_2"),
            visibility_2=_number(payload, "extras_upscaler_2_visibility", 0.0, 0.0, 1.0),
            gfpgan_visibility=_number(payload, "gfpgan_visibility", 0.0, 0.0, 1.0),
            codeformer_visibility=_number(payload, "codeformer_visibility", 0.0, 0.0, 1.0),
            codeformer_weight=_number(payload, "codeformer_weight", 0.0, 0.0, 1.0),
        )


def run_extras(
    job: Job, report: Report, control: Control, *, settings: Settings, device: torch.device | str = "cpu"
) -> Outcome:
    """Upscale the job's pictures; ``info`` has the webui's ``html_info``.

    Raises BadRequest, CheckpointBroken, NotImplementedHere, and Cancelled once it is asked for.
    """
    began = time.monotonic()
    request = ExtrasRequest.of_payload(job.payload)
    for name, which in (("upscaler_1", request.upscaler_1), ("upscaler_2", request.upscaler_2)):
        find_upscaler(which, settings, field=name)
    images = [decode_picture(text, name) for name, text in request.images]

    run = _Run(request, settings, Tilings.of_options(job.option), device, control)
    pictures: list[Picture] = []
    for number, image in enumerate(images):
        report(Progress(step=0, steps=1, job_no=number, job_count=len(images), stage="Upscale"))
        if control.verdict == "interrupt":
            break
        about = {key: value for key, value in image.info.items() if isinstance(value, str)}
        larger, facts = run.process(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"))
        if control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        if control.take_skip():
            continue
        larger.info = {**about, "postprocessing": _described(facts)}
        pictures.append(Picture(larger, infotext=about.get("parameters", "")))
    last = pictures[-1].image.info["postprocessing"] if pictures and pictures[-1].image else ""
    return Outcome(
        pictures=tuple(pictures),
        info={"html_info": "<p>" + "<br>\n".join(html.escape(line) for line in last.split("\n")) + "</p>"},
        interrupted=control.verdict == "interrupt",
        seconds=time.monotonic() - began,
    )


@dataclass
class _Run:
    request: ExtrasRequest
    settings: Settings
    tilings: Tilings
    device: torch.device | str
    control: Control
    stop: Callable[[], bool] = field(init=False)

    def __post_init__(self) -> None:
        self.stop = lambda: self.control.verdict != "go"

    def process(self, image: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
        """The picture made larger, its faces restored, and what the webui says about it."""
        facts: dict[str, Any] = {}
        image = self._larger(image, facts)
        request = self.request
        if request.gfpgan_visibility > 0:
            image = self._restored(image, "GFPGAN", request.gfpgan_visibility)
            facts["GFPGAN visibility"] = round(request.gfpgan_visibility, 3)
        if request.codeformer_visibility > 0:
            image = self._restored(image, "CodeFormer", request.codeformer_visibility)
            facts["CodeFormer visibility"] = round(request.codeformer_visibility, 3)
            facts["CodeFormer weight"] = round(request.codeformer_weight, 3)
        return image, facts

    def _restored(self, image: Image.Image, restorer: Restorer, visibility: float) -> Image.Image:
        restored = restore_faces(
            image,
            restorer,
            settings=self.settings,
            device=self.device,
            weight=self.request.codeformer_weight,
            field=f"{restorer.lower()}_visibility",
        )
        return restored if visibility >= 1 else Image.blend(image.convert("RGB"), restored, visibility)

    def _larger(self, image: Image.Image, facts: dict[str, Any]) -> Image.Image:
        request = self.request
        if request.upscaler_1 == "None":
            return image.copy()
        larger = self._upscaled(image, request.upscaler_1, "upscaler_1", facts)
        facts["Postprocess upscaler"] = request.upscaler_1
        if request.upscaler_2 != "None" and request.visibility_2 > 0:
            second = self._upscaled(image, request.upscaler_2, "upscaler_2", facts)
            larger = Image.blend(larger, second.convert(larger.mode), request.visibility_2)
            facts["Postprocess upscaler 2"] = request.upscaler_2
        return larger

    def _upscaled(self, image: Image.Image, name: str, of_field: str, facts: dict[str, Any]) -> Image.Image:
        request = self.request
        scale = request.scale
        if request.resize_mode == 1:
            scale = max(request.width / image.width, request.height / image.height)
            facts["Postprocess upscale to"] = f"{request.width}x{request.height}"
        else:
            facts["Postprocess upscale by"] = scale
        larger = upscale(
            image,
            name,
            scale,
            settings=self.settings,
            tilings=self.tilings,
            device=self.device,
            stop=self.stop,
            field=of_field,
        )
        if request.resize_mode == 1 and request.crop:
            cropped = Image.new("RGB", (request.width, request.height))
            corner = (request.width // 2 - larger.width // 2, request.height // 2 - larger.height // 2)
            cropped.paste(larger, corner)
            larger = cropped
            facts["Postprocess crop to"] = f"{larger.width}x{larger.height}"
        return larger


def _described(facts: Mapping[str, Any]) -> str:
    """``key: value`` pairs as in an infotext: values with a comma, colon or line break are quoted."""

    def quoted(value: Any) -> str:
        text = str(value)
        return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text

    return ", ".join(key if key == value else f"{key}: {quoted(value)}" for key, value in facts.items())


def _images(payload: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if "imageList" in payload:
        entries = payload["imageList"]
        if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
            raise BadRequest("must be a list of {data, name}", field="imageList")
        return tuple(
            (f"imageList[{place}].data", str(one.get("data", ""))) for place, one in enumerate(entries)
        )
    return (("image", str(payload.get("image") or "")),)


def _number(payload: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = payload.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadRequest(f"{value!r} is not a number from {low:g} to {high:g}", field=name)
    return value  # as it came: the infotext tells the default 2 from 2.0


def _name(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name) or "None"
    if not isinstance(value, str):
        raise BadRequest("must be the name of an upscaler", field=name)
    return value
