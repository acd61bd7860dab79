"""Between pixels and latents: the VAE, one picture at a time as the webui does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from sd_cloud.engines.diffusion.noise import Source
from sd_cloud.engines.diffusion.taesd import NO_TINY, Tiny
from sd_cloud.errors import EngineFailed


def _stays() -> None:
    """The VAE is where it has to be already."""


class Coder:
    """A VAE with the latent scale of a checkpoint, and the shift that SD 3's latents have.

    ``bring`` is called before the VAE runs, to have it on the device. ``tiny`` decodes or encodes
    in its place.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        scale: float,
        shift: float = 0.0,
        *,
        bring: Callable[[], None] = _stays,
        tiny: Tiny = NO_TINY,
    ) -> None:
        self.vae = vae
        self._scale = scale
        self._shift = shift
        self._bring = bring
        self._tiny = tiny

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Tensor]:
        """[B, C, h, w] to a list of [3, H, W] in -1..1, float32 on the CPU.

        A VAE in half precision that gives nothing but NaN is widened to float32 for good, as the
        webui's ``auto_vae_precision`` does. Raises EngineFailed when that does not help either.
        """
        if bool(latents.isnan().all()):
            raise EngineFailed(
                "the U-Net gave nothing but NaN: a file at work (checkpoint, LoRA, embedding) is damaged, "
                "a number of the request is too large, or half precision is too little (--no-half)"
            )
        if self._tiny.decoder is not None:
            return decode_tiny(self._tiny.decoder, latents)
        self._bring()
        return [self._decode_one(latent) for latent in _singly(latents)]

    def _decode_one(self, latent: Tensor) -> Tensor:
        pixels = self._through(latent)
        if bool(pixels.isnan().all()):
            if self.vae.dtype == torch.float32:
                raise EngineFailed("the VAE gave nothing but NaN; another VAE or --no-half may help")
            self.vae.float()
            pixels = self._through(latent)
        return pixels.float().cpu()

    def _through(self, latent: Tensor) -> Tensor:
        out: Tensor = self.vae.decode((1.0 / self._scale * latent + self._shift).to(self.vae.dtype)).sample
        return out[0]

    @torch.no_grad()
    def encode(self, pixels: Tensor, source: Source) -> Tensor:
        """[B, 3, H, W] in -1..1 to latents [B, C, h, w]; ``source`` draws the VAE's own noise."""
        if self._tiny.encoder is not None:
            unit = (pixels + 1.0) / 2.0
            return torch.cat([_as_held(self._tiny.encoder, one) for one in _singly(unit)]).float()
        self._bring()
        parameter = next(self.vae.parameters())
        latents = []
        for one in _singly(pixels):
            spread = self.vae.encode(one.to(parameter)).latent_dist
            noise = source.randn(spread.mean.shape).to(spread.mean)
            latents.append((spread.mean + spread.std * noise - self._shift) * self._scale)
        return torch.cat(latents).float()

    @torch.no_grad()
    def likeliest(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 to what the encoder holds likeliest, without noise and unscaled."""
        self._bring()
        parameter = next(self.vae.parameters())
        found = [self.vae.encode(one.to(parameter)).latent_dist.mode() for one in _singly(pixels)]
        return torch.cat(found).float()


@torch.no_grad()
def decode_tiny(decoder: nn.Module, latents: Tensor) -> list[Tensor]:
    """By TAESD: [B, C, h, w] to a list of [3, H, W] in -1..1, float32 on the CPU."""
    return [(_as_held(decoder, latent) * 2 - 1)[0].float().cpu() for latent in _singly(latents)]


def _as_held(network: nn.Module, batch: Tensor) -> Tensor:
    """A network's answer to a batch in the precision, and on the device, of its weights."""
    out: Tensor = network(batch.to(next(network.parameters())))
    return out


def to_pictures(decoded: Sequence[Tensor]) -> list[Image.Image]:
    """[3, H, W] in -1..1 to pictures; fractions are cut off, not rounded."""
    return [from_unit((one + 1.0) / 2.0) for one in decoded]


def from_unit(pixels: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 to a picture."""
    array = 255.0 * pixels.clamp(0.0, 1.0).numpy().transpose(1, 2, 0)
    return Image.fromarray(array.astype(np.uint8))


def to_unit(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size to [B, 3, H, W] in 0..1."""
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0 for image in images]
    return torch.from_numpy(np.stack([array.transpose(2, 0, 1) for array in arrays]))


def _singly(batch: Tensor) -> list[Tensor]:
    return [batch[i : i + 1] for i in range(batch.shape[0])]
