"""OpenPose: joints in heat maps, put together to people; then each one's hands and face.

Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (arXiv
1812.08008), with the sizes and thresholds that sd-webui-controlnet uses. Arrays are BGR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from sd_cloud.engines.diffusion.preprocess.detect import Detected
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench
from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, Point, draw_people, people_json
from sd_cloud.engines.diffusion.preprocess.pose_groups import Joint, grouped
from sd_cloud.engines.diffusion.preprocess.pose_networks import (
    BodyNet,
    FaceNet,
    HandNet,
    body_names,
    hand_names,
)

Maps = NDArray[Any]

STRIDE_PX, PADDING_GREY = 8, 128
BODY_HEIGHT_PX, BODY_SCALE = 368, 0.5
HAND_SIDE_PX, HAND_SCALES, HAND_MAP_PX, HAND_BLUR_PX = 368, (0.5, 1.0, 1.5, 2.0), 128, 0.8
FACE_SIDE_PX = 384
LEAST_JOINT, LEAST_POINT = 0.1, 0.05
SMOOTH_PX = 3
LEAST_BOX_PX = 20
BODY_FILE, HAND_FILE = "openpose/body_pose_model.pth", "openpose/hand_pose_model.pth"
FACE_FILE = "openpose/facenet.pth"


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    side: int

    def of(self, image: Pixels) -> Pixels:
        return image[self.y : self.y + self.side, self.x : self.x + self.side]


def pose(bench: Bench, image: Pixels, *, body: bool, hands: bool, faces: bool) -> Detected:
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    height, width = bgr.shape[:2]
    people = [
        Person(
            [None if joint is None else (joint.x / width, joint.y / height) for joint in joints],
            hand(bench, bgr, _hand_box(joints[5:8], bgr)) if hands else None,
            hand(bench, bgr, _hand_box(joints[2:5], bgr)) if hands else None,
            face(bench, bgr, _face_box(joints, bgr)) if faces else None,
        )
        for joints in grouped(*_body_maps(bench, bgr))
    ]
    size = (height, width)
    drawn = draw_people(people, size, body=body, hand=hands, face=faces)
    return Detected(drawn, people_json(people, size))


# --- body ---------------------------------------------------------------------------------------


def _body_maps(bench: Bench, bgr: Pixels) -> tuple[list[list[Joint]], Maps]:
    """Candidates of each of the 18 joints, and the limbs' maps at the picture's size."""
    height, width = bgr.shape[:2]
    scale = BODY_SCALE * BODY_HEIGHT_PX / height
    seen = resized(bgr, height * scale, width * scale)
    limbs, joints = bench.net(BodyNet, body_names, file=BODY_FILE)(bench.pixels(padded(seen)) / 256 - 0.5)
    heat, limb_maps = (
        resized(_enlarged(maps, seen.shape), height, width).astype(np.float64) for maps in (joints, limbs)
    )
    found: list[list[Joint]] = []
    for part in range(18):
        count = sum(len(one) for one in found)
        found.append(_peaks(heat[:, :, part], count))
    return found, limb_maps


def _enlarged(maps: Any, shape: tuple[int, ...]) -> Maps:
    """A network's output [1, C, h, w] at the size of what it saw, without what was padded."""
    planes = maps[0].permute(1, 2, 0).float().cpu().numpy()
    full = resized(planes, planes.shape[0] * STRIDE_PX, planes.shape[1] * STRIDE_PX)
    return full[: shape[0], : shape[1]]


def _peaks(heat: Maps, first: int) -> list[Joint]:
    smooth = ndimage.gaussian_filter(heat, sigma=SMOOTH_PX)
    around = np.pad(smooth, 1)
    highest = smooth > LEAST_JOINT
    for moved in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
        highest &= smooth >= moved
    places = zip(*np.nonzero(highest), strict=True)
    return [
        Joint(int(x), int(y), float(heat[y, x]), number) for number, (y, x) in enumerate(places, start=first)
    ]


# --- hands and face -----------------------------------------------------------------------------


def _hand_box(arm: list[Joint | None], bgr: Pixels) -> Box | None:
    """Where a hand is by its shoulder, elbow and wrist."""
    shoulder, elbow, wrist = arm
    if shoulder is None or elbow is None or wrist is None:
        return None
    forearm = math.hypot(wrist.x - elbow.x, wrist.y - elbow.y)
    side = 1.5 * max(forearm, 0.9 * math.hypot(elbow.x - shoulder.x, elbow.y - shoulder.y))
    x = wrist.x + 0.33 * (wrist.x - elbow.x) - side / 2
    y = wrist.y + 0.33 * (wrist.y - elbow.y) - side / 2
    return _within(x, y, side, side, bgr)


