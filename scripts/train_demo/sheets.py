"""Contact sheets: pictures in rows and columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def sheet(pictures: np.ndarray, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """uint8 [n, height, width, 3] on a light grid."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 225, np.uint8)
    for index, picture in enumerate(pictures):
        y = gap + index // columns * (height + gap)
        x = gap + index % columns * (width + gap)
        canvas[y : y + height, x : x + width] = picture
    image = Image.fromarray(canvas)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def save_sheet(path: Path, pictures: np.ndarray, columns: int, scale: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, columns, scale).save(path, optimize=True)
