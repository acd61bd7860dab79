"""Noise that a picture may have come from: Euler's steps walked from the picture to noise.

The formulas are those of ``scripts/img2imgalt.py`` in webui 1.10.1 (both variants; briansemrau's, #736, with
``sigma_adjustment``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from sd_cloud.engines.diffusion.guidance import Guided


@dataclass(frozen=True)
class Inversion:
    """How img2img finds the noise that its picture may have come from (``img2img alternative test``)."""

    prompt: str
    negative_prompt: str
    cfg_scale: float
    steps: int
    randomness: float
    sigma_adjustment: bool

    def noise(self, latent: Tensor, guided: Guided, sigmas: Tensor) -> Tensor:
        """Like ``latent`` [B, C, H, W], of deviation about 1. ``sigmas`` [steps + 1] fall to 0."""
        x, rising = latent, sigmas.flip(0)
        for below, level in pairwise(rising):
            if not self.sigma_adjustment:
                at = level
            elif below > 0:
                at = below
            else:  # the denoised picture is the picture itself there
                continue
            x = x + (x - self._denoised(x, guided, at)) / at * (level - below)
        scale: Tensor = rising[-1] if self.sigma_adjustment else x.std()
        return x / scale

    def _denoised(self, x: Tensor, guided: Guided, sigma: Tensor) -> Tensor:
        made: Tensor = guided(x, sigma.expand(x.shape[0]))
        if guided.model.prediction == "v":  # the webui adds all of x there, not its share
            made = made + x * (1 - 1 / (sigma**2 + 1))
        return made

    def mixed(self, noise: Tensor, random: Tensor) -> Tensor:
        """With so much of other noise, both of deviation 1, as ``randomness`` says."""
        share = self.randomness
        made: Tensor = ((1 - share) * noise + share * random) / (share**2 + (1 - share) ** 2) ** 0.5
        return made
