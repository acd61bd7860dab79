"""Train the U-Net and the text encoder together on cached latents."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from sd_cloud.engines.diffusion.tokenizer import END, VOCABULARY_SIZE

from .captions import caption, nouns
from .data import Dataset, Entry, weights_of
from .muon import Pair
from .sampling import alphas_cumprod, decode, sample
from .schedule import SEED, Log, Threads, generator, hold_then_fall, load_state, save_state
from .sheets import save_sheet
from .unet import TEXT_WIDTH, new_text_encoder, new_unet, padded, token_ids, tokenise

BATCH = 32
PEAK_RATE = 5e-4
EMPTY_SHARE = 0.12
STRANGE_WORD_SHARE = 0.25
SNR_LIMIT = 5.0
# In the first steps the text encoder is also told directly what a caption's picture looks like: a linear
# view of its output guesses the latents. Without it the words take far longer to matter to the U-Net.
HINT_WEIGHT = 0.1
HINT_STEPS = 4000
AVERAGE_DECAY = 0.997
SAVE_EVERY = 200
PREVIEW_EVERY = 400
PREVIEW_CAPTIONS = (
    "a red apple",
    "a cat face",
    "a rocket",
    "a panda",
    "a slice of pizza",
    "a sunflower",
    "a red heart",
    "a blue car",
    "a green balloon",
    "a purple butterfly",
    "a guitar",
    "a penguin",
    "a birthday cake",
    "a house",
    "a smiling face with sunglasses",
    "a rainbow",
    "a sailboat, noto style",
    "a lion, twemoji style",
    "an octopus, fluent style",
    "a bicycle",
    "an umbrella",
    "a robot",
    "a pink rose",
    "a blue apple",
)


class Captioner:
    """Captions and their tokens; words the data does not have stay silent in the text encoder."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        rng = random.Random(SEED)
        known: set[int] = set()
        for entry in entries:
            texts = [caption(entry, rng) for _ in range(60)]
            for text in (*texts, *nouns(entry.concept)):
                known.update(token_ids(text))
        self.unknown = torch.tensor([token for token in range(VOCABULARY_SIZE) if token not in known])

    def tokens(self, entries: list[Entry], rng: random.Random) -> Tensor:
        texts = ["" if rng.random() < EMPTY_SHARE else caption(entry, rng) for entry in entries]
        rows = []
        for ids in map(token_ids, texts):
            if len(ids) > 2 and rng.random() < STRANGE_WORD_SHARE:
                for _ in range(rng.randint(1, 3)):
                    strange = int(self.unknown[rng.randrange(len(self.unknown))])
                    ids.insert(rng.randint(1, len(ids) - 1), strange)
            rows.append(padded(ids))
        return torch.tensor(rows)


