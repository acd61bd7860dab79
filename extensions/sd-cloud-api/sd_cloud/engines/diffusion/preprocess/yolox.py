"""YOLOX: Ge et al., "YOLOX: Exceeding YOLO Series in 2021" (arXiv 2107.08430): what of COCO's 80 kinds of
things is where."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, Run, apart

DETECTOR_PX, PADDING_GREY, STRIDES_PX = 640, 114, (8, 16, 32)
OVERLAP, LEAST_SEEN, LEAST_SURE = 0.45, 0.1, 0.3


def boxes(detector: Run, image: Pixels, kinds: Iterable[int]) -> list[Numbers] | None:
    """Boxes of some kinds as (left, top, right, bottom) px, kind by kind, the surest first.

    None where nothing of any kind is seen.
    """
    share = min(DETECTOR_PX / image.shape[0], DETECTOR_PX / image.shape[1])
    size = (int(image.shape[1] * share), int(image.shape[0] * share))
    padded = np.full((DETECTOR_PX, DETECTOR_PX, 3), PADDING_GREY, np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    found = np.array(detector(padded.transpose(2, 0, 1)[None].astype(np.float32))[0][0])
    places, strides = _grid()
    centre, half = (found[:, :2] + places) * strides, np.exp(found[:, 2:4]) * strides / 2
    whole = np.concatenate([centre - half, centre + half], axis=1) / np.float32(share)
    scores = found[:, 4:5] * found[:, 5:]
    if not (scores > LEAST_SEEN).any():
        return None
    kept: list[Numbers] = []
    for kind in (kind for kind in kinds if kind < scores.shape[1]):
        seen = scores[:, kind] > LEAST_SEEN
        own, sure = whole[seen], scores[seen, kind]
        kept += [own[place] for place in apart(own, sure, OVERLAP) if sure[place] > LEAST_SURE]
    return kept


def _grid() -> tuple[Numbers, Numbers]:
    """Each prediction's cell (x, y), and that cell's px."""
    places, strides = [], []
    for stride in STRIDES_PX:
        side = DETECTOR_PX // stride
        down, across = np.mgrid[:side, :side]
        places.append(np.stack([across, down], axis=2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(strides).astype(np.float32)
