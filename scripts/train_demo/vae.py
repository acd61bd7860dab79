"""The VAE (f=8, 4 channels): train it, then cache the latents of every picture.

Once latents are cached the encoder must not change; `train_decoder` goes on with the decoder
alone, which can be done at any later time without touching the U-Net.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .data import Dataset
from .schedule import Log, Threads, generator, learning_rate, load_state, save_state
from .sheets import save_sheet

# GroupNorm has 32 groups: with one channel a group it erases absolute colour, with two it need not.
BLOCKS = (64, 64, 64, 128)
RES_BLOCKS = 1
BATCH = 16
PEAK_RATE = 1e-3
LATENT_NOISE = 0.1
LATENT_PENALTY = 1e-3
SAVE_EVERY = 200
# The first steps see half-size pictures, four times cheaper, and are told to put colour into latents.
HALF_SIZE_STEPS = 1000
COLOUR_HINT_STEPS = 600


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=BLOCKS,
        layers_per_block=RES_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * len(BLOCKS),
        up_block_types=("UpDecoderBlock2D",) * len(BLOCKS),
        latent_channels=4,
    )


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> np.ndarray:
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def batch_of(pixels: Tensor, randomness: torch.Generator) -> Tensor:
    """Random pictures: mirrored, moved by a few pixels, some on tinted paper."""
    chosen = torch.randint(len(pixels), (BATCH,), generator=randomness)
    batch = pixels[chosen]
    mirror = torch.rand(BATCH, generator=randomness) < 0.5
    batch = torch.where(mirror[:, None, None, None], batch.flip(-1), batch)
    dx, dy = (int(d) for d in torch.randint(-2, 3, (2,), generator=randomness))
    batch = torch.roll(batch, (dy, dx), (2, 3))
    tint = torch.rand(BATCH, 3, 1, 1, generator=randomness)
    tinted = torch.rand(BATCH, generator=randomness) < 0.12
    return torch.where(tinted[:, None, None, None], (batch + 1) * tint - 1, batch)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 on pixels, patches and differences: right colours, sharp edges, no learned critic."""
    loss = F.l1_loss(made, wanted) + 0.5 * F.mse_loss(made, wanted)
    loss = loss + F.l1_loss(F.avg_pool2d(made, 4), F.avg_pool2d(wanted, 4))
    for dim in (2, 3):
        loss = loss + 0.5 * F.l1_loss(made.diff(dim=dim), wanted.diff(dim=dim))
    return loss


def train_vae(dataset: Dataset, work: Path, steps: int, decoder_only: bool = False) -> AutoencoderKL:
    """Train (or go on training) for `steps` in all; saved to work/vae.pt or work/decoder.pt."""
    threads = Threads()
    torch.manual_seed(0)
    vae = new_vae()
    name = "decoder" if decoder_only else "vae"
    state_file = work / f"{name}.pt"
    trained: list[torch.nn.Parameter] = list(vae.parameters())
    if decoder_only:
        start = load_state(work / "vae.pt")
        assert start is not None, "train the VAE first"
        vae.load_state_dict(start["model"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    peak = PEAK_RATE * (0.6 if decoder_only else 1)
    optimiser = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {key: value.clone() for key, value in vae.state_dict().items()}
    step = 0
    if state := load_state(state_file):
        vae.load_state_dict(state["raw"])
        optimiser.load_state_dict(state["optimiser"])
        average, step = state["model"], state["step"]
    pixels = to_pixels(dataset.pictures)
    log, losses = Log(work / "logs" / f"{name}.jsonl"), []
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warmup=100)
        randomness = generator(step + (10_000_000 if decoder_only else 0))
        batch = batch_of(pixels, randomness)
        if step < HALF_SIZE_STEPS and not decoder_only:
            batch = F.avg_pool2d(batch, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(not decoder_only):
                mean = vae.encode(batch).latent_dist.mean
            noise = torch.randn(mean.shape, generator=randomness)
            made = vae.decode(mean + LATENT_NOISE * noise).sample
        loss = reconstruction_loss(made.float(), batch)
        penalty = torch.zeros(()) if decoder_only else LATENT_PENALTY * mean.float().square().mean()
        if step < COLOUR_HINT_STEPS and not decoder_only:
            hint = 1 - step / COLOUR_HINT_STEPS
            penalty = penalty + hint * F.mse_loss(mean[:, :3].float(), F.avg_pool2d(batch, 8))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + penalty)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        decay = min(0.995, step / (step + 10))
        with torch.no_grad():
            for key, value in vae.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        losses.append(float(loss.detach()))
        if step % 10 == 0:
            threads.adapt()
        if step % 50 == 0:
            log.write(step=step, loss=sum(losses) / len(losses))
            losses.clear()
        if step % SAVE_EVERY == 0 or step == steps:
            _save(state_file, vae, average, optimiser, step)
            _preview(average, pixels, work / "sheets" / f"{name}.png")
    vae.load_state_dict(average)
    return vae.eval()


def _save(
    path: Path, vae: AutoencoderKL, average: dict[str, Tensor], optimiser: torch.optim.Optimizer, step: int
) -> None:
    state: dict[str, Any] = {
        "model": average,
        "raw": vae.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    save_state(path, state)


@torch.no_grad()
def _preview(weights: dict[str, Tensor], pixels: Tensor, path: Path) -> None:
    vae = new_vae().eval()
    vae.load_state_dict(weights)
    shown = pixels[:: max(1, len(pixels) // 40)][:40]
    made = vae.decode(vae.encode(shown).latent_dist.mean).sample
    error = F.mse_loss((made.clamp(-1, 1) + 1) / 2, (shown + 1) / 2)
    print(f"PSNR {-10 * torch.log10(error).item():.2f} dB", flush=True)
    pairs = torch.stack([shown, made], dim=1).flatten(0, 1)
    save_sheet(path, to_pictures(pairs), columns=16)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, dataset: Dataset) -> Tensor:
    pixels = to_pixels(dataset.pictures)
    return torch.cat([vae.encode(chunk).latent_dist.mean for chunk in torch.split(pixels, 64)])


def cache_latents(vae: AutoencoderKL, dataset: Dataset, work: Path) -> dict[str, Tensor]:
    """Latents of every picture with zero mean and unit deviation per channel, and that scaling."""
    path = work / "latents.pt"
    cached = load_state(path)
    if cached is None:
        latents = encode_all(vae, dataset)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        scaled = (latents - mean[:, None, None]) / deviation[:, None, None]
        cached = {"latents": scaled, "mean": mean, "deviation": deviation}
        save_state(path, cached)
    return cached