class Denoiser(nn.Module):
    """U-Net and text encoder as one set of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = new_unet()
        self.text: CLIPTextModel = new_text_encoder()

    def context(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.text(tokens).last_hidden_state
        return states

    def forward(self, noisy: Tensor, times: Tensor, context: Tensor) -> Tensor:
        guess: Tensor = self.unet(noisy, times, context).sample
        return guess


def embedding_of(model: Denoiser) -> nn.Parameter:
    found: nn.Parameter = next(p for name, p in model.text.named_parameters() if "token_embedding" in name)
    return found


def train(
    dataset: Dataset,
    cached: dict[str, Tensor],
    vae: AutoencoderKL,
    work: Path,
    steps: int,
    name: str = "unet",
    start: Path | None = None,
    peak_rate: float = PEAK_RATE,
) -> Denoiser:
    """Train (or go on) until `steps`; the averaged weights end in work/NAME.pt."""
    threads = Threads()
    torch.manual_seed(SEED)
    model = Denoiser()
    captioner = Captioner(dataset.entries)
    embedding = embedding_of(model)
    with torch.no_grad():
        embedding[captioner.unknown] = 0
    if start is not None:
        first = load_state(start)
        assert first is not None, f"{start} is not there"
        model.load_state_dict(first["model"])
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = Pair(model.named_parameters(), lr=peak_rate, weight_decay=1e-3)
    hint = nn.Linear(TEXT_WIDTH, 256)
    hint_optimiser = torch.optim.AdamW(hint.parameters(), lr=peak_rate)
    step, state_file = 0, work / f"{name}.pt"
    if state := load_state(state_file):
        model.load_state_dict(state["raw"])
        average.load_state_dict(state["model"])
        if "optimiser" in state:
            optimiser.load_state_dict(state["optimiser"])
            hint.load_state_dict(state["hint"])
            hint_optimiser.load_state_dict(state["hint_optimiser"])
        step = state["step"]
    latents, alphas = cached["latents"], alphas_cumprod().float()
    weights = weights_of(dataset.entries)
    log, losses = Log(work / "logs" / f"{name}.jsonl"), []
    hint_losses: list[float] = []
    while step < steps:
        optimiser.rate(hold_then_fall(step, steps, peak_rate))
        randomness = generator(step)
        chosen = torch.multinomial(weights, BATCH, replacement=False, generator=randomness)
        entries = [dataset.entries[i] for i in chosen.tolist()]
        tokens = captioner.tokens(entries, random.Random(SEED + step))
        # float32: bfloat16 was measured no faster at these sizes, for all that it halves a VAE step.
        # One time from each of BATCH equal slices: less variance than independent draws.
        slices = (torch.arange(BATCH) + torch.rand(BATCH, generator=randomness)) / BATCH * 1000
        times = slices[torch.randperm(BATCH, generator=randomness)].long().clamp(max=999)
        noise = torch.randn(BATCH, 4, 8, 8, generator=randomness)
        alpha = alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        context = model.context(tokens)
        guess = model(noisy, times, context)
        snr = (alpha / (1 - alpha)).flatten()
        errors = (guess - noise).square().mean((1, 2, 3))
        loss = (errors * snr.clamp(max=SNR_LIMIT) / snr).mean()
        said = (tokens[:, 1] != END).float()
        guessed = hint(context.mean(dim=1)) - latents[chosen].flatten(1)
        hint_loss = (guessed.square().mean(dim=1) * said).mean()
        optimiser.zero_grad()
        hint_optimiser.zero_grad(set_to_none=True)
        hinted = start is None and step < HINT_STEPS
        (loss + HINT_WEIGHT * hint_loss if hinted else loss).backward()
        assert embedding.grad is not None
        embedding.grad[captioner.unknown] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        hint_optimiser.step()
        step += 1
        decay = min(AVERAGE_DECAY, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(float(loss.detach()))
        hint_losses.append(float(hint_loss.detach()))
        if step % 10 == 0:
            threads.adapt()
        if step % 50 == 0:
            hints = sum(hint_losses) / len(hint_losses)
            log.write(step=step, loss=sum(losses) / len(losses), hint=hints)
            losses.clear()
            hint_losses.clear()
        if step % SAVE_EVERY == 0 or step == steps:
            state = {"model": average.state_dict(), "raw": model.state_dict(), "step": step}
            state |= {"optimiser": optimiser.state_dict(), "hint": hint.state_dict()}
            save_state(state_file, {**state, "hint_optimiser": hint_optimiser.state_dict()})
        if step % PREVIEW_EVERY == 0 or step == steps:
            latents_made = preview_latents(average, list(PREVIEW_CAPTIONS))
            save_sheet(
                work / "sheets" / f"{name}-{step:06d}.png",
                decode(vae, unscaled(latents_made, cached)),
                columns=12,
            )
    return average


def preview_latents(model: Denoiser, texts: list[str]) -> Tensor:
    with torch.no_grad():
        context = model.context(tokenise(texts))
        negative = model.context(tokenise([""]))
    return sample(model.unet, context, negative, seeds=list(range(len(texts))))


def unscaled(latents: Tensor, cached: dict[str, Tensor]) -> Tensor:
    """From the U-Net's scale to what `decode` wants of a VAE that has no scaling baked in yet."""
    raw = latents * cached["deviation"][:, None, None] + cached["mean"][:, None, None]
    return raw * 0.18215
