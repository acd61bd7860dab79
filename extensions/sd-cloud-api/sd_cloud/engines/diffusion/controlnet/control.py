"""ControlNet at work in one job: what its units change at each call of the U-Net.

A unit works while ``guidance_start <= step / steps <= guidance_end``, as in sd-webui-controlnet
(``hook.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from diffusers import UNet2DConditionModel
from torch import Tensor

from sd_cloud.engines.diffusion.controlnet.after import Finish
from sd_cloud.engines.diffusion.controlnet.call import Call, Residuals
from sd_cloud.engines.diffusion.controlnet.hinted import Hinted
from sd_cloud.engines.diffusion.controlnet.image_prompt import ImagePrompts
from sd_cloud.engines.diffusion.controlnet.lllite import lightened
from sd_cloud.engines.diffusion.controlnet.reference import Injection, Reference
from sd_cloud.engines.diffusion.controlnet.repaint import Repaint
from sd_cloud.job import Picture

Forward = Callable[[Call, Residuals | None], Tensor]


@dataclass
class Control:
    """All units of a job. ``maps``: the control maps to answer.

    ``beginning``: a latent [1, C, h, w] that the noise to begin with holds something of.
    """

    units: tuple[Hinted, ...]
    maps: tuple[Picture, ...]
    finishes: tuple[Finish, ...] = field(default=())
    beginning: Tensor | None = None
    prompts: ImagePrompts = field(default_factory=ImagePrompts)
    repaints: tuple[Repaint, ...] = field(default=())

    def anew(self) -> Control:
        """The same without what depends on the first call: what maps make is the same each time."""
        return replace(self, prompts=self.prompts.anew())

    @property
    def shares_attention(self) -> bool:
        """Whether the U-Net's self-attention sees another picture beside its own."""
        return any(isinstance(one, Reference) and one.attends for one in self.units)

    def run(self, call: Call, unet: UNet2DConditionModel, forward: Forward, alphas_cumprod: Tensor) -> Tensor:
        """The U-Net's output at this call, with all that the units change in it.

        ``forward`` runs the U-Net on a call, with residuals.
        """
        second = call.hires and any(one.hires_hint is not None for one in self.units)
        call = self.prompts.said(call, in_hires=second)
        with self.prompts.beside(unet, call), lightened(unet, self.units, call):
            return self._run(call, unet, forward, alphas_cumprod)

    def _run(
        self, call: Call, unet: UNet2DConditionModel, forward: Forward, alphas_cumprod: Tensor
    ) -> Tensor:
        for unit in self.units:
            unit.settle(call)
        added = self.residuals(call)
        seen = call
        for repaint in self.repaints:
            seen = replace(seen, latents=repaint(call, seen.latents))
        working = [one for one in self.units if isinstance(one, Reference) and one.works(call)]
        if not working:
            return self.correct(forward(seen, added), call, alphas_cumprod)
        with Injection(unet, call.positive).installed() as injection:
            for one in working:
                noisy = replace(call, latents=one.noised(call, alphas_cumprod))
                injection.write(one, call, partial(forward, noisy, None))
            return self.correct(forward(seen, added), call, alphas_cumprod)

    def residuals(self, call: Call) -> Residuals | None:
        """What to add inside the U-Net at this call; None when no unit works in it."""
        total: Residuals | None = None
        for unit in self.units:
            added = unit.added(call) if unit.works(call) else None
            if added is not None:
                total = added if total is None else total + added
        return total

    def correct(self, noise: Tensor, call: Call, alphas_cumprod: Tensor) -> Tensor:
        """The U-Net's output with what ``tile_colorfix`` and then ``inpaint_only`` change in it."""
        for unit in sorted(self.units, key=lambda one: one.unit.module.is_inpaint):
            if unit.correction is not None:
                noise = unit.correction(noise, call, unit.hint_for(call), alphas_cumprod)
        return noise

    def finish(self, pixels: Tensor) -> Tensor:
        """Decoded pictures [N, 3, H, W] in 0..1, with what recoloring and inpainting put back."""
        for finish in self.finishes:
            pixels = finish(pixels)
        return pixels
