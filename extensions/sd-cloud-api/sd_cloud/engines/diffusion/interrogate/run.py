"""Jobs of kind ``interrogate``: words for a picture, as ``POST /sdapi/v1/interrogate`` asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image

from sd_cloud.engines.base import Control, Report
from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.enlarging import resizer
from sd_cloud.engines.diffusion.interrogate.captions import Captioner, load_captioner
from sd_cloud.engines.diffusion.interrogate.deepbooru import Tagger, described, load_tagger
from sd_cloud.engines.diffusion.interrogate.files import weights_of
from sd_cloud.engines.diffusion.interrogate.ranking import Ranker, load_ranker, read_lists
from sd_cloud.engines.diffusion.model import Placement
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import Cancelled
from sd_cloud.job import Job, Outcome, Progress
from sd_cloud.settings import Settings

LISTS = "interrogate"
"""The folder of lists, below the data dir."""


class Moving(Protocol):
    def to(self, device: Any) -> Any: ...


Loaded = TypeVar("Loaded", Captioner, Ranker, Tagger)


class InterrogationShelf:
    """The networks that were used, in the machine's memory while they are not at work.

    With ``interrogate_keep_models_in_memory`` they stay on the device.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._kept: dict[Hashable, Any] = {}

    def get(self, path: Path, load: Callable[[Path, torch.dtype], Loaded]) -> Loaded:
        """Raises CheckpointBroken."""
        key = (path, path.stat().st_mtime_ns)
        if key not in self._kept:
            self._kept[key] = load(path, self.placement.dtype)
        found: Loaded = self._kept[key]
        _networks(found).to(self.placement.device)
        return found

    def put_back(self) -> None:
        for one in self._kept.values():
            _networks(one).to("cpu")

    def clear(self) -> None:
        self._kept.clear()


def _networks(loaded: Captioner | Ranker | Tagger) -> Moving:
    if isinstance(loaded, Captioner):
        moving: Moving = loaded.model
        return moving
    return loaded.network if isinstance(loaded, Tagger) else loaded


def run_interrogation(
    job: Job, report: Report, control: Control, *, settings: Settings, shelf: InterrogationShelf
) -> Outcome:
    """No pictures; ``info`` has the ``caption``.

    Raises NotImplementedHere where weights are missing, CheckpointBroken, BadRequest, and Cancelled.
    """
    began = time.monotonic()
    image = pictures.decode_picture(job.payload["image"], "image").convert("RGB")
    one = _Interrogation(job, report, control, settings, shelf)
    caption = one.tags(image) if job.payload["model"] == "deepdanbooru" else one.caption(image)
    if not one.options.flag("interrogate_keep_models_in_memory"):
        shelf.put_back()
    return Outcome((), {"caption": caption}, seconds=time.monotonic() - began)


class _Interrogation:
    def __init__(
        self, job: Job, report: Report, control: Control, settings: Settings, shelf: InterrogationShelf
    ) -> None:
        self.job = job
        self.options = Options(job)
        self._report = report
        self._control = control
        self._settings = settings
        self._shelf = shelf
        self._files = weights_of(job.payload["model"], settings)

    def tags(self, image: Image.Image) -> str:
        assert self._files.deepbooru is not None
        self._tell(0, 1)
        tagger = self._shelf.get(self._files.deepbooru, load_tagger)
        by = resizer(
            self.options.get("upscaler_for_img2img"),
            "upscaler_for_img2img",
            settings=self._settings,
            option=self.job.option,
            device=self._shelf.placement.device,
            stop=lambda: self._control.cancelled,
            drawn=lambda count: None,
        )
        return described(tagger.probabilities(image, by), tagger.tags, self.options)

    def caption(self, image: Image.Image) -> str:
        """BLIP's sentence, then the best lines of each list."""
        assert self._files.blip is not None
        assert self._files.clip is not None
        lists = read_lists(self._settings.data_dir / LISTS, self.options)
        self._tell(0, len(lists) + 1)
        caption = self._shelf.get(self._files.blip, load_captioner).caption(image, self.options)
        if not lists:
            return caption
        ranker = self._shelf.get(self._files.clip, load_ranker)
        seen = ranker.look(image)
        for place, lines in enumerate(lists):
            self._tell(place + 1, len(lists) + 1)
            for line, share in ranker.best(seen, lines):
                ranked = self.options.flag("interrogate_return_ranks")
                caption += f", ({line}:{share:.3f})" if ranked else f", {line}"
        return caption

    def _tell(self, step: int, steps: int) -> None:
        """How far it is. Raises Cancelled once a person asked for it."""
        if self._control.cancelled:
            raise Cancelled("the task was cancelled while it ran")
        self._report(Progress(step=step, steps=steps, stage="Interrogate"))
