"""BLIP: a sentence about a picture (Li et al. 2022; salesforce/BLIP, BSD-3).

The network is transformers', under the names and with the settings of BLIP's own captioning file,
whose vision half has another epsilon than transformers' default. Words: those of bert-base-uncased.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from math import isqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration

from sd_cloud.engines.diffusion.interrogate.pixels import normalised
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.text_encoders import HEAD_CHANNELS, assign
from sd_cloud.engines.diffusion.weights_file import read_pickle
from sd_cloud.errors import BadRequest, CheckpointBroken

PROMPT = "a picture of"
PAD, SEPARATOR, BEGIN = 0, 102, 30522
SPECIAL = re.compile(r"\[(PAD|UNK|CLS|SEP|MASK)\]")
NAMES = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
"""The file's names of the vision half, and transformers'; those of the text half are the same."""


@functools.cache
def bert_words() -> tuple[str, ...]:
    """Words by token id (google-research/bert, ``uncased_L-12_H-768_A-12``, Apache 2.0)."""
    text = resources.files("sd_cloud.engines.diffusion").joinpath("data/bert_words.txt").read_text("utf-8")
    return tuple(text.splitlines())


class Captioner:
    def __init__(self, model: BlipForConditionalGeneration) -> None:
        self.model = model

    @torch.no_grad()
    def caption(self, image: Image.Image, options: Options) -> str:
        """A sentence, greedily or by beams as ``interrogate_clip_num_beams`` says. Raises BadRequest."""
        side = int(self.model.config.vision_config.image_size)
        weight = next(self.model.parameters())
        pixels = normalised(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)).to(weight)
        seen = self.model.vision_model(pixels).last_hidden_state
        words = {word: number for number, word in enumerate(bert_words())}
        prompt = torch.tensor([[BEGIN, *(words[word] for word in PROMPT.split())]], device=weight.device)
        found = self.model.text_decoder.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=weight.device),
            eos_token_id=SEPARATOR,
            pad_token_id=PAD,
            do_sample=False,
            num_beams=_at_least_1(options, "interrogate_clip_num_beams"),
            min_length=_at_least_1(options, "interrogate_clip_min_length"),
            max_length=max(_at_least_1(options, "interrogate_clip_max_length"), prompt.shape[1] + 1),
        )
        return sentence(found[0].tolist())[len(PROMPT) + 1 :]


def _at_least_1(options: Options, name: str) -> int:
    value = options.whole(name)
    if value < 1:
        raise BadRequest(f"must be at least 1, not {value}", field=name)
    return value


def sentence(tokens: Sequence[int]) -> str:
    """Words of token ids, put together as BERT's tokenizer does, without special ones."""
    words = bert_words()
    known = [words[token] for token in tokens if token < len(words)]  # above are begin and encode
    text = " ".join(word for word in known if not SPECIAL.fullmatch(word)).replace(" ##", "")
    for before, after in ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")):
        text = text.replace(before, after)
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def load_captioner(path: Path, dtype: torch.dtype) -> Captioner:
    """Raises CheckpointBroken."""
    content = read_pickle(path)
    own = content.get("model") if isinstance(content, dict) else None
    if not isinstance(own, dict):
        raise CheckpointBroken(f"{path.name} is not BLIP's file: it has no 'model'")
    state = {}
    for key, value in own.items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        if not key.endswith("position_ids"):
            state[key] = value
    with torch.device("meta"):
        model = BlipForConditionalGeneration(_config(own, path.name))
    assign(model, state, path.name, "network", dtype)
    places = state["text_decoder.bert.embeddings.position_embeddings.weight"].shape[0]
    model.text_decoder.bert.embeddings.position_ids = torch.arange(places)[None]
    count = model.vision_model.embeddings.position_embedding.shape[1]
    if hasattr(model.vision_model.embeddings, "position_ids"):
        model.vision_model.embeddings.position_ids = torch.arange(count)[None]
    return Captioner(model.eval().requires_grad_(False))


def _config(own: Mapping[str, Tensor], name: str) -> BlipConfig:
    """Widths and depths from the tensors. Raises CheckpointBroken."""
    try:
        width, patch = (own["visual_encoder.patch_embed.proj.weight"].shape[one] for one in (0, 2))
        side = isqrt(own["visual_encoder.pos_embed"].shape[1] - 1) * patch
        wide = own["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0]
        vocabulary, text_width = own["text_decoder.bert.embeddings.word_embeddings.weight"].shape
        places = own["text_decoder.bert.embeddings.position_embeddings.weight"].shape[0]
        text_wide = own["text_decoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
    except KeyError as error:
        raise CheckpointBroken(f"{name} is not BLIP's captioning file: {error} is missing") from error
    blocks = {key.split(".")[2] for key in own if key.startswith("visual_encoder.blocks.")}
    layers = {key.split(".")[4] for key in own if key.startswith("text_decoder.bert.encoder.layer.")}
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": wide,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": width // HEAD_CHANNELS,
            "image_size": side,
            "patch_size": patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "encoder_hidden_size": width,
            "intermediate_size": text_wide,
            "num_hidden_layers": len(layers),
            "num_attention_heads": text_width // HEAD_CHANNELS,
            "max_position_embeddings": places,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "bos_token_id": BEGIN,
            "pad_token_id": PAD,
            "sep_token_id": SEPARATOR,
            "eos_token_id": SEPARATOR,
        },
    )
