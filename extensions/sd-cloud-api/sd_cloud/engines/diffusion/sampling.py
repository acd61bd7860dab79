"""One pass of a sampler: which noise levels, from which start, with which knobs.

What the webui does around k-diffusion's functions and its own timestep samplers, so that the same
request takes the same steps. ``marks`` collects what the infotext then says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sd_cloud.engines.base import Sampler, Scheduler
from sd_cloud.engines.diffusion import samplers
from sd_cloud.engines.diffusion.catalogue_samplers import SCHEDULERS
from sd_cloud.engines.diffusion.guidance import Guided, Stopped
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.noise import BrownianNoise, Drawing, RandomKind
from sd_cloud.engines.diffusion.noise_levels import SCHEDULES, Range, zero_terminal_snr
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import Knobs
from sd_cloud.engines.diffusion.samplers import timesteps as walks
from sd_cloud.engines.diffusion.samplers.tools import Knobs as SamplerKnobs
from sd_cloud.engines.diffusion.samplers.unipc import SPACINGS, VARIANTS, UniPCKnobs, unipc
from sd_cloud.errors import BadRequest

TIMESTEPS = 1000
Marks = MutableMapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a pass samples. ``denoising`` None: from pure noise; else the share of noise on a latent.

    ``steps_are_taken``: the steps asked for are all taken whatever the strength (hires fix).
    """

    sampler: Sampler
    scheduler: Scheduler
    steps: int
    knobs: Knobs
    denoising: float | None = None
    steps_are_taken: bool = False
    hires: bool = False

    @property
    def by_timesteps(self) -> bool:
        return self.sampler.name in samplers.TIMESTEP_SAMPLERS

    @property
    def mode(self) -> str:
        """How :class:`Guided` has to answer."""
        if self.by_timesteps:
            return "timesteps"
        return "consistency" if self.sampler.name == "LCM" else "levels"


def total_calls(sampler: Sampler, steps: int) -> int:
    """How often a sampler asks the model in so many steps, as prompt editing counts."""
    return steps * 2 if sampler.options.get("second_order") else steps


def alphas_of(model: Model, options: Options, marks: Marks) -> Tensor:
    """The model's cumulative alphas under ``use_downcasted_alpha_bar`` and ``sd_noise_schedule``.

    A flow has a schedule of its own, which neither changes; the infotext says them all the same.
    """
    alphas = model.alphas_cumprod
    if options.flag("use_downcasted_alpha_bar"):
        marks["Downcast alphas_cumprod"] = True
        alphas = alphas.half().float()
    if options.text("sd_noise_schedule") == "Zero Terminal SNR":
        marks["Noise Schedule"] = "Zero Terminal SNR"
        alphas = zero_terminal_snr(alphas)
    return model.alphas_cumprod if model.prediction == "flow" else alphas


