"""One txt2img or img2img job, from the request to its pictures.

The order of what happens is the webui's ``process_images_inner``, so that random numbers are
drawn, options read and words written to the infotext at the same places.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd_cloud.engines.base import Checkpoint, Control, Report
from sd_cloud.engines.diffusion import controlnet, hires, img2img, pictures, sd3
from sd_cloud.engines.diffusion.conditioning import Conditioner, Encoded, Size
from sd_cloud.engines.diffusion.controlnet_maps import Canvas, map_seed
from sd_cloud.engines.diffusion.controlnet_units import control_units, unit_infotext
from sd_cloud.engines.diffusion.enlarging import resizer
from sd_cloud.engines.diffusion.faces import restore_face
from sd_cloud.engines.diffusion.finishing import grid_of, placed, unit_batch
from sd_cloud.engines.diffusion.guidance import Guided, Mask, Switch
from sd_cloud.engines.diffusion.infotext import info_object, infotext
from sd_cloud.engines.diffusion.latents import Coder, from_unit, to_pictures, to_unit
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.models_wanted import find_checkpoint, wanted_checkpoint, wanted_vae
from sd_cloud.engines.diffusion.networks import Networks
from sd_cloud.engines.diffusion.noise import BatchNoise, RandomKind, SeedSize, Variation, encoder_source
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.previews import preview
from sd_cloud.engines.diffusion.prompt_grammar import NetworkCall, Timeline, split_networks
from sd_cloud.engines.diffusion.prompts import texts_of
from sd_cloud.engines.diffusion.refiner import is_due
from sd_cloud.engines.diffusion.request import Request, parse_request
from sd_cloud.engines.diffusion.sampling import Plan, Sampling, alphas_of, total_calls
from sd_cloud.engines.diffusion.tiling import circular
from sd_cloud.engines.diffusion.upscale import find_upscaler
from sd_cloud.engines.diffusion.workshop import Workshop
from sd_cloud.errors import Cancelled
from sd_cloud.job import Job, Outcome, Picture, Progress

LATENT_PIXELS = 8


class JobRun:
    """The state of one job while it runs."""

    def __init__(self, workshop: Workshop, job: Job, report: Report, control: Control) -> None:
        self.workshop = workshop
        self.job = job
        self.report = report
        self.control = control
        self.options = Options(job)
        self.request: Request = parse_request(job, self.options)
        if self.request.hires and self.options.flag("use_old_hires_fix_width_height"):
            self.request = hires.old_first_size(self.request)
        self.catalogue = workshop.catalogue()
        self.checkpoint = wanted_checkpoint(job, self.options, self.catalogue)
        self.marks: dict[str, Any] = {}
        self.comments: list[str] = []
        self.networks = Networks(workshop, self.catalogue, self.options, self.marks, self.comments)
        self.random = RandomKind(self.options.text("randn_source"), workshop.device)
        self.began = datetime.datetime.now()
        self.pass_no = 0
        self.encoding_seed: int | None = None
        self.inpainting = False

    # --- the whole job ----------------------------------------------------------------------------

    @torch.no_grad()
    def run(self) -> Outcome:
        started = time.monotonic()
        request = self.request
        self.vae = wanted_vae(self.job, self.options, self.catalogue, self.checkpoint)
        self.names = self.workshop.names(self.checkpoint, self.vae)
        self.texts = texts_of(request, self.options, self.workshop.settings.data_dir, self.comments)
        self.passes = request.n_iter * (2 if request.hires else 1)
        made: list[Picture] = []
        with ExitStack() as self.while_running:
            self._tiled: set[int] = set()
            model = self._load(self.checkpoint)
            if isinstance(model, sd3.Sd3Model):
                self.request = sd3.fitted(self.request)
                self.comments += model.notes
            self.units = control_units(self.job.payload)
            self.marks |= unit_infotext(self.units)
            self.prepared = self._prepare_source(model) if request.source else None
            self.second = self._plan_hires()
            self.controls = self._prepare_controls(model)
            for number in range(request.n_iter):
                self.control.take_skip()
                if self._stopping():
                    break
                made += self._batch(number)
        if self.control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        return self._outcome(made, time.monotonic() - started)

    def _stopping(self) -> bool:
        if self.control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        return self.control.verdict == "interrupt"

    def _outcome(self, made: list[Picture], seconds: float) -> Outcome:
        infotexts = [one.infotext for one in made if one.role == "image"] or [self._infotext(0)]
        grid = self._grid([one for one in made if one.role != "first_pass"])
        first_image = 0
        if grid is not None and self.options.flag("return_grid"):
            infotexts.insert(0, grid.infotext)
            first_image = 1
        maps = self.controls.maps if self.controls else ()
        return Outcome(
            pictures=(*((grid,) if grid else ()), *made, *maps),
            info=info_object(
                self.request,
                self.options,
                self.names,
                self.texts,
                self.marks,
                infotexts,
                first_image=first_image,
                inpainting=self.inpainting,
                began=self.began,
                comments=list(dict.fromkeys(self.comments)),
            ),
            interrupted=self.control.verdict == "interrupt",
            seconds=seconds,
        )

    def _grid(self, made: Sequence[Picture]) -> Picture | None:
        images = [one.image for one in made if one.image is not None]
        sheet = grid_of(images, self.request, self.options)
        if sheet is None:
            return None
        return Picture(sheet, "grid", self.texts.seeds[0], self.texts.subseeds[0], self._infotext(0))

    # --- what is prepared once --------------------------------------------------------------------

    def _load(self, checkpoint: Checkpoint) -> Model:
        """A checkpoint in memory, its convolutions circular when the job tiles."""
        model = self.workshop.model(checkpoint)
        if id(model) not in self._tiled:
            self._tiled.add(id(model))
            self.while_running.enter_context(circular((model.unet, model.vae), self.request.tiling))
        return model

    def _coder(self, model: Model, checkpoint: Checkpoint) -> Coder:
        vae = wanted_vae(self.job, self.options, self.catalogue, checkpoint)
        coder = self.workshop.coder(model, vae)
        if id(coder.vae) not in self._tiled:
            self._tiled.add(id(coder.vae))
            self.while_running.enter_context(circular((coder.vae,), self.request.tiling))
        return coder

    def _enlarge(self, name: str | None, field: str) -> pictures.Resize:
        return resizer(
            name,
            field,
            settings=self.workshop.settings,
            option=self.job.option,
            device=self.workshop.device,
            stop=lambda: self.control.verdict != "go",
        )

    def _prepare_source(self, model: Model) -> img2img.Prepared:
        preparation = img2img.Preparation(
            request=self.request,
            options=self.options,
            coder=self._coder(model, self.checkpoint),
            enlarge=self._enlarge(
                self.options.get("upscaler_for_img2img"), "override_settings.upscaler_for_img2img"
            ),
            source=encoder_source(self.texts.seeds[0] if self.encoding_seed is None else self.encoding_seed),
            random=self.random,
            seeds=list(self.texts.seeds),
            marks=self.marks,
            comments=self.comments,
        )
        prepared = preparation.run()
        if prepared.batch_size != self.request.batch_size:
            self.request = replace(self.request, batch_size=prepared.batch_size)
        self.source_condition = None
        if model.layout.inpainting:
            self.inpainting = True
            source = self.request.source
            assert source is not None
            self.source_condition = img2img.inpainting_condition(
                prepared.pixels,
                prepared.latent,
                prepared.mask,
                preparation.coder,
                preparation.source,
                self.options.number("inpainting_mask_weight"),
                rounded=source.mask_round,
            )
        return prepared

    def _plan_hires(self) -> hires.Target | None:
        """Where the second pass goes to; its words in the infotext come in the webui's order."""
        request, own = self.request, self.request.hires
        if own is None:
            return None
        marks = self.marks
        marks["Denoising strength"] = request.denoising_strength
        self.hires_checkpoint = None
        if own.checkpoint is not None:
            self.hires_checkpoint = find_checkpoint(own.checkpoint, self.catalogue, "hr_checkpoint_name")
            marks["Hires checkpoint"] = self.workshop.short_title(self.hires_checkpoint)
        if own.sampler is not None and own.sampler.name != request.sampler.name:
            marks["Hires sampler"] = own.sampler.name
        marks |= {"Hires prompt": None, "Hires negative prompt": None, "Hires schedule type": None}
        if not hires.is_latent(own):
            find_upscaler(own.upscaler or "", self.workshop.settings, field="hr_upscaler")
        target = hires.target_size(request, own, marks)
        if own.steps:
            marks["Hires steps"] = own.steps
        if own.upscaler is not None:
            marks["Hires upscaler"] = own.upscaler
        return target

    def _prepare_controls(self, model: Model) -> controlnet.Control | None:
        units = self.units
        if not units:
            return None
        coder = self._coder(model, self.checkpoint)
        source = self.request.source
        canvas = Canvas(
            size=(self.request.width, self.request.height),
            hires_size=(self.second.width, self.second.height) if self.second else None,
            seed=map_seed(self.job.payload, self.texts.seeds[0]),
            init_image=pictures.decode_picture(source.images[0], "init_images[0]") if source else None,
            init_mode=source.resize_mode if source else 0,
            mask=self.prepared.whole_mask if self.prepared else None,
            crop=self.prepared.crop if self.prepared else None,
        )
        around = controlnet.Surroundings(
            settings=self.workshop.settings,
            models=self.catalogue.controlnets,
            unet=model.unet,
            shelf=self.workshop.controlnets,
            encode=lambda pixels: coder.encode(
                pixels.to(self.workshop.device), encoder_source(self.texts.seeds[0])
            ),
            option=self.job.option,
        )
        return controlnet.prepare(units, canvas, around)

    # --- one batch --------------------------------------------------------------------------------

    def _batch(self, number: int) -> list[Picture]:
        size = self.request.batch_size
        self.batch = slice(number * size, (number + 1) * size)
        self.seeds = self.texts.seeds[self.batch]
        model = self._load(self.checkpoint)
        self.current, self.current_checkpoint = model, self.checkpoint
        decoded, first_passes = self._decoded(model)
        self.pass_no = min(self.pass_no + 1, self.passes)
        finished = self._finish(decoded)
        return [*first_passes, *finished]

    def _noise(self, shape: Sequence[int]) -> BatchNoise:
        seeds = self.request.seeds
        return BatchNoise(
            shape,
            self.seeds,
            self.random,
            variation=Variation(self.texts.subseeds[self.batch], seeds.subseed_strength),
            seed_size=SeedSize(seeds.resize_width, seeds.resize_height),
            seed_delta=self.options.whole("eta_noise_seed_delta"),
        )

    def _decoded(self, model: Model) -> tuple[list[Tensor], list[Picture]]:
        """The batch as [3, H, W] in -1..1, and first passes that are to be saved."""
        request = self.request
        shape = (model.latent_channels, request.height // LATENT_PIXELS, request.width // LATENT_PIXELS)
        noise = self._noise(shape)
        prompts = self.texts.prompts[self.batch]
        encoded = self._encode(model, prompts, self.texts.negative_prompts[self.batch], second=False)
        if self.prepared is not None:
            latent = self._from_source(model, encoded, noise)
            return self._coder(self.current, self.current_checkpoint).decode(latent), []
        if request.firstpass_image is not None and request.hires is not None:
            latent, images = self._given_first_pass(model)
        else:
            latent = self._from_noise(model, encoded, noise)
            images = None
        if request.hires is None or self.control.verdict in ("interrupt", "cancel"):
            return self._coder(self.current, self.current_checkpoint).decode(latent), []
        return self._second_pass(latent, images)

    def _encode(
        self, model: Model, prompts: Sequence[str], negatives: Sequence[str], *, second: bool
    ) -> Encoded:
        """Merge what the prompts call for, then encode them for this pass."""
        request = self.request
        plain = []
        calls: tuple[NetworkCall, ...] = ()
        for place, prompt in enumerate(prompts):
            text, found = split_networks(prompt)
            plain.append(text)
            calls = found if place == 0 else calls
        if request.extra_networks:
            self.networks.put_on(model, calls, second=second)
        steps = total_calls(request.sampler, request.steps)
        hires_steps = None
        size = Size(request.width, request.height)
        if second and request.hires is not None and self.second is not None:
            sampler = request.hires.sampler or request.sampler
            hires_steps = total_calls(sampler, request.hires.steps or request.steps)
            size = Size(self.second.width, self.second.height)
        timeline = Timeline(steps, hires_steps, self.options.flag("use_old_scheduling"))
        conditioner = self._conditioner(model)
        encoded = conditioner.encode(plain, negatives, size, timeline)
        self.marks |= conditioner.marks
        if timeline.old and conditioner.differs_from_new(plain, negatives, timeline):
            self.marks["Old prompt editing timelines"] = True
        return encoded

    def _conditioner(self, model: Model) -> Conditioner:
        shop = self.workshop
        return Conditioner(model, self.options, shop.embeddings, shop.texts, shop.loras.state_of(model))

    # --- passes -----------------------------------------------------------------------------------

    def _sampling(
        self, model: Model, encoded: Encoded, plan: Plan, noise: BatchNoise, condition: Tensor | None
    ) -> Sampling:
        guided = Guided(
            model=model,
            encoded=encoded,
            options=self.options,
            control=self.control,
            alphas_cumprod=(
                sd3.alphas_for(model, self.job)
                if model.prediction == "flow"
                else alphas_of(model, self.options, self.marks)
            ),
            cfg_scale=self.request.cfg_scale,
            total_calls=total_calls(plan.sampler, plan.steps),
            mode=plan.mode,
            s_min_uncond=self.request.knobs.s_min_uncond,
            image_cond=condition,
            controls=self.controls,
            hires=plan.hires,
            refine=self._refine(plan) if self.request.refiner else None,
            empty_prompt=lambda: self._conditioner(guided.model).empty(),
            marks=self.marks,
        )

        def on_step(step: int, steps: int) -> None:
            guided.progress = step / steps
            self._report_step(guided, step, steps)

        return Sampling(plan, guided, self.options, noise, self.random, self.seeds, self.marks, on_step)

    def _report_step(self, guided: Guided, step: int, steps: int) -> None:
        image = None
        shown = guided.shown_latent
        if shown is not None and self.options.flag("live_previews_enable"):
            shown = shown if self.options.flag("show_progress_grid") else shown[:1]
            image = preview(shown, sdxl=guided.model.is_sdxl)
        self.report(
            Progress(
                step=min(step + 1, steps),
                steps=steps,
                job_no=self.pass_no,
                job_count=self.passes,
                stage=self.job.kind,
                preview=image,
            )
        )

    def _from_noise(self, model: Model, encoded: Encoded, noise: BatchNoise) -> Tensor:
        request = self.request
        plan = Plan(request.sampler, request.scheduler, request.steps, request.knobs)
        start = noise.draw()
        condition = None
        if model.layout.inpainting:
            self.inpainting = True
            coder = self._coder(model, self.checkpoint)
            source = encoder_source(self.seeds[-1])
            condition = img2img.blank_condition(start, request.width, request.height, coder, source)
        return self._sampling(model, encoded, plan, noise, condition).from_noise(start)

    def _from_source(self, model: Model, encoded: Encoded, noise: BatchNoise) -> Tensor:
        request, prepared = self.request, self.prepared
        assert prepared is not None and request.source is not None
        plan = Plan(
            request.sampler, request.scheduler, request.steps, request.knobs, request.denoising_strength
        )
        start = noise.draw()
        if request.source.noise_multiplier != 1.0:
            self.marks["Noise multiplier"] = request.source.noise_multiplier
            start = start * request.source.noise_multiplier
        sampling = self._sampling(model, encoded, plan, noise, self.source_condition)
        mask = None
        if prepared.keep is not None and prepared.change is not None:
            mask = Mask(prepared.keep, prepared.change, prepared.latent)
            sampling.guided.mask = mask
        latent = sampling.from_latent(prepared.latent, start)
        return latent if mask is None else mask.blend(latent)

    def _given_first_pass(self, model: Model) -> tuple[Tensor, list[Image.Image] | None]:
        """A first pass that the request brings along, as a latent or, for other upscalers, as it is."""
        assert self.request.firstpass_image is not None and self.request.hires is not None
        image = pictures.decode_picture(self.request.firstpass_image, "firstpass_image").convert("RGB")
        pixels = to_unit([image]).to(self.workshop.device) * 2 - 1
        coder = self._coder(model, self.checkpoint)
        latent = coder.encode(pixels, encoder_source(self.seeds[-1]))
        return latent, None if hires.is_latent(self.request.hires) else [image]

    def _second_pass(
        self, latent: Tensor, images: list[Image.Image] | None
    ) -> tuple[list[Tensor], list[Picture]]:
        request, own, target = self.request, self.request.hires, self.second
        assert own is not None and target is not None
        first_passes: list[Picture] = []
        saves = hires.saves_first_pass(request, self.options)
        coder = self._coder(self.current, self.current_checkpoint)
        if images is None and (saves or not hires.is_latent(own)):
            images = to_pictures(coder.decode(latent))
        if saves and images is not None:
            first_passes = [self._picture(image, i, "first_pass") for i, image in enumerate(images)]
        checkpoint = self.hires_checkpoint or self.checkpoint
        model = self._load(checkpoint)
        self.current, self.current_checkpoint = model, checkpoint
        coder = self._coder(model, checkpoint)
        source = encoder_source(self.seeds[-1])
        pixels = None
        if hires.is_latent(own):
            latent = hires.enlarge_latent(latent, own, target)
        else:
            assert images is not None
            by = self._enlarge(own.upscaler, "hr_upscaler")
            pixels, latent = hires.enlarge_pictures(images, target, by, coder, source, latent)
        self.pass_no += 1
        latent = target.crop(latent)
        condition = self._hires_condition(model, coder, latent, pixels)
        noise = self._noise(latent.shape[1:])
        start = noise.draw()
        encoded = self._encode(
            model,
            self.texts.hires_prompts[self.batch],
            self.texts.hires_negative_prompts[self.batch],
            second=True,
        )
        plan = Plan(
            own.sampler or request.sampler,
            own.scheduler or request.scheduler,
            own.steps or request.steps,
            request.knobs,
            request.denoising_strength,
            steps_are_taken=True,
            hires=True,
        )
        latent = self._sampling(model, encoded, plan, noise, condition).from_latent(latent, start)
        return self._coder(self.current, self.current_checkpoint).decode(latent), first_passes

    def _hires_condition(
        self, model: Model, coder: Coder, latent: Tensor, pixels: Tensor | None
    ) -> Tensor | None:
        if not model.layout.inpainting:
            return None
        self.inpainting = True
        source = encoder_source(self.seeds[-1])
        weight = self.options.number("inpainting_mask_weight")
        height, width = (side * LATENT_PIXELS for side in latent.shape[2:])
        if pixels is None and weight >= 1.0:
            return img2img.blank_condition(latent, width, height, coder, source)
        if pixels is None or pixels.shape[-2:] != (height, width):
            pixels = torch.stack(coder.decode(latent)).to(latent.device)
        return img2img.inpainting_condition(pixels, latent, None, coder, source, weight, rounded=True)

    # --- the refiner ------------------------------------------------------------------------------

    def _refine(self, plan: Plan) -> Any:
        refiner = self.request.refiner
        assert refiner is not None
        checkpoint = find_checkpoint(refiner.checkpoint, self.catalogue, "refiner_checkpoint")

        def refine(guided: Guided, level: Tensor) -> Switch | None:
            if self.current_checkpoint.filename == checkpoint.filename:
                return None
            if not is_due(self.request, self.options, guided, level, plan, self.marks):
                return None
            self.marks["Refiner"] = self.workshop.short_title(checkpoint)
            self.marks["Refiner switch at"] = refiner.switch_at
            model = self._load(checkpoint)
            self.current, self.current_checkpoint = model, checkpoint
            texts = self.texts
            prompts, negatives = texts.prompts, texts.negative_prompts
            if plan.hires:
                prompts, negatives = texts.hires_prompts, texts.hires_negative_prompts
            encoded = self._encode(model, prompts[self.batch], negatives[self.batch], second=plan.hires)
            return Switch(model, encoded, alphas_of(model, self.options, self.marks))

        return refine

    # --- from tensors to pictures -----------------------------------------------------------------

    def _finish(self, decoded: list[Tensor]) -> list[Picture]:
        unit = unit_batch(decoded)
        if self.controls is not None:
            unit = self.controls.finish(unit)
        found: list[Picture] = []
        for i, one in enumerate(unit):
            image = from_unit(one)
            if self.request.restore_faces:
                image, sentence = restore_face(
                    image, self.options, self.workshop.settings, self.workshop.device
                )
                self.comments += [sentence] if sentence else []
            shown = placed(image, i, self.prepared, self.request, self.options)
            found += [self._picture(each, i, role) for role, each in shown]
        return found

    def _picture(self, image: Image.Image, i: int, role: Any) -> Picture:
        index = (self.batch.start or 0) + i
        return Picture(
            image, role, self.texts.seeds[index], self.texts.subseeds[index], self._infotext(index)
        )

    def _infotext(self, index: int) -> str:
        return infotext(
            self.request,
            self.options,
            self.names,
            self.texts,
            self.marks,
            index,
            user=self.job.owner,
            inpainting=self.inpainting,
        )
