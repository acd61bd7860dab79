"""CLIP ViT-L/14: which lines of a list fit a picture best (Radford et al. 2021; openai/CLIP, MIT)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from sd_cloud.engines.diffusion.interrogate.pixels import middle_square, normalised
from sd_cloud.engines.diffusion.interrogate.scripted import is_scripted, read_scripted_tensors
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.text_encoders import (
    HEAD_CHANNELS,
    TextEncoder,
    assign,
    from_open_clip,
    open_clip_names,
)
from sd_cloud.engines.diffusion.tokenizer import END, START
from sd_cloud.engines.diffusion.weights_file import read_tensors
from sd_cloud.errors import CheckpointBroken

TOGETHER = 64
"""Lines that are encoded at once."""
LISTS_KEPT = 16
TOP = re.compile(r"\.top(\d+)$")


@dataclass(frozen=True)
class Lines:
    """One list: a file of the ``interrogate`` folder. ``NAME.top3.txt`` gives its three best lines."""

    name: str
    lines: tuple[str, ...]

    @property
    def count(self) -> int:
        found = TOP.search(self.name)
        return 1 if found is None else int(found[1])


def read_lists(folder: Path, options: Options) -> list[Lines]:
    """The lists by name, without those of ``interrogate_clip_skip_categories``, cut to the limit."""
    left_out = options.get("interrogate_clip_skip_categories") or ()
    limit = options.whole("interrogate_clip_dict_limit") or None
    found = []
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in left_out:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
            found.append(Lines(path.stem, tuple(lines[:limit])))
    return [one for one in found if one.lines]


@dataclass
class Ranker:
    """``vision_projection`` and the text encoder's bring both halves to one space."""

    vision: CLIPVisionModel
    vision_projection: Tensor
    text: TextEncoder
    _features: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)

    def to(self, device: torch.device | str) -> None:
        self.vision.to(device)
        self.text.model.to(device)
        self.vision_projection = self.vision_projection.to(device)
        assert self.text.projection is not None
        self.text.projection = nn.Parameter(self.text.projection.to(device), requires_grad=False)

    @torch.no_grad()
    def look(self, image: Image.Image) -> Tensor:
        """[1, width] of a picture, of length 1."""
        side = int(self.vision.config.image_size)
        pixels = normalised(middle_square(image.convert("RGB"), side)).to(self.vision_projection)
        seen: Tensor = self.vision(pixels).pooler_output @ self.vision_projection
        return _unit(seen)

    @torch.no_grad()
    def best(self, seen: Tensor, lines: Lines) -> list[tuple[str, float]]:
        """The lines that fit best, with their share of all that fits (0..1)."""
        shares = (100.0 * seen @ self._texts(lines).to(seen).T).softmax(dim=-1)[0].float().cpu()
        top = shares.topk(min(lines.count, len(lines.lines)))
        return [
            (lines.lines[place], share)
            for share, place in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]

    def _texts(self, lines: Lines) -> Tensor:
        """[lines, width], kept for the next picture."""
        if lines not in self._features:
            parts = [
                self._encoded(lines.lines[start : start + TOGETHER])
                for start in range(0, len(lines.lines), TOGETHER)
            ]
            self._features[lines] = torch.cat(parts)
            while len(self._features) > LISTS_KEPT:
                self._features.popitem(last=False)
        self._features.move_to_end(lines)
        return self._features[lines]

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        places = self.text.model.embeddings.position_embedding.weight.shape[0]
        device = self.vision_projection.device
        ids = torch.tensor([_tokens(self.text, text, places) for text in texts], device=device)
        return _unit(self.text.pooled(ids, self.text.hidden(ids, self.text.layers))).cpu()


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / features.norm(dim=-1, keepdim=True)
    return unit


def _tokens(text: TextEncoder, line: str, places: int) -> list[int]:
    """Cut to what the encoder takes, filled up with zeros."""
    tokens = [START, *text.tokenize(line)[: places - 2], END]
    return tokens + [0] * (places - len(tokens))


def load_ranker(path: Path, dtype: torch.dtype) -> Ranker:
    """From OpenAI's file, a TorchScript archive whose code is left alone. Raises CheckpointBroken."""
    tensors = read_scripted_tensors(path) if is_scripted(path) else read_tensors(path)
    try:
        return _built(tensors, path.name, dtype)
    except KeyError as error:
        raise CheckpointBroken(f"{path.name} is not CLIP's file: {error} is missing") from error


def _built(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Ranker:
    shared = {"attn_implementation": "sdpa", "hidden_act": "quick_gelu"}
    state, projection = _vision_state(tensors)
    width, patch = (state["embeddings.patch_embedding.weight"].shape[one] for one in (0, 2))
    places = state["embeddings.position_embedding.weight"].shape[0]
    with torch.device("meta"):
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                **shared,
                hidden_size=width,
                intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_depth(state),
                num_attention_heads=max(width // HEAD_CHANNELS, 1),
                image_size=isqrt(places - 1) * patch,
                patch_size=patch,
            )
        )
    assign(vision, state, name, "vision network", dtype)
    vision.embeddings.position_ids = torch.arange(places)[None]
    text = {key: value for key, value in tensors.items() if not key.startswith("visual.")}
    return Ranker(vision.eval().requires_grad_(False), projection.to(dtype), _text(text, name, dtype, shared))


def _vision_state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The vision half under transformers' names, and its projection."""
    own = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    state = open_clip_names(own)
    for old, new in (
        ("class_embedding", "embeddings.class_embedding"),
        ("conv1.weight", "embeddings.patch_embedding.weight"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("ln_pre.weight", "pre_layrnorm.weight"),
        ("ln_pre.bias", "pre_layrnorm.bias"),
        ("ln_post.weight", "post_layernorm.weight"),
        ("ln_post.bias", "post_layernorm.bias"),
    ):
        state[new] = own[old]
    return state, own["proj"]


def _text(own: Mapping[str, Tensor], name: str, dtype: torch.dtype, shared: Mapping[str, str]) -> TextEncoder:
    state, projection = from_open_clip(own, name)
    if projection is None:
        raise CheckpointBroken(f"{name} is not CLIP's file: text_projection is missing")
    vocabulary, width = state["embeddings.token_embedding.weight"].shape
    places = state["embeddings.position_embedding.weight"].shape[0]
    with torch.device("meta"):
        model = CLIPTextModel(
            CLIPTextConfig(
                **shared,
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_depth(state),
                num_attention_heads=max(width // HEAD_CHANNELS, 1),
                max_position_embeddings=places,
                eos_token_id=END,
            )
        )
    assign(model, state, name, "text network", dtype)
    model.embeddings.position_ids = torch.arange(places)[None]
    weight = nn.Parameter(projection.to(dtype), requires_grad=False)
    return TextEncoder("open_clip", model.eval().requires_grad_(False), weight)


def _depth(state: Mapping[str, Tensor]) -> int:
    return 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
