"""One txt2img or img2img job, from the request to its pictures.

The order of what happens is the webui's ``process_images_inner``, so that random numbers are
drawn, options read and words written to the infotext at the same places.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor

from sd_cloud.engines.base import Control, Report
from sd_cloud.engines.diffusion import sd3
from sd_cloud.engines.diffusion.controlnet import control as controlnet
from sd_cloud.engines.diffusion.controlnet.request import control_units, unit_remarks
from sd_cloud.engines.diffusion.controlnet.units import unit_infotext
from sd_cloud.engines.diffusion.eight_bits import computing
from sd_cloud.engines.diffusion.faces import restore_face
from sd_cloud.engines.diffusion.finishing import grid_of, placed, unit_batch
from sd_cloud.engines.diffusion.img2img import Prepared
from sd_cloud.engines.diffusion.infotext import info_object
from sd_cloud.engines.diffusion.job_models import JobModels
from sd_cloud.engines.diffusion.job_state import JobState
from sd_cloud.engines.diffusion.latents import from_unit
from sd_cloud.engines.diffusion.noise import GlobalSource
from sd_cloud.engines.diffusion.passes import Passes, enlarge
from sd_cloud.engines.diffusion.preparation import (
    UPSCALER_FIELD,
    numbers_drawn_early,
    plan_second_pass,
    prepare_controls,
    prepare_source,
)
from sd_cloud.engines.diffusion.scripts.run import Before
from sd_cloud.engines.diffusion.soft_inpainting import overlaid
from sd_cloud.engines.diffusion.workshop import Workshop
from sd_cloud.errors import Cancelled
from sd_cloud.job import Job, Outcome, Picture


class JobRun:
    """One job while it runs. ``before`` is what a script has to say about it."""

    def __init__(
        self, workshop: Workshop, job: Job, report: Report, control: Control, before: Before
    ) -> None:
        self.state = JobState(workshop, job, report, control)
        self.state.marks |= before.marks
        self.before = before

    @torch.no_grad()
    def run(self) -> Outcome:
        started = time.monotonic()
        state = self.state
        state.read_texts(self.before.texts)
        made: list[Picture] = []
        maps: tuple[Picture, ...] = ()
        with ExitStack() as while_running:
            models = JobModels(state, while_running)
            if isinstance(models.current, sd3.Sd3Model):
                state.request = sd3.fitted(state.request)
                state.comments += sd3.remarks(models.current, state.options)
            size = state.request.width, state.request.height
            state.hypertile.begin(state.texts.seeds[0], *size, state.marks)
            with self._computing(models, first=True):
                passes = self._passes(models)
            maps = passes.controls.maps if passes.controls else ()
            for number in range(state.request.n_iter):
                state.control.take_skip()
                if state.stopping():
                    break
                made += self._batch(number, models, passes)
        if state.control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        return self._outcome(made, maps, time.monotonic() - started)

    def _computing(self, models: JobModels, *, first: bool = False) -> AbstractContextManager[object]:
        """The precision that the model's storage calls for.

        What a request asks for comes into force with the first batch in the webui, after the source
        pictures are encoded; the host's own option is in force before.
        """
        if first and "fp8_storage" in self.state.options.own:
            return nullcontext()
        return computing(models.current.storage, self.state.workshop.device)

    def _passes(self, models: JobModels) -> Passes:
        """All that is prepared once."""
        state = self.state
        models.chosen_coder()  # what is missing is told before anything is made
        state.tiny.previewing(models.current)
        if state.soft is not None:
            state.marks |= state.soft.marks()
        units = control_units(state.job.payload)
        # sd-webui-controlnet begins before all else; where there is a refiner, with the first batch.
        units_first = state.request.refiner is None
        if units_first:
            state.marks |= unit_infotext(units)
        state.comments += unit_remarks(state.job.payload)
        if state.request.source:
            if self.before.last_seed is not None:
                state.generator = GlobalSource(self.before.last_seed)
            state.generator.pass_over(self.before.drawn)
        early = state.generator.copy()
        source = None
        if state.request.source:
            if units_first:
                state.generator.pass_over(numbers_drawn_early(state, models, units))
            source = prepare_source(state, models, self.before.colour_target)
        second = plan_second_pass(state)
        state.marks |= unit_infotext(units)
        if not units_first:
            early = state.generator
        controls = prepare_controls(state, models, units, source, second, early)
        return Passes(state, models, source, second, controls, self.before.inversion)

    def _batch(self, number: int, models: JobModels, passes: Passes) -> list[Picture]:
        state, size = self.state, self.state.request.batch_size
        state.batch = slice(number * size, (number + 1) * size)
        # Hires fix or a refiner may have left another at work.
        passes.begin_batch(anew=models.switch(state.checkpoint))
        with self._computing(models):
            latents, first_passes = passes.latents()
        decoded = models.chosen_coder().decode(latents)
        state.pass_no = min(state.pass_no + 1, state.passes)
        return [*first_passes, *self._finish(decoded, self._sources(passes, latents), passes.controls)]

    def _sources(self, passes: Passes, latents: Tensor) -> Sequence[Prepared | None]:
        """For each picture of the batch what it is put back into."""
        state, source = self.state, passes.source
        if source is None or state.soft is None:
            return [source] * latents.shape[0]
        by = enlarge(state, state.options.get("upscaler_for_img2img"), UPSCALER_FIELD)
        return overlaid(state.soft, source, latents, state.request, state.options, by)

    def _finish(
        self,
        decoded: list[Tensor],
        sources: Sequence[Prepared | None],
        controls: controlnet.Control | None,
    ) -> list[Picture]:
        state = self.state
        unit = unit_batch(decoded)
        if controls is not None:
            unit = controls.finish(unit)
        found: list[Picture] = []
        for i, one in enumerate(unit):
            image = from_unit(one)
            if state.request.restore_faces:
                image, sentence = restore_face(
                    image, state.options, state.workshop.settings, state.workshop.device
                )
                state.comments += [sentence] if sentence else []
            shown = placed(image, i, sources[i], state.request, state.options)
            found += [state.picture(each, i, role) for role, each in shown]
        return found

    def _outcome(self, made: list[Picture], maps: Sequence[Picture], seconds: float) -> Outcome:
        state = self.state
        infotexts = [one.infotext for one in made if one.role == "image"] or [state.infotext(0)]
        grid = self._grid([one for one in made if one.role != "first_pass"])
        first_image = 0
        if grid is not None and state.options.flag("return_grid"):
            infotexts.insert(0, grid.infotext)
            first_image = 1
        return Outcome(
            pictures=(*((grid,) if grid else ()), *made, *maps),
            info=info_object(
                state.request,
                state.options,
                state.names,
                state.texts,
                state.marks,
                infotexts,
                first_image=first_image,
                inpainting=state.inpainting,
                began=state.began,
                comments=list(dict.fromkeys(state.comments)),
            ),
            interrupted=state.control.verdict == "interrupt",
            seconds=seconds,
        )

    def _grid(self, made: Sequence[Picture]) -> Picture | None:
        state = self.state
        images = [one.image for one in made if one.image is not None]
        sheet = grid_of(images, state.request, state.options)
        if sheet is None:
            return None
        return Picture(sheet, "grid", state.texts.seeds[0], state.texts.subseeds[0], state.infotext(0))
