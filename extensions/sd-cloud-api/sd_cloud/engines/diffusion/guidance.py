"""The U-Net behind a sampler: prompts by step, classifier-free guidance, masks, skip and interrupt.

:class:`Guided` is what a sampler calls. The one place where the U-Net runs is :meth:`Guided._unet`,
which is also where ControlNets (:class:`sd_cloud.engines.diffusion.controlnet.Control`) add to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.conditioning import Cond, Encoded, at_step
from sd_cloud.engines.diffusion.controlnet import control as controlnet
from sd_cloud.engines.diffusion.controlnet.call import Call, Residuals, with_marks
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.noise_levels import ConsistencyLevels, Levels
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.errors import BadRequest


class Stopped(Exception):
    """A person asked to skip, interrupt or cancel; the sampler is left where it is."""


@dataclass(frozen=True)
class Mask:
    """Inpainting in latent space: ``keep`` [C, H, W] is 1 where ``latent`` [B, C, H, W] stays."""

    keep: Tensor
    change: Tensor
    latent: Tensor

    def blend(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """``level``: the sigma or timestep of the call, None for the finished latent."""
        return x * self.change + self.latent * self.keep


@dataclass(frozen=True)
class Switch:
    """The model, prompts and levels to go on with. ``anew``: a webui builds the model for it, without
    what control units do to the one before."""

    model: Model
    encoded: Encoded
    alphas_cumprod: Tensor
    anew: bool = False


Refine = Callable[["Guided", Tensor], Switch | None]
"""Asked before each call, with its sigma or timestep, whether another model takes over."""


@dataclass
class Guided:
    """``(x, sigma) -> denoised`` for samplers over noise levels, ``(x, timestep) -> noise`` for others.

    ``total_calls``: how often the sampler is expected to call. ``mode``: ``levels``, ``consistency``
    or ``timesteps``. ``image_cond``: what inpainting [B, 5, H, W] and InstructPix2Pix models [B, 4, H, W]
    see beside the latent; ``image_cfg_scale`` (other than 1) guides the latter by it. ``step`` counts
    calls; ``progress`` is the share of its steps that the sampler has reported. ``unheard``: the job has
    control units, but they do not reach this model.
    """

    model: Model
    encoded: Encoded
    options: Options
    control: Control
    alphas_cumprod: Tensor
    cfg_scale: float
    total_calls: int
    mode: str = "levels"
    s_min_uncond: float = 0.0
    image_cfg_scale: float | None = None
    scale_factor: float = 1.0
    mask: Mask | None = None
    image_cond: Tensor | None = None
    controls: controlnet.Control | None = None
    unheard: bool = False
    hires: bool = False
    marked: bool = True
    refine: Refine | None = None
    empty_prompt: Callable[[], Tensor] | None = None
    marks: dict[str, object] = field(default_factory=dict)
    step: int = 0
    progress: float = 0.0
    last_latent: Tensor | None = None
    shown_latent: Tensor | None = None
    uncond_out: Tensor | None = None

    def __post_init__(self) -> None:
        self._prepare(self.alphas_cumprod)
        self.edits = self.image_cfg_scale not in (None, 1.0) and self.image_cond is not None
        if self.edits and self.image_cond is not None:
            # Rows of pictures beyond the batch are the same pictures, and see a blank one.
            self.image_cond = torch.cat([self.image_cond, torch.zeros_like(self.image_cond)])

    def _prepare(self, alphas_cumprod: Tensor) -> None:
        quantize = self.options.flag("enable_quantization")
        consistency = self.mode == "consistency"
        self.levels: Levels = (
            ConsistencyLevels(alphas_cumprod) if consistency else Levels(alphas_cumprod, quantize=quantize)
        )

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        if self.control.verdict != "go":
            raise Stopped
        if self.refine is not None:
            switch = self.refine(self, level)
            if switch is not None:
                self.model, self.encoded = switch.model, switch.encoded
                self._prepare(switch.alphas_cumprod)
                self.marked = False
                self.controls = None if switch.anew else self.controls
        if self.mode == "timesteps" and self.mask is not None:
            x = self.mask.blend(x, level)
        rows = self._rows(float(level.reshape(-1)[0]))
        out = self._outputs(x, level, rows)
        guided = self._guide(out, rows)
        if self.mode != "timesteps" and self.mask is not None:
            guided = self.mask.blend(guided, level)
        self._remember(x, level, out, guided, rows)
        self.step += 1
        return guided

    # --- which rows the batch has ---------------------------------------------------------------

    def _rows(self, level: float) -> _Rows:
        positive: list[tuple[int, float, Cond]] = []
        for picture, parts in enumerate(self.encoded.positive):
            positive += [(picture, part.weight, at_step(part.schedule, self.step)) for part in parts]
        negative = [at_step(schedule, self.step) for schedule in self.encoded.negative]
        return _Rows(positive, negative, self._skips_negative(level))

    def _skips_negative(self, level: float) -> bool:
        if self.edits:
            return False
        early = self.options.number("skip_early_cond")
        if early != 0 and self.step / self.total_calls <= early:
            self.marks["Skip Early CFG"] = early
            return True
        everywhere = self.options.flag("s_min_uncond_all")
        if (self.step % 2 or everywhere) and self.s_min_uncond > 0 and level < self.s_min_uncond:
            self.marks["NGMS"] = self.s_min_uncond
            if everywhere:
                self.marks["NGMS all steps"] = everywhere
            return True
        return False

    # --- running the U-Net ------------------------------------------------------------------------

    def _outputs(self, x: Tensor, level: Tensor, rows: _Rows) -> Tensor:
        """What the model says for each row: the positive ones, then the negative ones."""
        positive = _stacked([cond for _, _, cond in rows.positive])
        pictures = [picture for picture, _, _ in rows.positive]
        everyone = list(range(x.shape[0]))
        if rows.skips_negative:
            out = self._pieces(x, level, pictures, positive, [True] * len(pictures))
            firsts = [pictures.index(picture) for picture in everyone]
            return torch.cat([out, out[firsts]])
        negative = _stacked(rows.negative)
        if self.edits:
            return self._edited(x, level, pictures, positive, negative)
        positive, negative = self._padded(positive, negative)
        if positive.cross.shape[1] == negative.cross.shape[1]:
            both = Cond(
                torch.cat([positive.cross, negative.cross]),
                None if positive.vector is None else torch.cat([positive.vector, _present(negative.vector)]),
            )
            flags = [True] * len(pictures) + [False] * len(everyone)
            return self._pieces(x, level, pictures + everyone, both, flags)
        return torch.cat(
            [
                self._pieces(x, level, pictures, positive, [True] * len(pictures), most=2 * x.shape[0]),
                self._pieces(x, level, everyone, negative, [False] * len(everyone)),
            ]
        )

    def _edited(
        self, x: Tensor, level: Tensor, pictures: list[int], positive: Cond, negative: Cond
    ) -> Tensor:
        """With the prompt, without it, and without the picture as well."""
        everyone = list(range(x.shape[0]))
        if pictures != everyone:
            raise BadRequest(
                "AND works with InstructPix2Pix checkpoints only where image_cfg_scale is 1", field="prompt"
            )
        positive, negative = self._padded(positive, negative)
        blank = [picture + x.shape[0] for picture in everyone]
        groups = ((everyone, positive, True), (everyone, negative, False), (blank, negative, False))
        return torch.cat(
            [self._pieces(x, level, rows, cond, [flag] * len(rows)) for rows, cond, flag in groups]
        )

    def _padded(self, positive: Cond, negative: Cond) -> tuple[Cond, Cond]:
        difference = positive.cross.shape[1] - negative.cross.shape[1]
        if difference == 0:
            return positive, negative
        if self.options.flag("pad_cond_uncond_v0"):
            self.marks["Pad conds v0"] = True
            return positive, Cond(_repeat_last(negative.cross, positive.cross.shape[1]), negative.vector)
        if self.options.flag("pad_cond_uncond") and self.empty_prompt is not None:
            self.marks["Pad conds"] = True
            empty = self.empty_prompt()[None]
            times = abs(difference) // empty.shape[1]
            shorter = negative if difference > 0 else positive
            filler = empty.to(shorter.cross).repeat((shorter.cross.shape[0], times, 1))
            padded = Cond(torch.cat([shorter.cross, filler], dim=1), shorter.vector)
            return (positive, padded) if difference > 0 else (padded, negative)
        return positive, negative

    def _pieces(
        self,
        x: Tensor,
        level: Tensor,
        pictures: list[int],
        cond: Cond,
        is_cond: list[bool],
        *,
        most: int | None = None,
    ) -> Tensor:
        """``most`` rows at once (else all), or (``batch_cond_uncond`` off) a picture's worth at a time."""
        size = (most or len(pictures)) if self.options.flag("batch_cond_uncond") else x.shape[0]
        outs = []
        for start in range(0, len(pictures), size):
            part = slice(start, start + size)
            vector = None if cond.vector is None else cond.vector[part]
            outs.append(self._run(x, level, pictures[part], Cond(cond.cross[part], vector), is_cond[part]))
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    def _run(self, x: Tensor, level: Tensor, pictures: list[int], cond: Cond, is_cond: list[bool]) -> Tensor:
        rows = [picture % x.shape[0] for picture in pictures]
        x, level = x[rows], level[rows]
        if self.mode == "timesteps":
            return self._noise_of(x, level, self._unet(x, level, pictures, cond, is_cond))
        sigma = level[:, None, None, None]
        if self.model.prediction == "flow":  # sigma is the share of noise, the output a velocity
            return x - self._unet(x, level * 1000, pictures, cond, is_cond) * sigma
        timestep = self.levels.timestep(level.cpu()).to(level.device)
        scaled = x / (sigma**2 + 1) ** 0.5
        out = self._unet(scaled, timestep, pictures, cond, is_cond)
        if self.mode == "consistency":
            return _consistent(x - out * sigma, x, timestep)
        if self.model.prediction == "v":
            return out * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return x - out * sigma

    def _noise_of(self, x: Tensor, timestep: Tensor, out: Tensor) -> Tensor:
        if self.model.prediction != "v":
            return out
        alphas = self.levels.alphas_cumprod.to(x.device)[timestep.to(torch.int)][:, None, None, None]
        return alphas.sqrt() * out + (1 - alphas).sqrt() * x

    def _unet(
        self, x: Tensor, timestep: Tensor, pictures: list[int], cond: Cond, is_cond: list[bool]
    ) -> Tensor:
        if self.model.layout.inpainting or self.model.layout.edits:
            assert self.image_cond is not None
            x = torch.cat([x, self.image_cond[pictures]], dim=1)
        dtype = self.model.placement.dtype
        # The extension marks the prompts before the webui has encoded the hires pass's and the refiner's,
        # and then takes every row for the prompt's.
        marked = self.marked and (not self.hires or self.options.flag("hires_fix_use_firstpass_conds"))
        call = Call(
            latents=x.to(dtype),
            timesteps=timestep.float(),  # in half precision, fractions would be lost
            context=cond.cross.to(dtype),
            labels=None if cond.vector is None else cond.vector.to(dtype),
            positive=torch.tensor([flag or not marked for flag in is_cond], device=x.device),
            progress=self.progress,
            hires=self.hires,
        )

        def forward(call: Call, added: Residuals | None = None) -> Tensor:
            self.model.bring(self.model.unet)
            out: Tensor = self.model.unet(
                call.latents,
                call.timesteps,
                call.context,
                class_labels=call.labels,
                down_block_additional_residuals=added.down if added and added.middle is not None else None,
                mid_block_additional_residual=added.middle if added else None,
                down_intrablock_additional_residuals=list(added.levels) if added and added.levels else None,
                return_dict=False,
            )[0]
            return out

        if self.controls is None:
            return forward(with_marks(call) if self.unheard and marked else call).float()
        out = self.controls.run(call, self.model.unet, forward, self.levels.alphas_cumprod)
        return out.float()

    # --- putting it together ----------------------------------------------------------------------

    def _guide(self, out: Tensor, rows: _Rows) -> Tensor:
        """``uncond + sum(weight * scale * (cond - uncond))`` (Ho and Salimans 2022; Liu et al. 2022)."""
        count = len(rows.negative)
        uncond = out[-count:]
        self.uncond_out = uncond
        if self.edits:  # Brooks et al. 2023, "InstructPix2Pix", section 3.2.1
            assert self.image_cfg_scale is not None
            with_prompt, with_picture = out[:count], out[count : 2 * count]
            by_picture = self.image_cfg_scale * (with_picture - uncond)
            return uncond + self.cfg_scale * self.scale_factor * (with_prompt - with_picture) + by_picture
        scale = 1.0 if rows.skips_negative else self.cfg_scale * self.scale_factor
        guided = uncond.clone()
        for row, (picture, weight, _) in enumerate(rows.positive):
            guided[picture] += (out[row] - uncond[picture]) * (weight * scale)
        return guided

    def _remember(self, x: Tensor, level: Tensor, out: Tensor, guided: Tensor, rows: _Rows) -> None:
        pictures = [picture for picture, _, _ in rows.positive]
        firsts = [pictures.index(picture) for picture in range(x.shape[0])]
        self.last_latent = self._picture_of(x, level, out[firsts])
        content = self.options.text("live_preview_content")
        if content == "Prompt":
            self.shown_latent = self.last_latent
        elif content == "Negative prompt":
            self.shown_latent = self._picture_of(x, level, out[-x.shape[0] :])
        else:
            self.shown_latent = self._picture_of(x, level, guided)

    def _picture_of(self, x: Tensor, level: Tensor, out: Tensor) -> Tensor:
        if self.mode != "timesteps":
            return out
        alphas = self.levels.alphas_cumprod.to(x.device)[level.to(torch.int64)][:, None, None, None]
        return (x - (1 - alphas).sqrt() * out) / alphas.sqrt()


