"""The text encoders of Stable Diffusion 3: CLIP-G under transformers' names, T5, and where they are.

T5: Raffel et al. 2020 (arXiv 1910.10683), the encoder of v1.1 XXL. Its vocabulary in ``data/`` is the
``tokenizer.json`` that PyPI's diffsynth 1.1.9 (Apache-2.0, as T5 itself) has of SD 3's ``tokenizer_3``,
byte for byte.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from sd_cloud.engines.diffusion.prompt_grammar import Span, parse_emphasis
from sd_cloud.engines.diffusion.text_encoders import HEAD_CHANNELS, TextEncoder, assign
from sd_cloud.engines.diffusion.tokenizer import END
from sd_cloud.engines.diffusion.weights_file import Tensors, read_tensors
from sd_cloud.errors import CheckpointBroken

FOLDER = "CLIP"
T5_END = 1
T5_PAD = 0


@dataclass(frozen=True)
class TextFiles:
    """Text encoders in files of their own, in ``models/CLIP`` or beside the checkpoint."""

    looked_in: Path
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5: Path | None = None

    @classmethod
    def beside(cls, checkpoint: Path) -> TextFiles:
        """``CLIP`` in the nearest folder above the checkpoint that has one, then its own folder."""
        above = [parent / FOLDER for parent in checkpoint.parents]
        folder = next((one for one in above if one.is_dir()), above[min(1, len(above) - 1)])

        def first(pattern: str) -> Path | None:
            files = (found for place in (folder, checkpoint.parent) for found in sorted(place.glob(pattern)))
            return next(files, None)

        return cls(
            looked_in=folder,
            clip_l=first("clip_l.safetensors"),
            clip_g=first("clip_g.safetensors"),
            t5=first("t5xxl*.safetensors"),
        )

    def or_own(self, tensors: Tensors, prefix: str, which: str, name: str) -> tuple[Tensors, str]:
        """The encoder's tensors and their prefix: the checkpoint's own, else the file's.

        Raises CheckpointBroken, naming the file that would be needed.
        """
        if any(key.startswith(prefix) for key in tensors):
            return tensors, prefix
        path: Path | None = getattr(self, which)
        if path is None:
            raise CheckpointBroken(
                f"{name} has no text encoder {which}, and there is no {which}.safetensors in {self.looked_in}"
            )
        return read_tensors(path), ""


def build_clip_g(tensors: Mapping[str, Tensor], prefix: str, name: str, dtype: torch.dtype) -> TextEncoder:
    """CLIP-G with transformers' keys; ``text_projection`` is a Linear's weight. Raises CheckpointBroken."""
    own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    state = {key.removeprefix("text_model."): value for key, value in own.items()}
    try:
        projection = state.pop("text_projection.weight").T
        width = state["final_layer_norm.weight"].shape[0]
        config = CLIPTextConfig(
            vocab_size=state["embeddings.token_embedding.weight"].shape[0],
            hidden_size=width,
            intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=1
            + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")),
            num_attention_heads=max(width // HEAD_CHANNELS, 1),
            max_position_embeddings=state["embeddings.position_embedding.weight"].shape[0],
            hidden_act="gelu",
            eos_token_id=END,
            attn_implementation="sdpa",
        )
    except KeyError as error:
        raise CheckpointBroken(
            f"{name}: its text encoder is incomplete, {prefix}… {error} is missing"
        ) from error
    for left_out in ("embeddings.position_ids", "logit_scale"):
        state.pop(left_out, None)
    with torch.device("meta"):
        model = CLIPTextModel(config)
    assign(model, state, name, "text encoder CLIP-G", dtype)
    model.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    weight = nn.Parameter(projection.to(dtype).contiguous(), requires_grad=False)
    return TextEncoder("open_clip", model.eval().requires_grad_(False), weight)


class T5:
    """T5's encoder with its tokenizer."""

    def __init__(self, model: T5EncoderModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int, *, emphasis: bool) -> Tensor:
        """[N, length, width]; texts are cut or padded to ``length`` tokens, weights in them ignored."""
        device = self.model.shared.weight.device
        ids = torch.tensor([self.ids(text, length, emphasis=emphasis) for text in texts], device=device)
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states

    def ids(self, text: str, length: int, *, emphasis: bool) -> list[int]:
        """Token ids of the words, brackets and weights taken out, an end token, and padding."""
        spans = parse_emphasis(text) if emphasis else [Span(text)]
        found: list[int] = []
        for span in spans:
            if not span.is_break:
                found += self.tokenizer.encode(span.text, add_special_tokens=False).ids
        found.append(T5_END)
        return (found + [T5_PAD] * (length - len(found)))[:length]


def build_t5(tensors: Mapping[str, Tensor], prefix: str, name: str, dtype: torch.dtype) -> T5:
    """T5's encoder from a checkpoint's tensors. Raises CheckpointBroken, naming the file."""
    own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    state = t5_state(own)
    with torch.device("meta"):
        model = T5EncoderModel(t5_config(state, name))
    assign(model, state, name, "text encoder T5", dtype)
    model.encoder.embed_tokens.weight = model.shared.weight  # one matrix under two names
    if dtype != torch.float32:
        _compute_wide(model)
    return T5(model.eval().requires_grad_(False), t5_tokenizer())


class _WideLinear(nn.Linear):
    """Computes in its input's precision, whatever its weights are kept in."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


def _compute_wide(model: T5EncoderModel) -> None:
    """Keep most weights in half precision and compute in float32, as the webui: T5 overflows otherwise.

    transformers takes the precision of norms, feed-forwards and positions from their weights: those are
    widened.
    """
    for name, module in model.named_modules():
        if name.endswith(("layer_norm", ".wo", "relative_attention_bias")):
            module.float()
        elif isinstance(module, nn.Linear):
            module.__class__ = _WideLinear


@functools.cache
def t5_tokenizer() -> Tokenizer:
    """T5's, splitting text as the webui's does, which transformers makes of the SentencePiece model.

    That one keeps spaces at the ends, and has no special tokens that text could name.
    """
    packed = resources.files(__package__).joinpath("data/t5_tokenizer.json.gz").read_bytes()
    content = json.loads(gzip.decompress(packed))
    characters = content["normalizer"]["normalizers"][0]
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"]["normalizers"] = [characters, spaces]
    content["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(content))


def t5_state(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both names of the one embedding matrix filled in; the decoder, where a file has it, left out."""
    state = {key: value for key, value in own.items() if key.startswith(("encoder.", "shared."))}
    names = ("shared.weight", "encoder.embed_tokens.weight")
    for one, other in (names, names[::-1]):
        if one in state:
            state.setdefault(other, state[one])
    return state


def t5_config(state: Mapping[str, Tensor], name: str) -> T5Config:
    """Widths from the tensors; v1.1's gated GELU."""
    first = "encoder.block.0.layer."
    try:
        vocabulary, width = state["shared.weight"].shape
        buckets, heads = state[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
        return T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=state[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
            d_ff=state[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
            num_layers=1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.block.")),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    except KeyError as error:
        raise CheckpointBroken(f"{name}: its text encoder T5 is incomplete, {error} is missing") from error
