"""CLIP's vision transformer (Radford et al., arXiv 2103.00020): what image prompts see of a picture.

Its files have transformers' names: ``clip_vitl`` is OpenAI's ViT-L/14, ``clip_h`` and ``clip_g``
OpenCLIP's ViT-H/14 and ViT-bigG/14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench

SIDE_PX = 224
HEADS = 16  # of all three
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
SPREAD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
OWN = ("vision_model.", "visual_projection.")
QUICK = "clip_vitl"


@dataclass(frozen=True)
class Seen:
    """``hidden``, ``last``: [1, 1 + patches, width] before and after the last layer, without a final
    norm; ``projected``: [1, width of the space shared with texts]."""

    hidden: Tensor
    last: Tensor
    projected: Tensor


def see(bench: Bench, image: Pixels, file: str) -> Seen:
    """What the network of one of the bench's files sees of RGB, or of RGB less a mask that is in A."""
    return _seen(bench, _normalised(image), file)


def see_nothing(bench: Bench, file: str) -> Seen:
    """Of a picture that is its training's mean everywhere."""
    return _seen(bench, np.zeros((3, SIDE_PX, SIDE_PX), np.float32), file)


def _normalised(image: Pixels) -> NDArray[np.float32]:
    small = cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    pixels = (small[:, :, :3] * (1 / 255)).astype(np.float32)
    pixels = ((pixels - MEAN) / SPREAD).astype(np.float32)
    if small.shape[2] == 4:
        pixels *= (255 - small[:, :, 3:]).astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _seen(bench: Bench, planes: NDArray[np.float32], file: str) -> Seen:
    build = _quick_network if QUICK in file else _network
    net = bench.net_of_shape(build, _vision_part, file=file)
    with torch.inference_mode():
        out = net(torch.from_numpy(planes)[None].to(bench.device), output_hidden_states=True)
    hidden, last = (one.clone().cpu() for one in (out.hidden_states[-2], out.last_hidden_state))
    return Seen(hidden, last, out.image_embeds.clone().cpu())


def _vision_part(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Some files hold the text encoder, too."""
    return {
        key: value for key, value in state.items() if key.startswith(OWN) and not key.endswith("position_ids")
    }


def _network(state: Mapping[str, Tensor], activation: str = "gelu") -> CLIPVisionModelWithProjection:
    layers = {found[1] for key in state if (found := re.search(r"encoder\.layers\.(\d+)\.", key))}
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    net = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=patches.shape[0],
            intermediate_size=state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            projection_dim=state["visual_projection.weight"].shape[0],
            num_hidden_layers=len(layers),
            num_attention_heads=HEADS,
            image_size=SIDE_PX,
            patch_size=patches.shape[2],
            hidden_act=activation,
            layer_norm_eps=1e-5,
            attention_dropout=0.0,
        )
    )
    embeddings = net.vision_model.embeddings
    # No weight, so no file has it.
    embeddings.position_ids = torch.arange(embeddings.num_positions, device="cpu")[None]
    return net


def _quick_network(state: Mapping[str, Tensor]) -> CLIPVisionModelWithProjection:
    return _network(state, "quick_gelu")