@dataclass(frozen=True)
class _Rows:
    positive: list[tuple[int, float, Cond]]
    negative: list[Cond]
    skips_negative: bool


def _stacked(conds: Sequence[Cond]) -> Cond:
    """A batch of conditions; shorter ones are continued with their last vector."""
    longest = max(cond.cross.shape[0] for cond in conds)
    cross = torch.stack([_repeat_last(cond.cross[None], longest)[0] for cond in conds])
    vectors = [cond.vector for cond in conds if cond.vector is not None]
    return Cond(cross, torch.stack(vectors) if vectors else None)


def _repeat_last(cross: Tensor, length: int) -> Tensor:
    """[N, T, W] cut or continued to ``length``."""
    missing = length - cross.shape[1]
    if missing <= 0:
        return cross[:, :length]
    return torch.cat([cross, cross[:, -1:].repeat(1, missing, 1)], dim=1)


def _present(vector: Tensor | None) -> Tensor:
    assert vector is not None
    return vector


def _consistent(denoised: Tensor, x: Tensor, timestep: Tensor) -> Tensor:
    """Boundary condition of consistency models (Luo et al. 2023, with their timestep scale of 10)."""
    data = 0.5
    scaled = timestep[:, None, None, None] * 10.0
    keep = data**2 / (scaled**2 + data**2)
    return scaled / (scaled**2 + data**2) ** 0.5 * denoised + keep * x
