"""``depth_leres++``: LeReS at several sizes and places, merged.

Miangoleh et al., "Boosting Monocular Depth Estimation Models to High-Resolution via Content-Adaptive
Multi-Resolution Merging" (arXiv 2105.14021), in the form of sd-webui-controlnet. The picture is looked at
as large as its edges carry context, then piece by piece; a pix2pix network (``latest_net_G.pth``) joins
what a coarse and a fine look find.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd_cloud.engines.diffusion.preprocess.leres import Plane, drawn, estimate
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.pix2pix import UNet

MERGE_FILE = "leres/latest_net_G.pth"
FIELD_PX = 448  # what the depth network takes in at once
HALVINGS = 10
MERGED_PX = 2**HALVINGS
LARGEST_PX = 1600  # the paper's R_max
MOST_ENLARGED = 3
EDGE_SHARE = 0.4  # of the steepest gradient
CONTEXT_FREE = 0.2  # the share of the picture that may lie out of reach of every edge: the paper's R_20
CELL_PX = 32  # edges are looked for in squares of this size
STRIDE = 0.75  # of half a piece
GROWTH_PX = 32
LEAST_FACTOR = 0.2
FADE_PX, FADE_EDGE_PX, FADE_SIGMA_PX, FADE_KERNEL_PX = 3000, 450, 187, 749  # how a piece fades out
GREY = np.array([0.2989, 0.5870, 0.1140])


@dataclass(frozen=True)
class Piece:
    """A square of the enlarged picture, in its pixels."""

    left: int
    top: int
    side: int

    def grown(self, step: int) -> Piece:
        return Piece(self.left - step // 2, self.top - step // 2, self.side + step)

    def scaled(self, scale: float) -> tuple[slice, slice]:
        """Its rows and columns in the picture at another scale."""
        left, top, side = (int(np.round(one * scale)) for one in (self.left, self.top, self.side))
        return slice(top, top + side), slice(left, left + side)


def merge_network(state: Mapping[str, Tensor]) -> UNet:
    """One depth from a coarse and a fine one, [1, 1, 1024, 1024] from [1, 2, 1024, 1024] in -1..1.

    How wide it is comes from the file.
    """
    return UNet(2, 1, HALVINGS, width=state["model.model.0.weight"].shape[0], normed=False)


def depth(bench: Bench, image: Pixels, near: float, background: float) -> Pixels:
    """Near is white. ``near`` and ``background``: percent of the depth, at either end, that become black."""
    return drawn(boosted(bench, image), near, background)


def boosted(bench: Bench, image: Pixels) -> Plane:
    height, width = image.shape[:2]
    whole_px, edges = best_size(image)
    found = at_two_sizes(bench, image, whole_px)
    longest = max(height, width)
    if longest >= whole_px:
        factor = max(min(1.0, 4 * edges * whole_px / LARGEST_PX), LEAST_FACTOR)
        size = [round(round(2 * whole_px * side / longest) / factor) for side in (width, height)]
        enlarged = _resized(image, size)
        found = refined(bench, enlarged, found, pieces(enlarged, factor), height / size[1])
    return _resized(found, (width, height))


def best_size(image: Pixels) -> tuple[int, float]:
    """The largest size, in px, at which few pixels are out of reach of every edge, and the edges' share."""
    side = min(image.shape[:2])
    # The original asks for other interpolations, but by a place at which OpenCV takes something else.
    slopes = np.asarray(cv2.resize(_slopes(image), (side, side)))
    edges = slopes >= slopes.min() + EDGE_SHARE * (slopes.max() - slopes.min())
    cells = FIELD_PX // CELL_PX
    reach, close = np.ones((cells, cells), np.uint8), np.ones((cells // 4, cells // 4), np.uint8)
    limit = min(LARGEST_PX, MOST_ENLARGED * max(image.shape[:2])) // CELL_PX
    best = cells
    for count in range(cells, max(limit, cells + 1), cells // 2):
        seen = _cells(edges.astype(np.float64), count)
        if (1 - np.asarray(cv2.dilate(seen, reach))).mean() > CONTEXT_FREE:
            break
        best = count
    return best * CELL_PX, float(np.asarray(cv2.dilate(seen, close)).mean())


def _slopes(image: Pixels) -> NDArray[np.float64]:
    grey = np.dot(image, GREY)
    down, across = (cv2.Sobel(grey, cv2.CV_64F, *way, ksize=3) for way in ((0, 1), (1, 0)))
    return np.abs(down) + np.abs(across)


def _cells(edges: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Which of ``count`` x ``count`` squares have an edge: 1 or 0."""
    length = len(edges) // count
    padded = np.pad(edges, (0, -len(edges) % length))
    highest = padded.reshape(len(padded) // length, length, -1, length).max(axis=(1, 3))
    return (np.asarray(cv2.resize(highest, (count, count))) >= 0.5).astype(np.float64)


def pieces(image: Pixels, factor: float) -> list[Piece]:
    """Squares with more edges than the whole, each enlarged as far as that is true, the largest first."""
    slopes = _slopes(image)
    steep = slopes > 0
    slopes[slopes < (slopes[steep].mean() if steep.any() else 0)] = 0
    mean = float(slopes.sum() / slopes.size)
    summed = np.asarray(cv2.integral(slopes), np.float64)
    height, width = image.shape[:2]
    places = [range(0, side - 2 * FIELD_PX, round(STRIDE * FIELD_PX)) for side in (width, height)]
    grid = (Piece(left, top, 2 * FIELD_PX) for left in places[0] for top in places[1])
    step = int(GROWTH_PX / factor)
    chosen = [_grown(piece, summed, mean, step) for piece in grid if _mean(summed, piece) >= mean]
    return sorted(chosen, key=lambda piece: piece.side, reverse=True)


def _grown(piece: Piece, summed: NDArray[np.float64], mean: float, step: int) -> Piece:
    while True:
        larger = piece.grown(step)
        inside = larger.left >= 0 and larger.top >= 0
        inside = inside and larger.top + larger.side < summed.shape[0]
        inside = inside and larger.left + larger.side < summed.shape[1]
        if not inside or _mean(summed, larger) < mean:
            return piece
        piece = larger


def _mean(summed: NDArray[np.float64], piece: Piece) -> float:
    """Of a square, from the sums of everything to the left of and above each pixel."""
    left, top, right, low = piece.left, piece.top, piece.left + piece.side, piece.top + piece.side
    total = summed[low, right] - summed[top, right] - summed[low, left] + summed[top, left]
    return float(total / (piece.side * piece.side))


def refined(bench: Bench, image: Pixels, found: Plane, squares: Sequence[Piece], scale: float) -> Plane:
    """A depth with each square's own laid into it, at ``scale`` times the image's size."""
    size = [round(side * scale) for side in (image.shape[1], image.shape[0])]
    image, base = _resized(image, size), _resized(found, size)
    made = base.copy()
    for square in squares:
        place = square.scaled(scale)
        fine, coarse = at_two_sizes(bench, image[place], 2 * FIELD_PX), _for_merging(base[place])
        merged = _resized(_like(_merged(bench, coarse, fine), coarse), base[place].shape[::-1])
        share = fade(merged.shape)
        made[place] = made[place] * (1 - share) + merged * share
    return made


def at_two_sizes(bench: Bench, image: Pixels, fine_px: int) -> Plane:
    """Depth in 0..1, [1024, 1024], from squares of the network's field and of ``fine_px``."""
    looks = [_for_merging(estimate(bench, image, (side, side))) for side in (FIELD_PX, fine_px)]
    return _unit(_merged(bench, *looks))


def _merged(bench: Bench, coarse: Plane, fine: Plane) -> Plane:
    both = np.stack([_unit(coarse), _unit(fine)], axis=2) * 2 - 1
    net = bench.net_of_shape(merge_network, file=MERGE_FILE)
    return np.asarray((net(bench.pixels(both))[0, 0].float().cpu().numpy() + 1) / 2)


def _like(found: Plane, wanted: Plane) -> Plane:
    """A depth brought to another's values by the best straight line."""
    with warnings.catch_warnings():
        # For a million pixels NumPy's idea of "too close to constant" begins early; the result is meant.
        warnings.simplefilter("ignore", np.exceptions.RankWarning)
        line = np.polyfit(found.ravel(), wanted.ravel(), deg=1)
    return np.asarray(np.polyval(line, found), np.float32)


def fade(size: tuple[int, ...]) -> Plane:
    """How much each pixel of a piece [h, w] counts: 1 in the middle, 0 at the corners."""
    line = np.zeros((FADE_PX, 1), np.float32)
    line[FADE_EDGE_PX:-FADE_EDGE_PX] = 1
    line = np.asarray(cv2.GaussianBlur(line, (1, FADE_KERNEL_PX), FADE_SIGMA_PX))
    down, across = (np.asarray(cv2.resize(line, (1, side))) for side in size)
    lowest, highest = line.min() ** 2, line.max() ** 2
    return np.asarray((down * across.T - lowest) / (highest - lowest), np.float32)


def _unit(found: Plane) -> Plane:
    moved = found - found.min()
    return np.asarray(moved / max(float(moved.max()), 1e-12), np.float32)


def _for_merging(found: Plane) -> Plane:
    return _resized(found, (MERGED_PX, MERGED_PX))


def _resized(image: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """At another (width, height), values beyond the original's allowed as cubic interpolation has them."""
    return np.asarray(cv2.resize(image, tuple(size), interpolation=cv2.INTER_CUBIC), image.dtype)
