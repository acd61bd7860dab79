"""Control models for the golden checkpoints of SD 1 and 2: a ControlNet, and a T2I-Adapter.

Both in the layout of the public ones. sd-webui-controlnet builds every ControlNet 320 channels wide,
which does not go onto a U-Net of 32; an adapter has the width of its file there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.e2e.world import GOLDEN

UNET = "model.diffusion_model."
ENCODER = ("time_embed.", "input_blocks.", "middle_block.")
#: Channels before and after each convolution that reads the hint.
HINT = ((3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 32))
#: Channels of the twelve encoder outputs of a U-Net of width 32, multipliers 1 2 4 4.
WIDTHS = (32, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128)


def write_controlnet(path: Path, checkpoint: str = "tiny-a") -> None:
    """The U-Net's own encoder with a random hint reader: it changes a picture, and sensibly nothing."""
    random = np.random.default_rng(11)
    tensors = {
        key[len(UNET) :]: value.astype(np.float32)
        for key, value in load_file(GOLDEN / "checkpoints" / f"{checkpoint}.safetensors").items()
        if key.startswith(tuple(UNET + part for part in ENCODER))
    }
    for place, (before, after) in enumerate(HINT):
        name = f"input_hint_block.{2 * place}"
        tensors[f"{name}.weight"] = random.normal(0, 0.1, (after, before, 3, 3)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(after, np.float32)
    for place, width in enumerate(WIDTHS):
        tensors[f"zero_convs.{place}.0.weight"] = _identity(width)
        tensors[f"zero_convs.{place}.0.bias"] = np.zeros(width, np.float32)
    tensors["middle_block_out.0.weight"] = _identity(WIDTHS[-1])
    tensors["middle_block_out.0.bias"] = np.zeros(WIDTHS[-1], np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"control_model.{key}": value for key, value in tensors.items()}, path)


#: Channels before and after each residual block of an adapter: two at each of the U-Net's four levels.
ADAPTER = ((32, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128))


def write_adapter(path: Path) -> None:
    """A T2I-Adapter with random weights: it changes a picture, and sensibly nothing."""
    random = np.random.default_rng(13)

    def convolution(after: int, before: int, side: int) -> np.ndarray:
        spread = (2 / (before * side * side)) ** 0.5  # He et al. 2015, eq. 10
        return random.normal(0, spread, (after, before, side, side)).astype(np.float32)

    # A picture of three channels, each 8 x 8 px one pixel with 192.
    tensors = {"conv_in.weight": convolution(32, 192, 3), "conv_in.bias": np.zeros(32, np.float32)}
    for place, (before, after) in enumerate(ADAPTER):
        layers = {"block1": convolution(after, after, 3), "block2": convolution(after, after, 1)}
        if before != after:
            layers["in_conv"] = convolution(after, before, 1)
        for name, weight in layers.items():
            tensors[f"body.{place}.{name}.weight"] = weight
            tensors[f"body.{place}.{name}.bias"] = np.zeros(after, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def _identity(width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[:, :, None, None] * np.float32(0.3)
