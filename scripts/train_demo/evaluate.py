"""What a checkpoint can do, measured: retrieval of held-out wordings, and colours obeyed.

Works on the shipped files alone: the checkpoint, its yaml and the reference latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from .captions import article, held_out_captions, held_out_colours
from .concepts import COLOURED, COLOURS, HELD_OUT_PAIRS
from .sampling import decode, sample
from .unet import new_text_encoder, tokenise

# Lower scales follow the words less, higher ones shift colours.
CFG_SCALE = 3.0
TEXT_PREFIX = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Checkpoint:
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel

    @torch.no_grad()
    def latents(
        self, texts: list[str], seeds: list[int], steps: int = 20, cfg_scale: float = CFG_SCALE
    ) -> Tensor:
        """One latent per text and seed, in batches of 32."""
        negative = self.text(tokenise([""])).last_hidden_state
        made = []
        for first in range(0, len(texts), 32):
            chunk = texts[first : first + 32]
            context = self.text(tokenise(chunk)).last_hidden_state
            some = seeds[first : first + 32]
            made.append(sample(self.unet, context, negative, some, steps, cfg_scale))
        return torch.cat(made)

    def pictures(self, texts: list[str], seeds: list[int], cfg_scale: float = CFG_SCALE) -> np.ndarray:
        return decode(self.vae, self.latents(texts, seeds, cfg_scale=cfg_scale))


def load_checkpoint(path: Path) -> Checkpoint:
    """A single-file LDM checkpoint through diffusers' own loader, offline."""
    options = {"original_config": str(path.with_suffix(".yaml")), "local_files_only": True}
    text = new_text_encoder()
    weights = {
        name.removeprefix(TEXT_PREFIX): value.float()
        for name, value in load_file(path).items()
        if name.startswith(TEXT_PREFIX)
    }
    names = set(text.state_dict())
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    text.load_state_dict(weights if names >= set(weights) else bare)
    return Checkpoint(
        UNet2DConditionModel.from_single_file(str(path), **options).float().eval(),
        AutoencoderKL.from_single_file(str(path), **options).float().eval(),
        text.eval(),
    )


@dataclass(frozen=True)
class Reference:
    """The data's own pictures in the U-Net's latent scale, and what each shows."""

    latents: Tensor  # [n, 4, 8, 8]
    concepts: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Eight bits a number are plenty to tell pictures apart."""
        step = float(self.latents.abs().max()) / 127
        small = (self.latents / step).round().to(torch.int8).numpy()
        np.savez_compressed(path, latents=small, step=step, concepts=np.array(self.concepts))

    @classmethod
    def load(cls, path: Path) -> Reference:
        with np.load(path) as saved:
            latents = torch.from_numpy(saved["latents"]).float() * float(saved["step"])
            return cls(latents, tuple(str(concept) for concept in saved["concepts"]))

    def ranks(self, latents: Tensor, wanted: list[str]) -> list[int]:
        """For each latent, how many pictures are nearer than the first that shows what is wanted."""
        distances = torch.cdist(latents.flatten(1), self.latents.flatten(1))
        ranks = []
        for row, concept in zip(distances.argsort(dim=1).tolist(), wanted, strict=True):
            ranks.append(next(rank for rank, index in enumerate(row) if self.concepts[index] == concept))
        return ranks


def share_within(ranks: list[int], best: int) -> float:
    return sum(rank < best for rank in ranks) / len(ranks)


def retrieval(checkpoint: Checkpoint, reference: Reference, count: int = 200) -> dict[str, float]:
    """Rank-1 and rank-5 shares for held-out wordings, and for the same pictures with captions shuffled."""
    pairs = held_out_captions(count)
    texts, wanted = [text for text, _ in pairs], [concept for _, concept in pairs]
    latents = checkpoint.latents(texts, seeds=list(range(1000, 1000 + count)))
    ranks = reference.ranks(latents, wanted)
    order = np.random.default_rng(0).permutation(count)
    control = reference.ranks(latents, [wanted[i] for i in order])
    return {
        "captions": count,
        "rank 1": share_within(ranks, 1),
        "rank 5": share_within(ranks, 5),
        "shuffled, rank 1": share_within(control, 1),
        "shuffled, rank 5": share_within(control, 5),
    }


def named_colour(picture: np.ndarray) -> str:
    """The colour word nearest to the picture's main hue (and, for red and pink, its paleness)."""
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).astype(np.float32) / 255
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    weights = np.where(saturation > 0.2, saturation * value, 0)
    if weights.sum() == 0:
        return "none"
    histogram, _ = np.histogram(hue, bins=36, range=(0, 1), weights=weights)
    main = (int((histogram + np.roll(histogram, 1) + np.roll(histogram, -1)).argmax()) + 0.5) / 36
    return min(COLOURS, key=lambda name: abs((COLOURS[name][0] - main + 0.5) % 1 - 0.5))


def colours(checkpoint: Checkpoint) -> dict[str, float]:
    """How often the main hue is the one asked for: pairs of the data, and pairs never seen together."""
    seen = [
        (f"{article(colour)} {colour} {noun}", colour)
        for noun in COLOURED.values()
        for colour in COLOURS
        if (colour, noun) not in HELD_OUT_PAIRS
    ]
    unseen = [(text, colour) for text, _, colour in held_out_colours() for _ in range(4)]
    shares = {}
    for name, cases in (("seen pairs", seen), ("unseen pairs", unseen)):
        pictures = checkpoint.pictures([text for text, _ in cases], list(range(len(cases))))
        right = [named_colour(p) == colour for p, (_, colour) in zip(pictures, cases, strict=True)]
        shares[name] = sum(right) / len(right)
    return shares


def report(checkpoint: Checkpoint, reference: Reference, path: Path) -> dict[str, dict[str, float]]:
    figures = {"retrieval": retrieval(checkpoint, reference), "colours": colours(checkpoint)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1))
    return figures