@dataclass
class Sampling:
    """A pass ready to run on a batch. ``seeds`` are the pictures' own, for the SDE samplers.

    ``any_seed`` draws the one for ``no_dpmpp_sde_batch_determinism``.
    """

    plan: Plan
    guided: Guided
    options: Options
    noise: Drawing
    random: RandomKind
    seeds: Sequence[int]
    marks: Marks
    on_step: Callable[[int, int], None]
    any_seed: Callable[[], int]

    def from_noise(self, noise: Tensor) -> Tensor:
        """Sample from the noise [B, C, H, W] (unit variance)."""
        steps = self.plan.steps
        if self.plan.by_timesteps:
            return self._run_timesteps(noise, self._timesteps(steps), steps, start=None)
        sigmas = self._sigmas(steps)
        if self.options.flag("sgm_noise_multiplier"):
            self.marks["SGM noise multiplier"] = True
            x = noise * torch.sqrt(1.0 + sigmas[0] ** 2.0)
        else:
            x = noise * sigmas[0]
        levels = self.guided.levels
        return self._run_levels(x, sigmas, sigmas, steps, (levels.lowest, levels.highest), steps)

    def from_latent(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Sample from a latent with as much noise on it as ``plan.denoising`` says."""
        steps, taken = self._img2img_steps()
        self.guided.last_latent = latent
        if steps == 0:
            return latent
        extra = self.options.number("img2img_extra_noise")
        if extra > 0:
            self.marks["Extra noise"] = extra
        if self.plan.by_timesteps:
            timesteps = self._timesteps(steps)
            alpha = self.guided.levels.alphas_cumprod[timesteps[taken]]
            x = latent * alpha.sqrt() + noise * (1 - alpha).sqrt() + noise * extra * alpha.sqrt()
            return self._run_timesteps(x, timesteps[:taken], taken + 1, start=timesteps[:taken])
        sigmas = self._sigmas(steps)
        walked = sigmas[steps - taken - 1 :]
        if self.guided.model.prediction == "flow":
            x = latent * (1 - walked[0]) + noise * walked[0] + noise * extra
        else:
            x = latent + noise * walked[0] + noise * extra
        edges = (float(walked[-2]), float(walked[0])) if len(walked) > 1 else (0.0, 0.0)
        return self._run_levels(x, walked, sigmas, taken + 1, edges, len(walked) - 1)

    def _img2img_steps(self) -> tuple[int, int]:
        """Steps of the whole schedule, and how many of its last ones (less one) are taken."""
        strength = min(self.plan.denoising or 0.0, 0.999)
        steps = self.plan.steps
        if self.plan.steps_are_taken or self.options.flag("img2img_fix_steps"):
            return (int(steps / strength) if strength > 0 else 0), steps - 1
        return steps, int(strength * steps)

    # --- over noise levels -----------------------------------------------------------------------

    def _sigmas(self, steps: int) -> Tensor:
        options, plan, marks = self.options, self.plan, self.marks
        discard = bool(plan.sampler.options.get("discard_next_to_last_sigma"))
        if options.flag("always_discard_next_to_last_sigma") and not discard:
            discard = True
            marks["Discard penultimate sigma"] = True
        count = steps + 1 if discard else steps
        name = plan.scheduler.name
        if name == "automatic":
            name = plan.sampler.options.get("scheduler", "automatic")
        if name == "automatic":
            sigmas = self.guided.levels.evenly(count)
        else:
            scheduler = next(one for one in SCHEDULERS if one.name == name)
            sigmas = SCHEDULES[name](count, self._range(scheduler))
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def _range(self, scheduler: Scheduler) -> Range:
        options, marks, levels = self.options, self.marks, self.guided.levels
        if not self.plan.hires:
            marks["Schedule type"] = scheduler.label
        elif scheduler.label != marks.get("Schedule type"):
            marks["Hires schedule type"] = scheduler.label
        old = options.flag("use_old_karras_scheduler_sigmas")
        lowest, highest = (0.1, 10.0) if old else (levels.lowest, levels.highest)
        low, high, rho = (options.number(name) for name in ("sigma_min", "sigma_max", "rho"))
        for option, sigma in (("sigma_min", low), ("sigma_max", high)):
            if sigma < 0:
                raise BadRequest(f"must be at least 0, not {sigma}", field=f"override_settings.{option}")
        if low != 0 and low != levels.lowest:
            lowest = marks["Schedule min sigma"] = low
        if high != 0 and high != levels.highest:
            highest = marks["Schedule max sigma"] = high
        own_rho = scheduler.default_rho != -1 and rho not in (0, scheduler.default_rho)
        if own_rho:
            marks["Schedule rho"] = rho
        alpha, beta = options.number("beta_dist_alpha"), options.number("beta_dist_beta")
        if scheduler.name == "beta":
            for option, value in (("alpha", alpha), ("beta", beta)):
                if value <= 0:
                    field = f"override_settings.beta_dist_{option}"
                    raise BadRequest(f"must be more than 0, not {value}", field=field)
            marks["Beta schedule alpha"], marks["Beta schedule beta"] = alpha, beta
        return Range(
            lowest=lowest,
            highest=highest,
            levels=levels,
            rho=rho if own_rho else None,
            beta_alpha=alpha,
            beta_beta=beta,
            is_sdxl=self.guided.model.is_sdxl,
        )

    def _run_levels(
        self, x: Tensor, walked: Tensor, sigmas: Tensor, steps: int, edges: tuple[float, float], calls: int
    ) -> Tensor:
        name = self.plan.sampler.name
        self.guided.total_calls = total_calls(self.plan.sampler, steps)
        knobs = replace(self._knobs(x, walked, sigmas), lowest=edges[0], highest=edges[1], steps=calls)
        knobs = replace(knobs, on_step=lambda step: self.on_step(step, steps))
        return self._until_stopped(
            x, lambda: samplers.BY_NAME[name](self.guided, x, walked.to(x.device), knobs)
        )

    def _knobs(self, x: Tensor, walked: Tensor, sigmas: Tensor) -> SamplerKnobs:
        name, options = self.plan.sampler.name, self.options
        eta = 1.0
        if name not in samplers.WITHOUT_ETA:
            eta = self._eta("eta_ancestral", 1.0, "Eta")
        knobs = SamplerKnobs(
            noise=self.noise.draw,
            between=self._between(x, walked, sigmas),
            eta=eta,
            second_form=self.plan.sampler.options.get("solver_type") == "heun",
        )
        return _churned(knobs, name, self.plan.knobs, options, self.marks)

    def _between(self, x: Tensor, walked: Tensor, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        if not self.plan.sampler.options.get("brownian_noise"):
            return lambda sigma, target: self.noise.draw()
        if self.options.flag("no_dpmpp_sde_batch_determinism"):
            # One tree for the batch: its pictures then depend on the batch they are made in.
            whole = BrownianNoise(x[None], walked, [self.any_seed()], self.random)
            return lambda sigma, target: whole(sigma, target)[0]
        return BrownianNoise(x, sigmas, self.seeds, self.random)

    def _eta(self, option: str, default: float, label: str) -> float:
        eta = self.options.number(option) if self.plan.knobs.eta is None else self.plan.knobs.eta
        if eta != default:
            self.marks[label] = eta
        return eta

    # --- over timesteps --------------------------------------------------------------------------

    def _timesteps(self, steps: int) -> Tensor:
        if self.options.flag("always_discard_next_to_last_sigma"):
            self.marks["Discard penultimate sigma"] = True
            steps += 1
        if steps > TIMESTEPS:
            raise BadRequest(
                f"{self.plan.sampler.name} has {TIMESTEPS} timesteps; {steps} steps are more", field="steps"
            )
        return (torch.arange(0, TIMESTEPS, TIMESTEPS // steps) + 1).clip(0, TIMESTEPS - 1)

    def _run_timesteps(self, x: Tensor, timesteps: Tensor, steps: int, start: Tensor | None) -> Tensor:
        name = self.plan.sampler.name
        self.guided.total_calls = steps
        if name == "DDIM CFG++":
            self.guided.scale_factor = 1 / 12.5
        walk = walks.Walk(
            alphas_cumprod=self.guided.levels.alphas_cumprod,
            noise=self.noise.draw,
            on_step=lambda step: self.on_step(step, steps),
            eta=self._eta("eta_ddim", 0.0, "Eta DDIM") if name.startswith("DDIM") else 0.0,
            last_uncond=self._last_uncond,
        )
        if name == "UniPC":
            knobs = self._unipc_knobs(timesteps, start)
            return self._until_stopped(x, lambda: unipc(self.guided, x, len(timesteps), walk, knobs))
        run = {"DDIM": walks.ddim, "DDIM CFG++": walks.ddim_cfgpp, "PLMS": walks.plms}[name]
        return self._until_stopped(x, lambda: run(self.guided, x, timesteps, walk))

    def _last_uncond(self) -> Tensor:
        assert self.guided.uncond_out is not None
        return self.guided.uncond_out

    def _unipc_knobs(self, timesteps: Tensor, start: Tensor | None) -> UniPCKnobs:
        options = self.options
        order = options.whole("uni_pc_order")
        variant, spacing = options.text("uni_pc_variant"), options.text("uni_pc_skip_type")
        for name, value, known in (("variant", variant, VARIANTS), ("skip_type", spacing, SPACINGS)):
            if value not in known:
                there = ", ".join(known)
                raise BadRequest(f"{value!r} is none of {there}", field=f"override_settings.uni_pc_{name}")
        if order < 1:
            raise BadRequest("must be at least 1", field="override_settings.uni_pc_order")
        if len(timesteps) < order:
            raise BadRequest(
                f"UniPC of order {order} needs at least {order} steps, and here it takes {len(timesteps)}",
                field="steps",
            )
        return UniPCKnobs(
            variant=variant,
            spacing=spacing,
            order=order,
            lower_order_final=options.flag("uni_pc_lower_order_final"),
            start=1.0 if start is None else float(start[-1] / 1000 + 1 / 1000),
        )

    def _until_stopped(self, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """The result, or the picture the sampler last had in mind when it was stopped."""
        if self.guided.last_latent is None:
            self.guided.last_latent = x
        try:
            return run()
        except Stopped:
            return self.guided.last_latent


def _churned(
    sampler_knobs: SamplerKnobs, name: str, knobs: Knobs, options: Options, marks: Marks
) -> SamplerKnobs:
    """``s_churn`` and its kind: the request's, but an option that is not at its default wins."""
    if name in samplers.CHURNED:
        churn, low = options.number("s_churn"), options.number("s_tmin")
        high = options.number("s_tmax") or math.inf
        for label, value, default in (("churn", churn, 0.0), ("tmin", low, 0.0), ("tmax", high, math.inf)):
            if value != default:
                marks[f"Sigma {label}"] = value
        sampler_knobs = replace(
            sampler_knobs,
            s_churn=churn or knobs.s_churn,
            s_tmin=low or knobs.s_tmin,
            s_tmax=knobs.s_tmax if high == math.inf else high,
        )
    if name not in samplers.NOISE_SCALED:
        return sampler_knobs
    own = options.number("s_noise")
    if own != 1.0:
        marks["Sigma noise"] = own
    return replace(sampler_knobs, s_noise=knobs.s_noise if own == 1.0 else own)
