"""DWPose: Yang et al., "Effective Whole-body Pose Estimation" (arXiv 2307.15880), as published in ONNX.

YOLOX (Ge et al., arXiv 2107.08430) finds people, RTMPose (Jiang et al., arXiv 2303.07399) 133 points of
each. Both run on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess.detect import Detected
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, Run, apart, session
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, Point, draw_people, people_json

DETECTOR_FILE, POSE_FILE = "openpose/yolox_l.onnx", "openpose/dw-ll_ucoco_384.onnx"
DETECTOR_PX, PADDING_GREY, STRIDES_PX = 640, 114, (8, 16, 32)
OVERLAP, LEAST_BOX, LEAST_PERSON, LEAST_POINT = 0.45, 0.1, 0.3, 0.3
POSE_PX = (288, 384)  # width, height
AROUND, STEPS_PER_PX = 1.25, 2.0
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# OpenPose's joints among COCO's 17; its neck lies between the shoulders and has their place, 17.
NECK, SHOULDERS = 17, (5, 6)
JOINTS = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def pose(bench: Bench, image: Pixels) -> Detected:
    detector, points = (session(bench.files[name]) for name in (DETECTOR_FILE, POSE_FILE))
    people = [_person(_points(points, image, box)) for box in _boxes(detector, image)]
    size = (image.shape[0], image.shape[1])
    return Detected(draw_people(people, size, hand=True, face=True), people_json(people, size))


def _boxes(detector: Run, image: Pixels) -> Sequence[Numbers]:
    """People as (left, top, right, bottom) px; the whole picture where only other things are seen."""
    share = min(DETECTOR_PX / image.shape[0], DETECTOR_PX / image.shape[1])
    size = (int(image.shape[1] * share), int(image.shape[0] * share))
    padded = np.full((DETECTOR_PX, DETECTOR_PX, 3), PADDING_GREY, np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    found = np.array(detector(padded.transpose(2, 0, 1)[None].astype(np.float32))[0][0])
    places, strides = _grid()
    centre, extent = (found[:, :2] + places) * strides, np.exp(found[:, 2:4]) * strides
    boxes = np.concatenate([centre - extent / 2.0, centre + extent / 2.0], axis=1) / share
    scores = found[:, 4:5] * found[:, 5:]
    if not (scores > LEAST_BOX).any():
        return []
    seen = scores[:, 0] > LEAST_BOX
    boxes, sure = boxes[seen], scores[seen, 0]
    kept = [place for place in apart(boxes, sure, OVERLAP) if sure[place] > LEAST_PERSON]
    return boxes[kept] if kept else [np.array([0, 0, image.shape[1], image.shape[0]])]


def _grid() -> tuple[Numbers, Numbers]:
    """Each prediction's cell (x, y), and that cell's px."""
    places, strides = [], []
    for stride in STRIDES_PX:
        side = DETECTOR_PX // stride
        down, across = np.mgrid[:side, :side]
        places.append(np.stack([across, down], axis=2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    return np.concatenate(places), np.concatenate(strides)


def _points(network: Run, image: Pixels, box: Numbers) -> Numbers:
    """[133, 3]: x and y in px of the picture, and how sure."""
    left, top, right, bottom = box
    centre = np.array([left + right, top + bottom]) * 0.5
    width, height = (right - left) * AROUND, (bottom - top) * AROUND
    ratio = POSE_PX[0] / POSE_PX[1]
    scale = np.array([width, width / ratio] if width > height * ratio else [height * ratio, height])
    seen = _cut_out(image, centre, scale)
    values = ((seen - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)[None].astype(np.float32)
    across, down = (np.array(one[0]) for one in network(values)[:2])
    sure = np.minimum(across.max(axis=1), down.max(axis=1))
    places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1).astype(np.float32)
    places[sure <= 0] = -1
    px = places / STEPS_PER_PX / POSE_PX * scale + centre - scale / 2
    return np.concatenate([px, sure[:, None]], axis=1)


def _cut_out(image: Pixels, centre: Numbers, scale: Numbers) -> Pixels:
    """The part of ``scale`` px around ``centre``, at the network's size."""
    width, height = POSE_PX
    half = scale[0] * 0.5
    start = np.array([centre, centre - (0, half), centre - (half, half)], np.float32)
    middle = np.array([width, height]) * 0.5
    end = np.array([middle, middle - (0, width * 0.5), middle - (width * 0.5, width * 0.5)], np.float32)
    warp = cv2.getAffineTransform(start, end)
    return np.asarray(cv2.warpAffine(image, warp, POSE_PX, flags=cv2.INTER_LINEAR), np.uint8)


def _person(points: Numbers) -> Person:
    neck = points[list(SHOULDERS)].mean(axis=0)
    neck[2] = float((points[list(SHOULDERS), 2] > LEAST_POINT).all())
    with_neck = np.concatenate([points[:NECK], neck[None]])
    body = _sure(with_neck[list(JOINTS)]) or [None] * len(JOINTS)
    face = _sure(points[FACE])
    return Person(
        body,
        _sure(points[LEFT_HAND]),
        _sure(points[RIGHT_HAND]),
        None if face is None else [*face, body[14], body[15]],
    )


def _sure(points: Numbers) -> list[Point | None] | None:
    """Points that are sure enough; None when there is none."""
    found = [(float(x), float(y)) if sure >= LEAST_POINT else None for x, y, sure in points]
    return found if any(point is not None for point in found) else None
