"""CLIP-L and OpenCLIP: token ids in, hidden states out, at the layers each family takes.

Both run on transformers' CLIPTextModel. Widths and layers come from the tensors; every known
encoder has heads of 64 channels. CLIP-L uses ``quick_gelu``, OpenCLIP ``gelu``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sd_cloud.engines.diffusion.tokenizer import END, VOCABULARY_SIZE, clip_tokenizer
from sd_cloud.errors import CheckpointBroken

HEAD_CHANNELS = 64
Kind = Literal["clip_l", "open_clip"]


@dataclass(frozen=True)
class Placed:
    """Vectors of a textual inversion that take the place of tokens from ``offset`` on."""

    row: int
    offset: int
    vectors: Tensor


class TextEncoder:
    """One text encoder of a checkpoint.

    ``pad`` fills a chunk after the first end token. ``projection`` (OpenCLIP) is ``x @ W``.
    """

    def __init__(self, kind: Kind, model: CLIPTextModel, projection: nn.Parameter | None = None) -> None:
        self.kind: Kind = kind
        self.model = model
        self.projection = projection
        self.pad = END if kind == "clip_l" else 0

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    def tokenize(self, text: str) -> list[int]:
        return clip_tokenizer().encode(text, unescape_html=self.kind == "open_clip")

    def hidden(self, ids: Tensor, layers: int, placed: Sequence[Placed] = ()) -> Tensor:
        """Hidden states [B, T, width] after the first ``layers`` layers, without the final norm."""
        return self.continue_from(self.embed(ids, placed), 0, layers)

    def embed(self, ids: Tensor, placed: Sequence[Placed] = ()) -> Tensor:
        embeddings = self.model.embeddings
        tokens = embeddings.token_embedding(ids)
        for one in placed:
            room = tokens.shape[1] - one.offset - 1
            count = min(room, one.vectors.shape[0])
            tokens[one.row, one.offset + 1 : one.offset + 1 + count] = one.vectors[:count].to(tokens)
        positions: Tensor = embeddings.position_embedding.weight[: ids.shape[1]]
        embedded: Tensor = tokens + positions
        return embedded

    def continue_from(self, states: Tensor, first: int, last: int) -> Tensor:
        """Run layers ``first`` to ``last`` (exclusive) on hidden states."""
        length = states.shape[1]
        mask = torch.full((length, length), float("-inf"), device=states.device, dtype=states.dtype).triu(1)
        for layer in self.model.encoder.layers[first:last]:
            out = layer(states, attention_mask=mask[None, None])
            states = out[0] if isinstance(out, tuple) else out
        return states

    def normed(self, states: Tensor) -> Tensor:
        normed: Tensor = self.model.final_layer_norm(states)
        return normed

    def pooled(self, ids: Tensor, last: Tensor) -> Tensor:
        """Projected state [B, width] at the end token, from the last layer's states."""
        assert self.projection is not None
        ends = ids.argmax(dim=-1)
        picked = self.normed(last)[torch.arange(ids.shape[0], device=ids.device), ends]
        return picked @ self.projection


def build_text_encoder(
    tensors: Mapping[str, Tensor], prefix: str, name: str, dtype: torch.dtype
) -> TextEncoder:
    """A text encoder from a checkpoint's tensors below ``prefix``. Raises CheckpointBroken."""
    own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    if "transformer.resblocks.0.ln_1.weight" in own:
        state, projection = from_open_clip(own, name)
        kind: Kind = "open_clip"
    else:
        state, projection, kind = _from_clip_l(own), None, "clip_l"
    try:
        width = state["final_layer_norm.weight"].shape[0]
        wide = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
        positions, vocabulary = (
            state[f"embeddings.{key}_embedding.weight"].shape[0] for key in ("position", "token")
        )
    except KeyError as error:
        raise CheckpointBroken(
            f"{name}: its text encoder is incomplete, {prefix}… {error} is missing"
        ) from error
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=max(width // HEAD_CHANNELS, 1),
        max_position_embeddings=positions,
        hidden_act="quick_gelu" if kind == "clip_l" else "gelu",
        eos_token_id=END,
        attn_implementation="sdpa",
    )
    if vocabulary != VOCABULARY_SIZE:
        raise CheckpointBroken(
            f"{name}: its text encoder knows {vocabulary} tokens; CLIP has {VOCABULARY_SIZE}"
        )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    assign(model, state, name, "text encoder", dtype)
    model.embeddings.position_ids = torch.arange(positions)[None]
    weight = None if projection is None else nn.Parameter(projection.to(dtype), requires_grad=False)
    return TextEncoder(kind, model.eval().requires_grad_(False), weight)


def assign(module: nn.Module, state: Mapping[str, Tensor], name: str, part: str, dtype: torch.dtype) -> None:
    """Give a module on the meta device its weights. Raises CheckpointBroken, naming what does not fit."""
    # Contiguous and apart from the file's mapping: the file may be replaced while we live.
    owned = {
        key: value.to(dtype, copy=True).contiguous() for key, value in state.items() if value is not None
    }
    try:
        result = module.load_state_dict(owned, strict=False, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointBroken(f"{name}: its {part} does not fit its layout: {' '.join(lines)}") from error
    if result.missing_keys:
        few = ", ".join(result.missing_keys[:3])
        raise CheckpointBroken(f"{name}: its {part} lacks {len(result.missing_keys)} tensors: {few}, …")
    if result.unexpected_keys:
        few = ", ".join(result.unexpected_keys[:3])
        raise CheckpointBroken(f"{name}: its {part} has tensors that are not known: {few}, …")


def _from_clip_l(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' own names; older files lack the ``text_model.`` in front."""
    state = {re.sub(r"^text_model\.", "", key): value for key, value in own.items()}
    left_out = ("embeddings.position_ids", "text_projection.weight", "logit_scale")
    return {key: value for key, value in state.items() if key not in left_out}


OPEN_CLIP_NAMES = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
)


def from_open_clip(own: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """OpenCLIP's names (mlfoundations/open_clip, ``transformer.py``) to transformers'.

    ``attn.in_proj`` holds q, k and v one below the other.
    """
    state = open_clip_names(own)
    for old, new in (
        ("ln_final.weight", "final_layer_norm.weight"),
        ("ln_final.bias", "final_layer_norm.bias"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ):
        if old not in own:
            raise CheckpointBroken(f"{name}: its text encoder is incomplete, {old} is missing")
        state[new] = own[old]
    return state, own.get("text_projection")


def open_clip_names(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layers of a transformer of OpenAI's or OpenCLIP's under transformers' names."""
    state: dict[str, Tensor] = {}
    for key, value in own.items():
        found = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if found is None:
            continue
        layer, rest = f"encoder.layers.{found[1]}.", found[2]
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = rest.rsplit("_", 1)[1]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{layer}self_attn.{letter}_proj.{kind}"] = part
            continue
        for old, new in OPEN_CLIP_NAMES:
            if rest.startswith(old):
                state[layer + new + rest[len(old) :]] = value
    return state
