"""Segments as Detectron2's visualizer has Matplotlib draw them, which is what OneFormer's maps are made by.

A class whose places surround nothing is drawn as polygons through the middle of its outermost pixels, with a
white outline; any other class as a picture of its places. Matplotlib draws the pictures first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sd_cloud.engines.diffusion.preprocess.lines import Pixels

PX_PER_POINT = 100 / 72  # Matplotlib's 100 dots per inch
FONT_PX, SMALLEST_FONT, FONT_PER_POINT = 90, 10, 15  # the outline's width follows the visualizer's font
FINE = 11  # as many places in a row tell how much of a pixel is covered; odd, as there is a middle then

Floats = NDArray[np.float32]


def drawn(classes: NDArray[np.int64], palette: NDArray[np.uint8]) -> Pixels:
    """The map [H, W, 3] of the classes' numbers [H, W]; white where nothing is drawn."""
    made = np.full((*classes.shape, 3), 255, np.float32)
    polygons: list[tuple[NDArray[np.int32], Floats]] = []
    numbers, areas = np.unique(classes, return_counts=True)
    for number in numbers[np.argsort(-areas)]:
        places, colour = classes == number, palette[number].astype(np.float32)
        borders, ranks = cv2.findContours(places.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if (np.asarray(ranks)[0, :, 3] >= 0).any():
            made += (colour - made) * stretched(places)[:, :, None]
        else:
            polygons += [(np.asarray(border, np.int32)[:, 0], colour) for border in borders]
    width = outline_px(*classes.shape)
    for points, colour in polygons:
        if len(points) > 2:
            _draw(made, points, colour, width)
    return np.rint(made).astype(np.uint8)


def outline_px(height: int, width: int) -> float:
    font = max(math.sqrt(height * width) // FONT_PX, SMALLEST_FONT)
    return max(font // FONT_PER_POINT, 1) * PX_PER_POINT


def stretched(places: NDArray[np.bool_]) -> Floats:
    """How much of each pixel such a picture covers.

    Matplotlib makes it one pixel higher and wider, by Hann's window, and what stands out goes: the row above
    and the column to the right.
    """
    rows = _enlarged(places.astype(np.float32))[1:]
    return _enlarged(rows.T)[:-1].T


def _enlarged(planes: Floats) -> Floats:
    """One row more."""
    rows = len(planes)
    at = (np.arange(rows + 1) + 0.5) * rows / (rows + 1) - 0.5
    before = np.floor(at).astype(int)
    share = ((1 - np.cos(np.pi * (at - before))) / 2).astype(np.float32)[:, None]
    above, below = (planes[place.clip(0, rows - 1)] for place in (before, before + 1))
    return np.asarray(above + (below - above) * share)


def _draw(made: Floats, points: NDArray[np.int32], colour: Floats, width: float) -> None:
    """A polygon and its white outline onto a map."""
    left, top = np.maximum(points.min(axis=0) - 1, 0)
    right, bottom = points.max(axis=0) + 2
    region = made[top:bottom, left:right]
    middles: Sequence[NDArray[np.int32]] = [(points - np.array((left, top), np.int32)) * FINE + FINE // 2]
    for fills, paint in ((True, colour), (False, np.float32(255))):
        fine = np.zeros((region.shape[0] * FINE, region.shape[1] * FINE), np.uint8)
        if fills:
            cv2.fillPoly(fine, middles, 255)
        else:
            cv2.polylines(fine, middles, True, 255, round(width * FINE) - 2)  # OpenCV adds one at each side
        covered = cv2.resize(fine, (region.shape[1], region.shape[0]), interpolation=cv2.INTER_AREA)
        region += (paint - region) * (covered.astype(np.float32) / 255)[:, :, None]
