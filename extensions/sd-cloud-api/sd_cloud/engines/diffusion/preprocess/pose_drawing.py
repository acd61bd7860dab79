"""People as OpenPose sees them, and how ControlNet's pose maps draw them."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from sd_cloud.engines.diffusion.preprocess.lines import Pixels

Point = tuple[float, float]
"""x and y as shares of the picture's width and height."""
Points = Sequence[Point | None]

STICK_PX, JOINT_PX, FACE_PX, HAND_LINE_PX = 4, 4, 3, 2
LEAST_PX = 0.01

# Joints: nose, neck, right shoulder, elbow, wrist, left …, right hip, knee, ankle, left …, eyes, ears.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12)),
    *((12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
FINGERS = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))
COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)


@dataclass(frozen=True)
class Person:
    """``body``: 18 joints; hands: 21 each; ``face``: 70 points. None: not seen, or not looked for."""

    body: Points
    left_hand: Points | None = None
    right_hand: Points | None = None
    face: Points | None = None


def people_json(
    people: Sequence[Person], size: tuple[int, int], animals: Sequence[Points] = ()
) -> dict[str, Any]:
    """As OpenPose writes people down, and sd-webui-controlnet animals beside them.

    Three numbers a point: x, y, and 1, or 0 where it was not seen. ``size``: height and width in px.
    """
    return {
        "people": [
            {
                "pose_keypoints_2d": _numbers(one.body),
                "face_keypoints_2d": _numbers(one.face),
                "hand_left_keypoints_2d": _numbers(one.left_hand),
                "hand_right_keypoints_2d": _numbers(one.right_hand),
            }
            for one in people
        ],
        "animals": [_numbers(one) for one in animals],
        "canvas_height": size[0],
        "canvas_width": size[1],
    }


def _numbers(points: Points | None) -> list[float] | None:
    if not points:
        return None
    return [number for point in points for number in ((0.0, 0.0, 0.0) if point is None else (*point, 1.0))]


def draw_people(
    people: Sequence[Person],
    size: tuple[int, int],
    *,
    body: bool = True,
    hand: bool = False,
    face: bool = False,
) -> Pixels:
    """``size``: height and width in px."""
    canvas = np.zeros((*size, 3), np.uint8)
    for person in people:
        if body:
            _draw_body(canvas, person.body)
        if hand:
            _draw_hand(canvas, person.left_hand)
            _draw_hand(canvas, person.right_hand)
        if face:
            _draw_face(canvas, person.face)
    return canvas


def _scale(canvas: Pixels, points: Points) -> tuple[float, float]:
    """Width and height for shares; 1 for points that lie outside, which are taken as pixels."""
    seen = [point for point in points if point is not None]
    shares = bool(seen) and all(abs(x) <= 1 and abs(y) <= 1 for x, y in seen)
    return (float(canvas.shape[1]), float(canvas.shape[0])) if shares else (1.0, 1.0)


def _draw_body(canvas: Pixels, points: Points) -> None:
    width, height = _scale(canvas, points)
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        one, two = points[start], points[end]
        if one is not None and two is not None:
            dim = [int(value * 0.6) for value in colour]
            cv2.fillConvexPoly(canvas, _stick(one, two, width, height), dim)
    for point, colour in zip(points, COLOURS, strict=False):
        if point is not None:
            centre = (int(point[0] * width), int(point[1] * height))
            cv2.circle(canvas, centre, JOINT_PX, colour, thickness=-1)


def _stick(one: Point, two: Point, width: float, height: float) -> np.ndarray:
    across = np.array([one[0], two[0]]) * width
    down = np.array([one[1], two[1]]) * height
    length = ((down[0] - down[1]) ** 2 + (across[0] - across[1]) ** 2) ** 0.5
    angle = math.degrees(math.atan2(down[0] - down[1], across[0] - across[1]))
    centre = (int(np.mean(across)), int(np.mean(down)))
    return np.asarray(cv2.ellipse2Poly(centre, (int(length / 2), STICK_PX), int(angle), 0, 360, 1))


def _draw_hand(canvas: Pixels, points: Points | None) -> None:
    if not points:
        return
    width, height = _scale(canvas, points)
    for place, (start, end) in enumerate(FINGERS):
        one, two = points[start], points[end]
        if one is None or two is None:
            continue
        ends = [int(one[0] * width), int(one[1] * height), int(two[0] * width), int(two[1] * height)]
        if all(value > LEAST_PX for value in ends):
            colour = [channel * 255 for channel in colorsys.hsv_to_rgb(place / len(FINGERS), 1.0, 1.0)]
            cv2.line(canvas, (ends[0], ends[1]), (ends[2], ends[3]), colour, thickness=HAND_LINE_PX)
    _draw_dots(canvas, points, JOINT_PX, (0, 0, 255))


def _draw_face(canvas: Pixels, points: Points | None) -> None:
    if points:
        _draw_dots(canvas, points, FACE_PX, (255, 255, 255))


def _draw_dots(canvas: Pixels, points: Points, radius: int, colour: tuple[int, int, int]) -> None:
    width, height = _scale(canvas, points)
    for point in points:
        if point is not None:
            x, y = int(point[0] * width), int(point[1] * height)
            if x > LEAST_PX and y > LEAST_PX:
                cv2.circle(canvas, (x, y), radius, colour, thickness=-1)
