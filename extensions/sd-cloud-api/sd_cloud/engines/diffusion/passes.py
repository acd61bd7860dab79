"""The passes of a batch: from noise or a source picture, and the larger second one of hires fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from sd_cloud.engines.diffusion import hires, img2img, pictures, sd3
from sd_cloud.engines.diffusion.conditioning import Encoded, Size
from sd_cloud.engines.diffusion.controlnet import control as controlnet
from sd_cloud.engines.diffusion.enlarging import resizer
from sd_cloud.engines.diffusion.guidance import Guided, Mask, Refine, Switch
from sd_cloud.engines.diffusion.hires import HiresPlan
from sd_cloud.engines.diffusion.inversion import Inversion
from sd_cloud.engines.diffusion.job_models import JobModels
from sd_cloud.engines.diffusion.job_state import JobState
from sd_cloud.engines.diffusion.latents import decode_tiny, to_pictures, to_unit
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.models_wanted import find_checkpoint
from sd_cloud.engines.diffusion.noise import Drawing, NoisyLatent
from sd_cloud.engines.diffusion.previews import preview, side_by_side
from sd_cloud.engines.diffusion.prompt_grammar import NetworkCall, Timeline, split_networks
from sd_cloud.engines.diffusion.refiner import is_due
from sd_cloud.engines.diffusion.sampling import Plan, Sampling, alphas_of, total_calls
from sd_cloud.engines.diffusion.soft_inpainting import SoftMask
from sd_cloud.engines.diffusion.taesd import mark_method
from sd_cloud.engines.diffusion.token_merging import token_merging
from sd_cloud.errors import BadRequest
from sd_cloud.job import Picture, Progress

LATENT_PIXELS = 8


@dataclass
class Passes:
    """``source`` is what img2img samples from, ``second`` where the hires pass goes to.

    ``inversion``: img2img's noise is found from its picture. ``steering``: the units while they reach the
    U-Net at work.
    """

    state: JobState
    models: JobModels
    source: img2img.Prepared | None
    second: HiresPlan | None
    controls: controlnet.Control | None
    inversion: Inversion | None = None
    steering: controlnet.Control | None = field(init=False)
    _sampled: ExitStack = field(init=False)

    def __post_init__(self) -> None:
        self.steering = self.controls

    def begin_batch(self, *, anew: bool) -> None:
        """sd-webui-controlnet takes hold of the U-Net once for a job, with a refiner once for each batch.

        ``anew``: since the batch before the webui has built another U-Net, which it does not reach.
        """
        if self.controls is not None and self.state.request.refiner is not None:
            self.steering = self.controls.anew()
        elif anew:
            self.steering = None

    def latents(self) -> tuple[Tensor, list[Picture]]:
        """The batch as latents of the model now at work, and first passes that are to be saved."""
        state, request, model = self.state, self.state.request, self.models.current
        shape = (model.latent_channels, request.height // LATENT_PIXELS, request.width // LATENT_PIXELS)
        noise = self._beginning(state.noise(shape))
        encoded = self._encode(second=False)
        if self.second is None:
            mark_method("sd_vae_decode_method", state.options, state.marks)
        if self.source is not None:
            return self._from_source(self.source, encoded, noise), []
        images = None
        if request.firstpass_image is not None and self.second is not None:
            latent, images = self._given_first_pass(request.firstpass_image, self.second)
        else:
            latent = self._from_noise(encoded, noise)
        if self.second is None or state.control.verdict in ("interrupt", "cancel"):
            return latent, []
        return self._second_pass(self.second, latent, images)

    def _beginning(self, noise: Drawing) -> Drawing:
        """With what ``inpaint_only+lama`` begins from: as in sd-webui-controlnet in the first batch alone,
        and with a refiner in all but the first."""
        latent = self.controls.beginning if self.controls else None
        if latent is None or (self.state.batch.start > 0) != (self.state.request.refiner is not None):
            return noise
        return NoisyLatent(noise, latent, float(self.models.current.alphas_cumprod[-1]))

    def _encode(self, *, second: bool, networks: bool = True) -> Encoded:
        """Merge what the batch's prompts call for (or nothing), then encode them for this pass."""
        state, request, model = self.state, self.state.request, self.models.current
        texts = state.texts
        prompts, negatives = texts.prompts, texts.negative_prompts
        if second:
            prompts, negatives = texts.hires_prompts, texts.hires_negative_prompts
        split = [split_networks(prompt) for prompt in prompts[state.batch]]
        plain = [text for text, _ in split]
        calls: Sequence[NetworkCall] = split[0][1] if networks and request.extra_networks else ()
        state.networks.put_on(model, calls, second=second)
        steps = total_calls(request.sampler, request.steps)
        hires_steps = None
        size = Size(request.width, request.height)
        if second and request.hires is not None and self.second is not None:
            sampler = request.hires.sampler or request.sampler
            hires_steps = total_calls(sampler, request.hires.steps or request.steps)
            size = Size(self.second.target.width, self.second.target.height)
        timeline = Timeline(steps, hires_steps, state.options.flag("use_old_scheduling"))
        conditioner = self.models.conditioner()
        encoded = conditioner.encode(plain, negatives[state.batch], size, timeline)
        state.marks |= conditioner.marks
        if timeline.old and conditioner.differs_from_new(plain, negatives[state.batch], timeline):
            state.marks["Old prompt editing timelines"] = True
        return encoded

    # --- sampling ---------------------------------------------------------------------------------

    def _sampling(self, encoded: Encoded, plan: Plan, noise: Drawing, condition: Tensor | None) -> Sampling:
        state, model = self.state, self.models.current
        guided = Guided(
            model=model,
            encoded=encoded,
            options=state.options,
            control=state.control,
            alphas_cumprod=self._alphas(model),
            cfg_scale=state.request.cfg_scale,
            image_cfg_scale=state.image_cfg_scale,
            total_calls=total_calls(plan.sampler, plan.steps),
            mode=plan.mode,
            s_min_uncond=state.request.knobs.s_min_uncond,
            image_cond=condition,
            controls=self.steering,
            unheard=self.controls is not None and self.steering is None,
            hires=plan.hires,
            refine=self._refine(plan) if state.request.refiner else None,
            empty_prompt=lambda: self.models.conditioner().empty(),
            marks=state.marks,
        )

        def on_step(step: int, steps: int) -> None:
            guided.progress = step / steps
            self._report_step(guided, step, steps)

        return Sampling(
            plan,
            guided,
            state.options,
            noise,
            state.random,
            state.seeds,
            state.marks,
            on_step,
            state.generator.seed,
        )

    def _alphas(self, model: Model) -> Tensor:
        alphas = alphas_of(model, self.state.options, self.state.marks)
        return sd3.alphas_for(model, self.state.job) if model.prediction == "flow" else alphas

    def _report_step(self, guided: Guided, step: int, steps: int) -> None:
        options, image = self.state.options, None
        shown = guided.shown_latent
        if shown is not None and options.flag("live_previews_enable"):
            shown = shown if options.flag("show_progress_grid") else shown[:1]
            image = self._preview(guided.model, shown, step)
        self.state.report(
            Progress(
                step=min(step + 1, steps),
                steps=steps,
                job_no=self.state.pass_no,
                job_count=self.state.passes,
                stage=self.state.job.kind,
                preview=image,
            )
        )

    def _preview(self, model: Model, latents: Tensor, step: int) -> Image.Image | None:
        """As ``show_progress_type`` says; what needs a network only every so many steps."""
        options, kind = self.state.options, self.state.options.text("show_progress_type")
        tiny = self.state.tiny.previewing(model)
        if tiny is None and (kind != "Full" or model.saving != "none"):
            return preview(latents, sdxl=model.is_sdxl)
        every = options.whole("show_progress_every_n_steps")
        if every < 1 or (step + 1) % every:
            return None
        with self.state.hypertile.at_rest():
            decoded = decode_tiny(tiny, latents) if tiny is not None else self.models.coder().decode(latents)
        return side_by_side(to_pictures(decoded))

    def _refine(self, plan: Plan) -> Refine:
        state, refiner = self.state, self.state.request.refiner
        assert refiner is not None
        checkpoint = find_checkpoint(refiner.checkpoint, state.catalogue, "refiner_checkpoint")

        def refine(guided: Guided, level: Tensor) -> Switch | None:
            if self.models.checkpoint.filename == checkpoint.filename:
                return None
            if not is_due(state.request, state.options, guided, level, plan, state.marks):
                return None
            state.marks["Refiner"] = state.workshop.short_title(checkpoint)
            state.marks["Refiner switch at"] = refiner.switch_at
            anew = self.models.switch(checkpoint)
            self._goes_on_with(guided.model.latent_channels, "refiner_checkpoint")
            layout, beside = self.models.current.layout, guided.image_cond
            needs = 5 if layout.inpainting else 4 if layout.edits else 0
            if needs and (beside is None or beside.shape[1] != needs):
                raise BadRequest(
                    f"{checkpoint.name} goes on only where the pass has a picture beside its latent: "
                    "with a checkpoint of its kind",
                    field="refiner_checkpoint",
                )
            self._prepare_attention()
            encoded = self._encode(second=plan.hires, networks=not anew)
            return Switch(self.models.current, encoded, self._alphas(self.models.current), anew)

        return refine

    def _goes_on_with(self, channels: int, field: str) -> None:
        """Raises BadRequest where the model at work cannot take over latents of that many channels."""
        own = self.models.current.latent_channels
        if own != channels:
            name = self.models.checkpoint.name
            raise BadRequest(
                f"{name} has latents of {own} channels and cannot go on with those of {channels}: "
                "take a checkpoint of the same family",
                field=field,
            )

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The model at work, and a refiner that takes over from it, merge tokens and tile if they are to."""
        with ExitStack() as self._sampled:
            self._prepare_attention()
            yield

    def _prepare_attention(self) -> None:
        model = self.models.current
        self._sampled.enter_context(token_merging(model.unet, self.state.merging_ratio))
        elsewhere = self.steering is not None and self.steering.shares_attention
        self._sampled.enter_context(self.state.hypertile.in_unet(model, looks_elsewhere=elsewhere))

    # --- first passes -----------------------------------------------------------------------------

    def _from_noise(self, encoded: Encoded, noise: Drawing) -> Tensor:
        state, request = self.state, self.state.request
        plan = Plan(request.sampler, request.scheduler, request.steps, request.knobs)
        start = noise.draw()
        condition = None
        if self.models.current.layout.edits:
            raise BadRequest(
                "is an InstructPix2Pix checkpoint, which edits a picture: send img2img",
                field="sd_model_checkpoint",
            )
        if self.models.current.layout.inpainting:
            state.inpainting = True
            condition = img2img.blank_condition(
                start, request.width, request.height, self.models.chosen_coder(), state.generator
            )
        sampling = self._sampling(encoded, plan, noise, condition)
        with self._attending():
            return sampling.from_noise(start)

    def _from_source(self, prepared: img2img.Prepared, encoded: Encoded, noise: Drawing) -> Tensor:
        request = self.state.request
        assert request.source is not None
        plan = Plan(
            request.sampler, request.scheduler, request.steps, request.knobs, request.denoising_strength
        )
        sampling = self._sampling(encoded, plan, noise, prepared.condition)
        if self.inversion is not None:
            start = self._inverted(self.inversion, prepared, plan)
        else:
            start = noise.draw()
            if request.source.noise_multiplier != 1.0:
                self.state.marks["Noise multiplier"] = request.source.noise_multiplier
                start = start * request.source.noise_multiplier
        mask = None
        if prepared.keep is not None and prepared.change is not None:
            parts = (prepared.keep, prepared.change, prepared.latent)
            soft = self.state.soft
            mask = Mask(*parts) if soft is None else SoftMask(*parts, soft)
            sampling.guided.mask = mask
        with self._attending():
            latent = sampling.from_latent(prepared.latent, start)
        return latent if mask is None or self.inversion else mask.blend(latent)

    def _inverted(self, inversion: Inversion, prepared: img2img.Prepared, plan: Plan) -> Tensor:
        """The noise from which the source pictures may have come, as the sampler is to add it to them."""
        model, latent = self.models.current, prepared.latent
        if plan.mode != "levels":
            raise BadRequest("img2img alternative test works with samplers over sigmas", field="sampler_name")
        if model.layout.family not in ("sd1", "sd2"):
            raise BadRequest(
                "img2img alternative test is for SD 1 and SD 2 checkpoints", field="sd_model_checkpoint"
            )
        count = latent.shape[0]
        encoded = self.models.conditioner().encode_plainly(
            [inversion.prompt] * count, [inversion.negative_prompt] * count, Size(0, 0)
        )
        back = self._sampling(encoded, plan, self.state.noise(latent.shape[1:]), prepared.condition)
        guided = replace(
            back.guided,
            cfg_scale=inversion.cfg_scale,
            image_cfg_scale=None,
            image_cond=prepared.condition,
            s_min_uncond=0.0,
            refine=None,
            marks={},
        )
        sigmas = guided.levels.evenly(inversion.steps).to(latent.device)
        random = self.state.noise(latent.shape[1:]).draw()
        mixed = inversion.mixed(inversion.noise(latent, guided, sigmas), random)
        return mixed - latent / guided.levels.highest

    def _given_first_pass(self, encoded: str, plan: HiresPlan) -> tuple[Tensor, list[Image.Image] | None]:
        """A first pass that the request brings along, as a latent or, for other upscalers, as it is."""
        image = pictures.decode_picture(encoded, "firstpass_image").convert("RGB")
        pixels = to_unit([image]).to(self.state.workshop.device) * 2 - 1
        mark_method("sd_vae_encode_method", self.state.options, self.state.marks)
        latent = self.models.chosen_coder().encode(pixels, self.state.generator)
        return latent, None if hires.is_latent(plan.hires) else [image]

    # --- the second pass --------------------------------------------------------------------------

    def _second_pass(
        self, second: HiresPlan, latent: Tensor, images: list[Image.Image] | None
    ) -> tuple[Tensor, list[Picture]]:
        state, request, own = self.state, self.state.request, second.hires
        saves = hires.saves_first_pass(request, state.options)
        if images is None and (saves or not hires.is_latent(own)):
            coder = self.models.coder() if hires.is_latent(own) else self.models.chosen_coder()
            images = to_pictures(coder.decode(latent))
        saved = [state.picture(image, i, "first_pass") for i, image in enumerate(images or ()) if saves]
        # A webui builds the model anew, without what control units do to the one before.
        if self.models.switch(second.checkpoint or state.checkpoint):
            self.steering = None
        pixels = None
        if hires.is_latent(own):
            self._goes_on_with(latent.shape[1], "hr_checkpoint_name")
            latent = hires.enlarge_latent(latent, own, second.target)
        else:
            assert images is not None
            by = enlarge(state, own.upscaler, "hr_upscaler")
            pixels = hires.enlarge_pictures(images, second.target, by).to(latent.device)
            mark_method("sd_vae_encode_method", state.options, state.marks)
            latent = self.models.chosen_coder().encode(pixels * 2 - 1, state.generator)
        state.pass_no += 1
        latent = second.target.crop(latent)
        condition = self._second_condition(latent, pixels)
        noise = state.noise(latent.shape[1:])
        start = noise.draw()
        plan = Plan(
            own.sampler or request.sampler,
            own.scheduler or request.scheduler,
            own.steps or request.steps,
            request.knobs,
            request.denoising_strength,
            steps_are_taken=True,
            hires=True,
        )
        encoded = self._encode(second=True)
        state.merging_ratio = state.options.merging_ratio(source=False, second=True)
        target = second.target
        state.hypertile.begin_second_pass(state.texts.seeds[0], target.width, target.height, state.marks)
        sampling = self._sampling(encoded, plan, noise, condition)
        with self._attending():
            latent = sampling.from_latent(latent, start)
        state.merging_ratio = state.options.merging_ratio(source=False, second=False)
        return latent, saved

    def _second_condition(self, latent: Tensor, pixels: Tensor | None) -> Tensor | None:
        """What an inpainting model sees beside the latent. ``pixels`` in 0..1: the webui shows it those."""
        if self.models.current.layout.edits:
            raise BadRequest(
                "is an InstructPix2Pix checkpoint, which edits a picture: send img2img",
                field="hr_checkpoint_name",
            )
        if not self.models.current.layout.inpainting:
            return None
        self.state.inpainting = True
        chosen, source = self.models.chosen_coder(), self.state.generator
        weight = self.state.options.number("inpainting_mask_weight")
        height, width = (side * LATENT_PIXELS for side in latent.shape[2:])
        if pixels is None and weight >= 1.0:
            return img2img.blank_condition(latent, width, height, chosen, source)
        if pixels is None or pixels.shape[-2:] != (height, width):
            pixels = torch.stack(chosen.decode(latent)).to(latent.device)
        coder = self.models.coder()
        return img2img.inpainting_condition(pixels, latent, None, coder, source, weight, rounded=True)


def enlarge(state: JobState, name: str | None, field: str) -> pictures.Resize:
    """How pictures of this job grow."""
    return resizer(
        name,
        field,
        settings=state.workshop.settings,
        option=state.job.option,
        device=state.workshop.device,
        stop=lambda: state.control.verdict != "go",
        drawn=state.generator.pass_over,
    )
