"""DWPose: Yang et al., "Effective Whole-body Pose Estimation" (arXiv 2307.15880), as published in ONNX.

YOLOX finds people, an RTMPose 133 points of each.
"""

from __future__ import annotations

import numpy as np

from sd_cloud.engines.diffusion.preprocess import rtmpose, yolox
from sd_cloud.engines.diffusion.preprocess.detect import Detected
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, session
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, Point, draw_people, people_json

DETECTOR_FILE, POSE_FILE = "openpose/yolox_l.onnx", "openpose/dw-ll_ucoco_384.onnx"
POSE_PX = (288, 384)  # width, height
PERSON = 0  # of COCO's kinds
LEAST_POINT = 0.3
# OpenPose's joints among COCO's 17; its neck lies between the shoulders and has their place, 17.
NECK, SHOULDERS = 17, (5, 6)
JOINTS = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def pose(bench: Bench, image: Pixels) -> Detected:
    detector, points = (session(bench.files[name]) for name in (DETECTOR_FILE, POSE_FILE))
    size = (image.shape[0], image.shape[1])
    boxes = yolox.boxes(detector, image, [PERSON])
    if boxes == []:  # other things are seen, so there may be somebody
        boxes = [np.array([0, 0, size[1], size[0]])]
    people = [_person(rtmpose.joints(points, image, box, POSE_PX)) for box in boxes or []]
    return Detected(draw_people(people, size, hand=True, face=True), people_json(people, size))


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
