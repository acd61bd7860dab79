"""Faces as insightface's packs find and describe them: ``antelopev2`` and ``buffalo_l``, in ONNX.

SCRFD (Guo et al., arXiv 2105.04714) gives a box and five points of each face; ArcFace (Deng et al., arXiv
1801.07698) gives 512 numbers that are alike for pictures of one person. The packs' other networks
(landmarks, age, sex) say nothing that ControlNet uses.

A *pack* is the detector's file and, where identities are asked for, the recogniser's::

    seen = faces(detector, image)                          # surest first
    face = largest(seen, field=field)                      # BadRequest where there is none
    numbers = embedding(recogniser, image, face)           # [512] float32, as InstantID and PuLID take it
    numbers / np.linalg.norm(numbers)                      # as IP-Adapter FaceID takes it

InstantID looks at the image at the preprocessor's resolution, IP-Adapter FaceID at the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.onnx_network import Numbers, apart, session
from sd_cloud.errors import BadRequest, CheckpointBroken

DETECTOR_PX, STRIDES_PX, ANCHORS = 640, (8, 16, 32), 2
LEAST_SURE, OVERLAP = 0.5, 0.4
GREY, DETECTOR_SPREAD, FACE_SPREAD = 127.5, 128.0, 127.5
FACE_PX = 112
EMBEDDING = 512
# Where ArcFace was trained to see eyes, nose and corners of the mouth, in px of 112 x 112.
ALIGNED = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)
NOSE = 2
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
STICK_PX, POINT_PX, DIMMED = 4, 10, 0.6


@dataclass(frozen=True)
class Face:
    """``box``: left, top, right, bottom in px of the image, float32; ``points`` [5, 2]: x and y in px of
    the eyes, the nose and the corners of the mouth, the image's left ones first; ``sure``: 0..1."""

    box: Numbers
    points: Numbers
    sure: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def faces(detector: Path, image: Pixels) -> list[Face]:
    """The faces of an RGB image, surest first.

    Raises CheckpointBroken for a file that is no SCRFD network with points.
    """
    height, width = image.shape[:2]
    ratio = float(height) / width
    size = (int(DETECTOR_PX / ratio), DETECTOR_PX) if ratio > 1 else (DETECTOR_PX, int(DETECTOR_PX * ratio))
    share = float(size[1]) / height
    padded = np.zeros((DETECTOR_PX, DETECTOR_PX, 3), np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image, size)
    outputs = session(detector)(_planes(padded, DETECTOR_SPREAD))
    scores, boxes, points = _decoded(outputs, detector.name)
    order = scores.argsort()[::-1]
    sized = (boxes / share).astype(np.float32)[order]
    kept = order[apart(sized, scores[order], OVERLAP)]
    return [
        Face((boxes[one] / share).astype(np.float32), points[one] / share, float(scores[one])) for one in kept
    ]


def _planes(image: Pixels, spread: float) -> Numbers:
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.dnn.blobFromImage(image, 1.0 / spread, size, (GREY, GREY, GREY)))


def _decoded(outputs: Sequence[Numbers], name: str) -> tuple[Numbers, Numbers, Numbers]:
    """Scores [N], boxes [N, 4] and points [N, 5, 2] in the detector's px, of those that are sure enough."""
    levels = len(STRIDES_PX)
    counts = [ANCHORS * (DETECTOR_PX // stride) ** 2 for stride in STRIDES_PX]
    if [one.shape for one in outputs] != [(count, values) for values in (1, 4, 10) for count in counts]:
        raise CheckpointBroken(f"{name} is no SCRFD network with five points: its outputs have other shapes")
    scores, boxes, points = [], [], []
    for level, stride in enumerate(STRIDES_PX):
        sure = outputs[level][:, 0]
        seen = np.where(sure >= LEAST_SURE)[0]
        sides, ways = (outputs[level + count * levels][seen] * stride for count in (1, 2))
        centres = _centres(stride)[seen]
        scores.append(sure[seen])
        boxes.append(np.concatenate([centres - sides[:, :2], centres + sides[:, 2:]], axis=1))
        points.append(centres[:, None] + ways.reshape(-1, 5, 2))
    return np.concatenate(scores), np.concatenate(boxes), np.concatenate(points)


def _centres(stride: int) -> Numbers:
    """Where each prediction stands, x and y in px; ``ANCHORS`` at each place."""
    side = DETECTOR_PX // stride
    down, across = np.mgrid[:side, :side]
    places = np.stack([across, down], axis=2).reshape(-1, 2).astype(np.float32) * stride
    return np.repeat(places, ANCHORS, axis=0)


def largest(seen: Sequence[Face], *, field: str) -> Face:
    """Raises BadRequest where there is none."""
    if not seen:
        raise BadRequest("no face is seen in the image; send one with a face", field=field)
    return max(reversed(seen), key=lambda face: face.area)


def embedding(recogniser: Path, image: Pixels, face: Face) -> Numbers:
    """[512] float32, of no fixed length.

    Raises CheckpointBroken for a file that is no ArcFace network.
    """
    # ArcFaces converted from MXNet normalise their input themselves; neither pack has one.
    found = session(recogniser)(_planes(aligned(image, face.points), FACE_SPREAD))
    if len(found) != 1 or found[0].size != EMBEDDING:
        raise CheckpointBroken(f"{recogniser.name} is no ArcFace network: it gives no {EMBEDDING} numbers")
    return found[0].ravel()


def aligned(image: Pixels, points: Numbers) -> Pixels:
    """112 x 112 px of the image, turned, moved and scaled so that the points lie where they belong."""
    turn = _similarity(points, ALIGNED)
    return np.asarray(cv2.warpAffine(image, turn, (FACE_PX, FACE_PX)), np.uint8)


def _similarity(start: Numbers, end: Numbers) -> Numbers:
    """[2, 3]: the turn, scale and move with the least squared distances (Umeyama, 1991)."""
    before, after = start.mean(axis=0), end.mean(axis=0)
    spread = (end - after).T @ (start - before) / len(start)
    left, sizes, right = np.linalg.svd(spread)
    mirror = np.array([1.0, 1.0 if np.linalg.det(spread) >= 0 else -1.0])
    turn = left @ np.diag(mirror) @ right
    turn = turn * (1.0 / (start - before).var(axis=0).sum() * (sizes @ mirror))
    return np.concatenate([turn, (after - turn @ before.T)[:, None]], axis=1)


def keypoints(bench: Bench, image: Pixels) -> Pixels:
    """InstantID's map: the five points of the largest face, and lines from its nose."""
    points = largest(faces(next(iter(bench.files.values())), image), field=bench.field).points
    canvas = np.zeros(image.shape, np.uint8)
    for place in (one for one in range(len(COLOURS)) if one != NOSE):
        cv2.fillConvexPoly(canvas, _stick(points[place], points[NOSE]), COLOURS[place])
    canvas = (canvas * DIMMED).astype(np.uint8)
    for point, colour in zip(points, COLOURS, strict=True):
        cv2.circle(canvas, (int(point[0]), int(point[1])), POINT_PX, colour, -1)
    return canvas


def _stick(one: Numbers, two: Numbers) -> Numbers:
    (x, y), (across, down) = (one + two) / 2, one - two
    length = (across**2 + down**2) ** 0.5
    angle = math.degrees(math.atan2(down, across))
    return np.asarray(cv2.ellipse2Poly((int(x), int(y)), (int(length / 2), STICK_PX), int(angle), 0, 360, 1))
