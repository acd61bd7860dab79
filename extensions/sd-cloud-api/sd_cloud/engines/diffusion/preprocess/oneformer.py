"""Segments by OneFormer: Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation"
(arXiv 2211.06220), with Swin-L (Liu et al., arXiv 2103.14030) before it.

transformers' network with the weights of ``250_16_swin_l_oneformer_ade20k_160k.pth`` and
``150_16_swin_l_oneformer_coco_100ep.pth``, which have the names of the authors' code (on Detectron2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import OneFormerConfig, OneFormerModel, SwinConfig
from transformers.models.swin.modeling_swin import SwinRelativePositionBias

from sd_cloud.engines.diffusion.preprocess import palettes
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.segment_drawing import drawn
from sd_cloud.engines.diffusion.tokenizer import END, START, clip_tokenizer


@dataclass(frozen=True)
class Kind:
    """``shortest`` and ``longest``: px that the sides are brought to."""

    palette: NDArray[np.uint8]
    shortest: int
    longest: int


ADE20K = Kind(palettes.ADE20K, 640, 2560)
COCO = Kind(palettes.COCO, 800, 1333)

TASK, TASK_TOKENS = "The task is semantic", 77
MULTIPLE_PX = 32
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB
SAMPLED = 3 * 4 * 2  # numbers that say where a head looks: levels, points, x and y

# What training needs, and what is computed here.
UNUSED = re.compile(r"(text_encoder|text_projector|prompt_ctx|criterion)\.|.*relative_position_index$")
BACKBONE, DECODER = "pixel_level_module.encoder.", "transformer_module.decoder."
PIXELS = "pixel_level_module.decoder."
NAMES = (
    (r"^backbone\.patch_embed\.proj\.", BACKBONE + "swin.embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_embed\.norm\.", BACKBONE + "swin.embeddings.norm."),
    (r"^backbone\.layers\.", BACKBONE + "swin.encoder.layers."),
    (r"(swin.*)\.norm1\.", r"\1.layernorm_before."),
    (r"(swin.*)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.relative_position", ".attention.relative_position_bias.relative_position"),
    (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", PIXELS),
    (r"\.input_proj\.", ".input_projections."),
    (r"\.mask_features\.", ".mask_projection."),
    (r"\.(adapter_1|layer_1)\.(weight|bias)$", r".\1.0.\2"),
    (r"\.(adapter_1|layer_1)\.norm\.", r".\1.1."),
    (r"(decoder\.encoder.*)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.encoder.*)\.norm2\.", r"\1.final_layer_norm."),
    (r"(decoder\.encoder.*)\.linear(\d)\.", r"\1.fc\2."),
    (r"^sem_seg_head\.predictor\.query_embed\.", "transformer_module.queries_embedder."),
    (r"^sem_seg_head\.predictor\.level_embed\.", "transformer_module.level_embed."),
    (r"^sem_seg_head\.predictor\.class_transformer\.", DECODER + "query_transformer."),
    (r"^sem_seg_head\.predictor\.class_input_proj\.", DECODER + "query_input_projection."),
    (
        r"^sem_seg_head\.predictor\.transformer_(self|cross)_attention_layers\.(\d+)\.",
        DECODER + r"layers.\2.\1_attn.",
    ),
    (r"^sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.", DECODER + r"layers.\1.ffn."),
    (r"^sem_seg_head\.predictor\.", DECODER),
    (r"^task_mlp\.", "task_encoder.task_mlp."),
    (r"(mask_embed|task_mlp)\.layers\.(\d)\.", r"\1.layers.\2.0."),
)
"""The published names and transformers', in this order."""
NORMS = re.compile(r"^backbone\.norm(\d)\.")
"""Those of the backbone's four levels: from 0 there, from 1 here."""
JOINED = re.compile(r"\.(attn\.qkv\.|self_attn\.self_attn\.in_proj_)(weight|bias)$")
"""Query, key and value in one."""


def in_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if UNUSED.match(key):
            continue
        name = NORMS.sub(lambda found: f"{BACKBONE}hidden_states_norms.stage{int(found[1]) + 1}.", key)
        for pattern, there in NAMES:
            name = re.sub(pattern, there, name)
        joined = JOINED.search(name)
        if joined:
            within = "attention" if joined[1].startswith("attn") else "self_attn.self_attn"
            for part, share in zip("qkv", value.chunk(3), strict=True):
                made[f"{name[: joined.start()]}.{within}.{part}_proj.{joined[2]}"] = share
        else:
            made[name] = value
    return made


