"""ZoeDepth: Bhat et al., "Zero-shot Transfer by Combining Relative and Metric Depth" (arXiv 2302.12288).

transformers' network with the weights of ``ZoeD_M12_N.pt``, which has the names of the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of

NET_PX = (384, 512)  # height and width that one side of the picture is brought to
MULTIPLE_PX = 32
IMAGE_PX = 384
PAD = 3  # times the root of half the side, in px
NEAREST, FARTHEST = 2, 85  # percentiles of the depth: white and black
BINS = 64

# What classification needs, and what is computed here.
UNUSED = re.compile(r"model\.(fc_norm|head|norm)\.|relative_position_index|log_binomial_transform\.")
MODEL, SCRATCH = r"core\.core\.pretrained\.", r"core\.core\.scratch\."
NAMES = (
    (MODEL + r"model\.patch_embed\.proj\.", "backbone.beit.embeddings.patch_embeddings.projection."),
    (MODEL + r"model\.cls_token", "backbone.beit.embeddings.cls_token"),
    (MODEL + r"model\.blocks\.", "backbone.beit.layers."),
    (r"\.gamma_(\d)", r".lambda_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.([qv])_bias", r".attention.\1_proj.bias"),
    (r"\.attn\.relative_position", ".relative_position_bias.relative_position"),
    (SCRATCH + r"output_conv\.0\.", "relative_head.conv1."),
    (SCRATCH + r"output_conv\.2\.", "relative_head.conv2."),
    (SCRATCH + r"output_conv\.4\.", "relative_head.conv3."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit(\d)\.conv(\d)\.", r".residual_layer\1.convolution\2."),
    (r"^(conv2|seed_|projectors|attractors|conditional)", r"metric_head.\1"),
    (r"\._net\.0\.", ".conv1."),
    (r"\._net\.2\.", ".conv2."),
)
"""The published names and transformers', in part; those with a level's number are in `_of_level`."""


def in_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        if UNUSED.search(key):
            continue
        name = _of_level(key)
        for pattern, there in NAMES:
            name = re.sub(pattern, there, name)
        if name.endswith(".attn.qkv.weight"):
            for part, weight in zip("qkv", value.chunk(3), strict=True):
                made[name.replace("attn.qkv", f"attention.{part}_proj")] = weight
        else:
            made[name] = value
    return made


def _of_level(key: str) -> str:
    """Levels are counted from 1 there and from 0 here, and fused the coarsest first."""
    stage = "neck.reassemble_stage."
    for pattern, there in (
        (MODEL + r"act_postprocess(\d)\.0\.project", "{stage}readout_projects.{number}"),
        (MODEL + r"act_postprocess(\d)\.3", "{stage}layers.{number}.projection"),
        (MODEL + r"act_postprocess(\d)\.4", "{stage}layers.{number}.resize"),
        (SCRATCH + r"layer(\d)_rn", "neck.convs.{number}"),
        (SCRATCH + r"refinenet(\d)", "neck.fusion_stage.layers.{coarse}"),
    ):
        found = re.match(pattern, key)
        if found:
            number = int(found[1]) - 1
            return there.format(stage=stage, number=number, coarse=3 - number) + key[found.end() :]
    return key


def network(state: Mapping[str, Tensor]) -> ZoeDepthForDepthEstimation:
    """Depth [1, H, W] in metres from RGB pixels in -1..1, sides multiples of 32.

    How wide the transformer is comes from the file.
    """
    first = "backbone.beit.layers.0."
    table = state[first + "relative_position_bias.relative_position_bias_table"]
    inner, width = state[first + "mlp.fc1.weight"].shape
    layers = len({key.split(".")[3] for key in state if key.startswith("backbone.beit.layers.")})
    backbone = BeitConfig(
        image_size=IMAGE_PX,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=table.shape[1],
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=[f"stage{layers * part // 4}" for part in range(1, 5)],
    )
    levels = [state[f"neck.convs.{place}.weight"].shape[1] for place in range(4)]
    made = ZoeDepthForDepthEstimation(ZoeDepthConfig(backbone_config=backbone, neck_hidden_sizes=levels))
    # Constants that no file holds: made where they can be read, not on the meta device.
    binomial = made.metric_head.conditional_log_binomial.log_binomial_transform
    binomial.k_idx = torch.arange(BINS, device="cpu").view(1, -1, 1, 1)
    binomial.k_minus_1 = torch.tensor([BINS - 1], device="cpu").view(1, -1, 1, 1)
    return made


def depth(bench: Bench, image: Pixels) -> Pixels:
    """Near is white."""
    net = bench.net_of_shape(network, in_transformers_names)
    pixels = bench.pixels(image) / 255.0
    # Twice, once from left to right, as the authors do for the better edges.
    both = _metres(net, pixels) + _metres(net, pixels.flip(3)).flip(3)
    found = (both / 2)[0, 0].float().cpu().numpy()
    near, far = (np.percentile(found, percent) for percent in (NEAREST, FARTHEST))
    found -= near
    found /= max(far - near, 1e-12)
    return bytes_of(1.0 - found)


def _metres(net: ZoeDepthForDepthEstimation, pixels: Tensor) -> Tensor:
    """Depth [1, 1, H, W] of pixels in 0..1, with a border of their mirror image around them."""
    height, width = pixels.shape[2:]
    down, across = (int((side / 2) ** 0.5 * PAD) for side in (height, width))
    padded = functional.pad(pixels, (across, across, down, down), mode="reflect")
    sized = functional.interpolate(padded, _size(*padded.shape[2:]), mode="bilinear", align_corners=True)
    found = net((sized - 0.5) / 0.5).predicted_depth[:, None]
    found = functional.interpolate(found, padded.shape[2:], mode="bicubic", align_corners=False)
    return found[:, :, down : down + height, across : across + width]


def _size(height: int, width: int) -> tuple[int, int]:
    """The network's, of the same form: as little larger or smaller as one of its sides allows."""
    factor = min(NET_PX[0] / height, NET_PX[1] / width, key=lambda factor: abs(1 - factor))
    down, across = (round(side * factor / MULTIPLE_PX) * MULTIPLE_PX for side in (height, width))
    return down, across
