"""The VAE (f=8, 4 channels): train it, then cache the latents of every picture.

Once latents are cached the encoder must not change; `train_decoder` goes on with the decoder
alone, which can be done at any later time without touching the U-Net.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .data import Dataset, weights_of
from .muon import Pair
from .schedule import Log, Threads, generator, learning_rate, load_state, save_state
from .sheets import save_sheet

# GroupNorm has 32 groups: with one channel a group it erases absolute colour, with two it need not.
BLOCKS = (64, 64, 64, 128)
RES_BLOCKS = 1
BATCH = 8
PEAK_RATE = 1e-3
DECODER_RATE = 5e-4
# About how far the U-Net's latents are from those of the picture that they mean (unit deviation).
LATENT_NOISE = 0.15
LATENT_PENALTY = 1e-2
# Beside the decoder training's noise on every number, one on the mean of every channel.
DECODER_NOISE = 0.15
DECODER_CAST = 0.1
INK_SHARE = 0.07
MIRRORED_SHARE = 0.15
MOVED_SHARE = 0.25
SAVE_EVERY = 200
# The first steps see half-size pictures, four times cheaper, and are told to put colour into latents.
HALF_SIZE_STEPS = 1000
COLOUR_HINT_STEPS = 600

Losses = tuple[Tensor, Tensor]  # reconstruction, penalty


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


def batch_of(pixels: Tensor, weights: Tensor, randomness: torch.Generator) -> Tensor:
    """Random pictures: some mirrored, some moved by a few pixels, a few on tinted paper."""
    chosen = torch.multinomial(weights, BATCH, replacement=False, generator=randomness)
    batch = pixels[chosen]
    mirror = torch.rand(BATCH, generator=randomness) < MIRRORED_SHARE
    batch = torch.where(mirror[:, None, None, None], batch.flip(-1), batch)
    if float(torch.rand((), generator=randomness)) < MOVED_SHARE:
        dx, dy = (int(d) for d in torch.randint(-2, 3, (2,), generator=randomness))
        batch = torch.roll(batch, (dy, dx), (2, 3))
    tint = torch.rand(BATCH, 3, 1, 1, generator=randomness)
    tinted = torch.rand(BATCH, generator=randomness) < 0.03
    return torch.where(tinted[:, None, None, None], (batch + 1) * tint - 1, batch)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 on pixels, patches and differences: right colours, sharp edges, no learned critic."""
    loss = F.l1_loss(made, wanted) + 0.5 * F.mse_loss(made, wanted)
    loss = loss + F.l1_loss(F.avg_pool2d(made, 4), F.avg_pool2d(wanted, 4))
    for dim in (2, 3):
        loss = loss + F.l1_loss(made.diff(dim=dim), wanted.diff(dim=dim))
    return loss


def train_vae(dataset: Dataset, work: Path, steps: int) -> AutoencoderKL:
    """Train encoder and decoder (or go on training) for `steps` in all; saved to work/vae.pt."""
    pixels, weights = to_pixels(dataset.pictures), weights_of(dataset.entries)

    def loss_of(vae: AutoencoderKL, step: int, randomness: torch.Generator) -> Losses:
        batch = batch_of(pixels, weights, randomness)
        if step < HALF_SIZE_STEPS:
            batch = F.avg_pool2d(batch, 2)
        mean = vae.encode(batch).latent_dist.mean
        noise = torch.randn(mean.shape, generator=randomness)
        made = vae.decode(mean + LATENT_NOISE * noise).sample
        penalty = LATENT_PENALTY * mean.float().square().mean()
        if step < COLOUR_HINT_STEPS:
            hint = 1 - step / COLOUR_HINT_STEPS
            penalty = penalty + hint * F.mse_loss(mean[:, :3].float(), F.avg_pool2d(batch, 8))
        return reconstruction_loss(made.float(), batch), penalty

    torch.manual_seed(0)
    vae = new_vae()
    return _train(vae, work / "vae.pt", steps, 0, list(vae.named_parameters()), loss_of, pixels, weights)


def train_decoder(
    vae: AutoencoderKL,
    dataset: Dataset,
    cached: dict[str, Tensor],
    in_inks: list[Dataset],
    work: Path,
    steps: int,
) -> AutoencoderKL:
    """Train the decoder of `vae` alone on the encoder's latents; saved to work/decoder.pt.

    The latents are moved as far as the U-Net's are off, each channel's mean too: a colour cast is what
    CFG makes of a strong colour, and the decoder learns that paper is white all the same. `in_inks` are
    the same drawings for the second checkpoint and the LoRA.
    """
    deviation = cached["deviation"][:, None, None]
    raw = torch.cat(
        [cached["latents"] * deviation + cached["mean"][:, None, None]]
        + [encode_all(vae, inked) for inked in in_inks]
    )
    pixels = torch.cat([to_pixels(one.pictures) for one in (dataset, *in_inks)])
    weights = weights_of(dataset.entries)
    weights = torch.cat([weights] + [weights * INK_SHARE] * len(in_inks))

    def loss_of(vae: AutoencoderKL, step: int, randomness: torch.Generator) -> Losses:
        chosen = torch.multinomial(weights, BATCH, replacement=False, generator=randomness)
        noise = DECODER_NOISE * torch.randn(BATCH, *raw.shape[1:], generator=randomness)
        noise = noise + DECODER_CAST * torch.randn(BATCH, raw.shape[1], 1, 1, generator=randomness)
        made = vae.decode(raw[chosen] + deviation * noise).sample
        return reconstruction_loss(made.float(), pixels[chosen]), torch.zeros(())

    vae.requires_grad_(False)
    trained = [(n, p) for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))]
    for _, parameter in trained:
        parameter.requires_grad_(True)
    state_file = work / "decoder.pt"
    return _train(vae, state_file, steps, 10_000_000, trained, loss_of, pixels, weights, DECODER_RATE)


def _train(
    vae: AutoencoderKL,
    state_file: Path,
    steps: int,
    first_seed: int,
    trained: list[tuple[str, torch.nn.Parameter]],
    loss_of: Callable[[AutoencoderKL, int, torch.Generator], Losses],
    pixels: Tensor,
    weights: Tensor,
    peak_rate: float = PEAK_RATE,
) -> AutoencoderKL:
    threads = Threads()
    optimiser = Pair(trained, lr=peak_rate, weight_decay=1e-4)
    average = {key: value.clone() for key, value in vae.state_dict().items()}
    step = 0
    if state := load_state(state_file):
        vae.load_state_dict(state["raw"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
        average, step = state["model"], state["step"]
    log, losses = Log(state_file.parent / "logs" / f"{state_file.stem}.jsonl"), []
    while step < steps:
        optimiser.rate(learning_rate(step, steps, peak_rate, warmup=20))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, penalty = loss_of(vae, step, generator(first_seed + step))
        optimiser.zero_grad()
        torch.autograd.backward(loss + penalty)
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
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
            saved = {"model": average, "raw": vae.state_dict(), "step": step}
            save_state(state_file, {**saved, "optimiser": optimiser.state_dict()})
            sheet = state_file.parent / "sheets" / f"{state_file.stem}.png"
            _preview(average, pixels[weights >= 1], sheet)
    vae.load_state_dict(average)
    return vae.eval()


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