def network(state: Mapping[str, Tensor]) -> OneFormerModel:
    """Classes and masks from normalised RGB pixels, sides multiples of 32.

    How wide and deep it is, and how many things it looks for, comes from the file.
    """
    offsets = state[PIXELS + "encoder.layers.0.self_attn.sampling_offsets.weight"]
    levels = [_count(state, f"{BACKBONE}swin.encoder.layers.{level}.blocks.") for level in range(4)]
    tables = (
        state[
            f"{BACKBONE}swin.encoder.layers.{level}.blocks.0.attention"
            ".relative_position_bias.relative_position_bias_table"
        ]
        for level in range(4)
    )
    swin = SwinConfig(
        embed_dim=state[BACKBONE + "swin.embeddings.norm.weight"].shape[0],
        depths=levels,
        num_heads=[table.shape[1] for table in tables],
        window_size=12,
        out_features=[f"stage{level}" for level in range(1, 5)],
    )
    queries, width = state["transformer_module.queries_embedder.weight"].shape
    config = OneFormerConfig(
        backbone_config=swin,
        num_queries=queries,
        num_labels=state[DECODER + "class_embed.weight"].shape[0] - 1,
        hidden_dim=width,
        conv_dim=width,
        mask_dim=width,
        num_attention_heads=offsets.shape[0] // SAMPLED,
        encoder_feedforward_dim=state[PIXELS + "encoder.layers.0.fc1.weight"].shape[0],
        dim_feedforward=state[DECODER + "layers.0.ffn.linear1.weight"].shape[0],
        encoder_layers=_count(state, PIXELS + "encoder.layers."),
        decoder_layers=_count(state, DECODER + "layers.") + 1,
        query_dec_layers=_count(state, DECODER + "query_transformer.decoder.layers."),
    )
    made = OneFormerModel(config)
    made.pixel_level_module.encoder.swin.layernorm = nn.Identity()  # nothing reads what it gives
    for part in made.modules():
        if isinstance(part, SwinRelativePositionBias):  # no file holds it: made where it can be read
            with torch.device("cpu"):
                part.relative_position_index = part._create_relative_position_index().flatten()
    return made


def _count(state: Mapping[str, Tensor], before: str) -> int:
    """How many layers have names that begin so."""
    return len({key[len(before) :].split(".")[0] for key in state if key.startswith(before)})


def task_tokens() -> Tensor:
    """[1, 77]"""
    tokens = [START, *clip_tokenizer().encode(TASK), END]
    return torch.tensor([tokens + [0] * (TASK_TOKENS - len(tokens))], dtype=torch.float32)


def segments(bench: Bench, image: Pixels, kind: Kind) -> Pixels:
    return drawn(classes(bench, image, kind).cpu().numpy(), kind.palette)


def classes(bench: Bench, image: Pixels, kind: Kind) -> Tensor:
    """The class of each pixel, [H, W]."""
    height, width = image.shape[:2]
    size = size_seen(width, height, kind)
    seen = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    net = bench.net_of_shape(network, in_transformers_names)
    pixels = bench.pixels((seen - np.array(MEAN, np.float32)) / np.array(STD, np.float32))
    padded = functional.pad(pixels, (0, -size[0] % MULTIPLE_PX, 0, -size[1] % MULTIPLE_PX))
    found = net(pixel_values=padded, task_inputs=task_tokens().to(padded.device))
    masks = functional.interpolate(
        found.transformer_decoder_mask_predictions, padded.shape[2:], mode="bilinear", align_corners=False
    )
    masks = masks[:, :, : size[1], : size[0]]
    masks = functional.interpolate(masks, (height, width), mode="bilinear", align_corners=False).sigmoid()
    shares = found.transformer_decoder_class_predictions.softmax(dim=-1)[:, :, :-1]  # the last is none
    return torch.einsum("bqc,bqhw->bchw", shares, masks)[0].argmax(dim=0)


def size_seen(width: int, height: int, kind: Kind) -> tuple[int, int]:
    """Width and height in px."""
    factor = min(kind.shortest / min(width, height), kind.longest / max(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)
