"""RTMPose: Jiang et al., "RTMPose" (arXiv 2303.07399): where the joints of who is in a box are.

Its networks say how sure they are of each half px across and of each half px down.
"""

from __future__ import annotations

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, Run

AROUND, STEPS_PER_PX = 1.25, 2.0
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def joints(network: Run, image: Pixels, box: Numbers, seen_px: tuple[int, int]) -> Numbers:
    """[joints, 3]: x and y in px of the picture, and how sure. ``seen_px``: width and height it sees."""
    left, top, right, bottom = np.asarray(box, np.float64)
    centre = np.array([left + right, top + bottom]) * 0.5
    width, height = (right - left) * AROUND, (bottom - top) * AROUND
    ratio = seen_px[0] / seen_px[1]
    scale = np.array([width, width / ratio] if width > height * ratio else [height * ratio, height])
    seen = _cut_out(image, centre, scale, seen_px)
    values = ((seen - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)[None].astype(np.float32)
    across, down = (np.array(one[0]) for one in network(values)[:2])
    sure = np.minimum(across.max(axis=1), down.max(axis=1))
    places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1).astype(np.float32)
    places[sure <= 0] = -1
    px = places / STEPS_PER_PX / seen_px * scale + centre - scale / 2
    return np.concatenate([px, sure[:, None]], axis=1)


def _cut_out(image: Pixels, centre: Numbers, scale: Numbers, size: tuple[int, int]) -> Pixels:
    """The part of ``scale`` px around ``centre``, at the network's size."""
    width, height = size
    half = scale[0] * 0.5
    start = np.array([centre, centre - (0, half), centre - (half, half)], np.float32)
    middle = np.array([width, height]) * 0.5
    end = np.array([middle, middle - (0, width * 0.5), middle - (width * 0.5, width * 0.5)], np.float32)
    warp = cv2.getAffineTransform(start, end)
    return np.asarray(cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR), np.uint8)
