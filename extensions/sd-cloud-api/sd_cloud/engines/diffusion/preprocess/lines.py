"""Lines out of soft edges: ridges, scribbles, and edges in few levels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

SCRIBBLE_BLUR_PX = 3.0
_LINES = (
    [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
    [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
)


def in_levels(edges: NDArray[Any], steps: int = 2) -> NDArray[np.float32]:
    """Edges in 0..1 in ``steps`` levels, which carry less of the photograph's content."""
    scaled = edges.astype(np.float32) * float(steps + 1)
    return scaled.astype(np.int32).astype(np.float32) / float(steps)


def scribble(edges: Pixels) -> Pixels:
    """Soft edges [H, W] thinned to their ridges, smoothed and drawn black and white."""
    ridge = ridges(np.asarray(cv2.GaussianBlur(edges.astype(np.float32), (0, 0), SCRIBBLE_BLUR_PX)))
    drawn = np.where(ridge > 127, 255, 0).astype(np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(drawn, (0, 0), SCRIBBLE_BLUR_PX))
    return np.where(smooth > 4, 255, 0).astype(np.uint8)


def ridges(values: NDArray[Any]) -> NDArray[Any]:
    """The values that are the largest of their three neighbours along any of four lines, else 0."""
    kept = np.zeros_like(values)
    for line in _LINES:
        highest = np.asarray(cv2.dilate(values, np.array(line, np.uint8)))
        kept = np.where(highest == values, values, kept)
    return kept
