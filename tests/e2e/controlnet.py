"""A ControlNet file for the golden checkpoint `tiny-a`, in the LDM layout of the public ones."""

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


def write_controlnet(path: Path) -> None:
    """The U-Net's own encoder with a random hint reader: it changes a picture, and sensibly nothing."""
    random = np.random.default_rng(11)
    tensors = {
        key[len(UNET) :]: value.astype(np.float32)
        for key, value in load_file(GOLDEN / "checkpoints" / "tiny-a.safetensors").items()
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


def _identity(width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[:, :, None, None] * np.float32(0.3)
