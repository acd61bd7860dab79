"""What every part of one job reads, and what they write for its infotext."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from sd_cloud.engines.base import Checkpoint, Control, ModelFile, Report
from sd_cloud.engines.diffusion import hires
from sd_cloud.engines.diffusion.eight_bits import wanted_storage
from sd_cloud.engines.diffusion.hypertile import HyperTile
from sd_cloud.engines.diffusion.infotext import infotext
from sd_cloud.engines.diffusion.models_wanted import wanted_checkpoint, wanted_vae
from sd_cloud.engines.diffusion.networks import Networks
from sd_cloud.engines.diffusion.noise import (
    BatchNoise,
    GlobalSource,
    RandomKind,
    SeedSize,
    TorchSource,
    Variation,
)
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompts import OwnTexts, texts_of
from sd_cloud.engines.diffusion.request import Request, parse_request
from sd_cloud.engines.diffusion.soft_inpainting import soft_inpainting_of, unrounded
from sd_cloud.engines.diffusion.taesd import TinyChoice
from sd_cloud.engines.diffusion.workshop import Workshop
from sd_cloud.errors import Cancelled
from sd_cloud.job import Job, Picture, Role


class JobState:
    """``marks`` become the infotext's ``extra_generation_params``, ``comments`` go into ``info``.

    ``batch`` is where the pictures of the batch at work stand among all pictures, ``generator`` what
    is drawn from beside their noise, ``merging_ratio`` how many tokens the model at work merges,
    ``in_8_bits`` whether its weights are held so. Raises BadRequest for a request that cannot be read,
    and the errors of names that are not there.
    """

    def __init__(self, workshop: Workshop, job: Job, report: Report, control: Control) -> None:
        self.workshop = workshop
        self.job = job
        self.report = report
        self.control = control
        self.options = Options(job)
        self.request: Request = parse_request(job, self.options)
        if self.request.hires and self.options.flag("use_old_hires_fix_width_height"):
            self.request = hires.old_first_size(self.request)
        self.soft = soft_inpainting_of(job.payload) if self.request.source else None
        if self.soft is not None:
            self.request = unrounded(self.request)
        self.catalogue = workshop.catalogue()
        self.checkpoint = wanted_checkpoint(job, self.options, self.catalogue)
        self.marks: dict[str, Any] = {}
        self.comments: list[str] = []
        self.networks = Networks(workshop, self.catalogue, self.options, self.marks, self.comments)
        self.hypertile = HyperTile(self.options)
        self.tiny = TinyChoice(workshop.tiny_vaes, self.options, self.comments)
        self.random = RandomKind(self.options.text("randn_source"), workshop.device)
        self.began = datetime.datetime.now()
        self.inpainting = False
        self.storage = wanted_storage(self.options)
        self.in_8_bits = False
        self.device_generator: TorchSource | None = None
        self.image_cfg_scale: float | None = None
        self.batch = slice(0, 0)
        self.pass_no = 0
        self.merging_ratio = self.options.merging_ratio(source=self.request.source is not None, second=False)

    def read_texts(self, own: OwnTexts) -> None:
        """The names of what is used, and the prompts of all pictures; ``own`` is what a script gives them."""
        vae = self.vae_for(self.checkpoint)
        self.names = self.workshop.names(self.checkpoint, vae)
        self.texts = texts_of(
            self.request, self.options, self.workshop.settings.styles_patterns, self.comments, own
        )
        self.passes = self.request.n_iter * (2 if self.request.hires else 1)
        self.generator = GlobalSource(self.texts.seeds[0])

    def vae_for(self, checkpoint: Checkpoint) -> ModelFile | None:
        only = self.workshop.settings.vae_path
        return wanted_vae(self.job, self.options, self.catalogue, checkpoint, only)

    @property
    def seeds(self) -> Sequence[int]:
        """Those of the batch at work."""
        return self.texts.seeds[self.batch]

    def noise(self, shape: Sequence[int]) -> BatchNoise:
        """The noise of the batch at work, for latents [C, H, W]; the generator is seeded anew."""
        seeds = self.request.seeds
        self.generator = GlobalSource(self.seeds[-1])
        self.device_generator = None
        return BatchNoise(
            shape,
            self.seeds,
            self.random,
            variation=Variation(self.texts.subseeds[self.batch], seeds.subseed_strength),
            seed_size=SeedSize(seeds.resize_width, seeds.resize_height),
            seed_delta=self.options.whole("eta_noise_seed_delta"),
        )

    def draw_unasked(self, shape: Sequence[int]) -> Tensor:
        """What an extension that names no generator draws on the device in the webui."""
        if self.workshop.device.type == "cpu":
            return self.generator.randn(shape)
        if self.device_generator is None:
            self.device_generator = TorchSource(self.seeds[-1], self.workshop.device)
        return self.device_generator.randn(shape)

    def stopping(self) -> bool:
        """Whether a person asked to stop; raises Cancelled when nothing is to be kept."""
        if self.control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        return self.control.verdict == "interrupt"

    def picture(self, image: Image.Image, i: int, role: Role) -> Picture:
        """Picture ``i`` of the batch at work, with what is known of it now."""
        index = self.batch.start + i
        return Picture(image, role, self.texts.seeds[index], self.texts.subseeds[index], self.infotext(index))

    def infotext(self, index: int) -> str:
        """Of one of all pictures."""
        return infotext(
            self.request,
            self.options,
            self.names,
            self.texts,
            self.marks,
            index,
            user=self.job.owner,
            inpainting=self.inpainting,
            image_cfg_scale=self.image_cfg_scale,
            storage=self.storage if self.in_8_bits else None,
        )
