"""Latents as small pictures, without a VAE: a matrix from latent channels to red, green and blue.

The matrices are the ones published for these latent spaces (SD 1 by Keturn in
"Decoding latents to RGB without upscaling", discuss.huggingface.co; SDXL fitted the same way).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

SD = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
SDXL = (
    (0.3448, 0.4168, 0.4395),
    (-0.1953, -0.0290, 0.0250),
    (0.1074, 0.0886, -0.0163),
    (-0.3730, -0.2499, -0.2088),
)

SD3 = (
    (-0.0645, 0.0177, 0.1052),
    (0.0028, 0.0312, 0.0650),
    (0.1848, 0.0762, 0.0360),
    (0.0944, 0.0360, 0.0889),
    (0.0897, 0.0506, -0.0364),
    (-0.0020, 0.1203, 0.0284),
    (0.0855, 0.0118, 0.0283),
    (-0.0539, 0.0658, 0.1047),
    (-0.0057, 0.0116, 0.0700),
    (-0.0412, 0.0281, -0.0039),
    (0.1106, 0.1171, 0.1220),
    (-0.0248, 0.0682, -0.0481),
    (0.0815, 0.0846, 0.1207),
    (-0.0120, -0.0055, -0.0867),
    (-0.0749, -0.0634, -0.0456),
    (-0.1418, -0.1457, -0.1259),
)
"""As published with SD 3's reference code (``sd3_impls.py``)."""


def preview(latents: Tensor, *, sdxl: bool) -> Image.Image:
    """A picture of [B, 4 or 16, H, W] latents, a pixel for each position, the batch side by side."""
    known = SD3 if latents.shape[1] == len(SD3) else SDXL if sdxl else SD
    matrix = torch.tensor(known, device=latents.device)
    colours = torch.einsum("bcyx,cr->byxr", latents.detach().float()[:, : len(known)], matrix)
    row = torch.cat(list(colours), dim=1)
    pixels = ((row * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in one, as the batch of a preview."""
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image, (place * width, 0))
    return row
