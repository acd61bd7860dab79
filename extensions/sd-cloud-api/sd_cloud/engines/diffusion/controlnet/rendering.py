"""``POST /controlnet/render_openpose_json``: people as OpenPose writes them down, drawn as a control map.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from sd_cloud.engines.diffusion.preprocess.pose_drawing import Person, Point, draw_people
from sd_cloud.errors import BadRequest

BODY_POINTS, HAND_POINTS = 18, 21
LIMIT_POSES, LIMIT_PEOPLE, LIMIT_POINTS = 64, 1000, 1000
LIMIT_COORDINATE = 1e6
SEEN = 1.0


def rendered(poses: Sequence[Mapping[str, Any]], limit_pixels: int) -> list[Image.Image]:
    """A picture of each; all canvases together may have ``limit_pixels``.

    Checks all before it draws any. Raises BadRequest naming the field.
    """
    if len(poses) > LIMIT_POSES:
        raise BadRequest(f"more than {LIMIT_POSES} poses", field="pose_data")
    read = [_pose(one, f"pose_data[{place}]") for place, one in enumerate(poses)]
    pixels = sum(height * width for _, (height, width) in read)
    if pixels > limit_pixels:
        raise BadRequest(f"canvases of {pixels} pixels are more than {limit_pixels}", field="pose_data")
    return [Image.fromarray(draw_people(people, size, hand=True, face=True)) for people, size in read]


def _pose(told: Mapping[str, Any], field: str) -> tuple[list[Person], tuple[int, int]]:
    people = told.get("people")
    if not isinstance(people, list) or len(people) > LIMIT_PEOPLE:
        raise BadRequest(f"expected a list of at most {LIMIT_PEOPLE} people", field=f"{field}.people")
    size = _side(told, "canvas_height", field), _side(told, "canvas_width", field)
    return [_person(one, f"{field}.people[{place}]") for place, one in enumerate(people)], size


def _side(told: Mapping[str, Any], name: str, field: str) -> int:
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest("expected a number of pixels", field=f"{field}.{name}")
    return value


def _person(told: Any, field: str) -> Person:
    if not isinstance(told, Mapping):
        raise BadRequest("expected an object", field=field)
    body = _points(told, "pose_keypoints_2d", field, BODY_POINTS)
    if body is None:
        raise BadRequest("expected a list of numbers", field=f"{field}.pose_keypoints_2d")
    return Person(
        body,
        left_hand=_points(told, "hand_left_keypoints_2d", field, HAND_POINTS),
        right_hand=_points(told, "hand_right_keypoints_2d", field, HAND_POINTS),
        face=_points(told, "face_keypoints_2d", field, 0),
    )


def _points(told: Mapping[str, Any], name: str, field: str, least: int) -> list[Point | None] | None:
    """Three numbers a point: x, y, and how sure it is; what is less than seen is left out."""
    numbers, where = told.get(name), f"{field}.{name}"
    if not numbers:
        return None
    if not isinstance(numbers, list) or len(numbers) % 3 or not least <= len(numbers) // 3 <= LIMIT_POINTS:
        raise BadRequest(f"expected {least} to {LIMIT_POINTS} points of three numbers", field=where)
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LIMIT_COORDINATE:
            raise BadRequest(f"{value!r:.80} is no number up to {LIMIT_COORDINATE:.0f}", field=where)
    points = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [(float(x), float(y)) if sure >= SEEN else None for x, y, sure in points]
