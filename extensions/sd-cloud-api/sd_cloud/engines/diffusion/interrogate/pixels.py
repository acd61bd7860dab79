"""Pictures as CLIP's and BLIP's vision networks take them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)


def normalised(image: Image.Image) -> Tensor:
    """An RGB picture to [1, 3, H, W], float32, by CLIP's mean and spread of each colour."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0).permute(2, 0, 1)
    mean, spread = torch.tensor(MEAN)[:, None, None], torch.tensor(SPREAD)[:, None, None]
    return ((pixels - mean) / spread)[None]


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The middle of a picture whose shorter side is brought to ``side``, in pixels."""
    width, height = image.size
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2.0) for length in size)
    return image.crop((left, top, left + side, top + side))