def _face_box(joints: list[Joint | None], bgr: Pixels) -> Box | None:
    """Where a face is by its nose and how far eyes and ears are from it."""
    nose = joints[0]
    reaches = [(joints[14], 3.0), (joints[15], 3.0), (joints[16], 1.5), (joints[17], 1.5)]
    if nose is None or all(joint is None for joint, _ in reaches):
        return None
    half = max(
        max(abs(nose.x - joint.x), abs(nose.y - joint.y)) * reach
        for joint, reach in reaches
        if joint is not None
    )
    return _within(nose.x - half, nose.y - half, half, 2 * half, bgr)


def _within(x: float, y: float, probe: float, side: float, bgr: Pixels) -> Box | None:
    """A square inside the picture; None where it is too small. It is cut where ``probe`` px reach out."""
    x, y = max(x, 0), max(y, 0)
    height, width = bgr.shape[:2]
    sides = (width - x if x + probe > width else side, height - y if y + probe > height else side)
    side = min(sides)
    return Box(int(x), int(y), int(side)) if side >= LEAST_BOX_PX else None


def hand(bench: Bench, bgr: Pixels, box: Box | None) -> list[Point | None] | None:
    if box is None:
        return None
    part = box.of(bgr)
    blurred = np.asarray(cv2.GaussianBlur(part, (0, 0), HAND_BLUR_PX))
    net = bench.net(HandNet, hand_names, file=HAND_FILE)
    heat = np.zeros((HAND_MAP_PX, HAND_MAP_PX, 22))
    for scale in HAND_SCALES:
        seen = resized(blurred, scale * HAND_SIDE_PX, scale * HAND_SIDE_PX)
        maps = _enlarged(net(bench.pixels(padded(seen)) / 256 - 0.5), seen.shape)
        heat += resized(maps, HAND_MAP_PX, HAND_MAP_PX) / len(HAND_SCALES)
    points = [_finger(heat[:, :, joint], part.shape) for joint in range(21)]
    return _placed(np.array(points), box, bgr)


def _finger(heat: Maps, shape: tuple[int, ...]) -> tuple[int, int]:
    """The highest place within the heaviest patch; (0, 0) where there is none."""
    warm = ndimage.gaussian_filter(heat, sigma=SMOOTH_PX) > LEAST_POINT
    if not warm.any():
        return 0, 0
    patches, count = ndimage.label(warm, structure=np.ones((3, 3)))
    heaviest = 1 + int(np.argmax(ndimage.sum_labels(heat, patches, range(1, count + 1))))
    y, x = np.unravel_index(int(np.argmax(np.where(patches == heaviest, heat, 0))), heat.shape)
    return int(float(x) * shape[1] / HAND_MAP_PX), int(float(y) * shape[0] / HAND_MAP_PX)


def face(bench: Bench, bgr: Pixels, box: Box | None) -> list[Point | None] | None:
    if box is None:
        return None
    seen = resized(box.of(bgr), FACE_SIDE_PX, FACE_SIDE_PX)
    maps = bench.net(FaceNet, file=FACE_FILE)(bench.pixels(seen) / 256 - 0.5)
    maps = functional.interpolate(maps, (box.side, box.side), mode="bilinear", align_corners=True)
    points = []
    for heat in maps[0].float().cpu().numpy():
        if (heat > LEAST_POINT).any():
            y, x = np.unravel_index(int(np.argmax(heat)), heat.shape)
            points.append((int(x), int(y)))
    return _placed(np.array(points), box, bgr) if points else None


def _placed(points: NDArray[Any], box: Box, bgr: Pixels) -> list[Point | None]:
    """Shares of the whole picture from px within a box; below 0 for what was not seen."""
    found = points.astype(np.float32)
    for axis, (start, length) in enumerate(((box.x, bgr.shape[1]), (box.y, bgr.shape[0]))):
        found[:, axis] = np.where(found[:, axis] < 1e-6, -1, found[:, axis] + start) / float(length)
    return [(float(x), float(y)) for x, y in found]


# --- sizes --------------------------------------------------------------------------------------


def resized(planes: Maps, height: float, width: float) -> Maps:
    """[H, W, C] at whole px of another size: by area where it shrinks, else by Lanczos' kernel."""
    smaller = float(height + width) / float(planes.shape[0] + planes.shape[1]) < 1
    how = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    size = (int(width), int(height))
    if planes.shape[2] == 3:
        return np.asarray(cv2.resize(planes, size, interpolation=how))
    each = [
        cv2.resize(np.ascontiguousarray(planes[:, :, one]), size, interpolation=how)
        for one in range(planes.shape[2])
    ]
    return np.stack(each, axis=2)


def padded(image: Pixels) -> Pixels:
    """Grey to the right and below, up to multiples of the networks' stride."""
    sides = [(0, -side % STRIDE_PX) for side in image.shape[:2]]
    return np.pad(image, [*sides, (0, 0)], constant_values=PADDING_GREY)
