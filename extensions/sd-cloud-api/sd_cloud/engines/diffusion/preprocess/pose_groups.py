"""Joints put together to people by the maps of their limbs (OpenPose's part affinity fields)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sd_cloud.engines.diffusion.preprocess.pose_drawing import LIMBS

SAMPLES = 10
LEAST_ALONG, LEAST_SHARE_ALONG = 0.05, 0.8
LEAST_PARTS, LEAST_MEAN_SCORE = 4, 0.4

PAIRS = (*LIMBS, (2, 16), (5, 17))  # the last two only join what has been found
DRAWN = len(LIMBS)
# Which maps hold the way along each pair: x, then y.
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)


class Joint(NamedTuple):
    """A candidate: px, how sure, and its number among all candidates."""

    x: int
    y: int
    score: float
    number: int


class Bond(NamedTuple):
    one: Joint
    two: Joint
    score: float


@dataclass(eq=False)
class Body:
    parts: dict[int, Joint] = field(default_factory=dict)
    score: float = 0.0
    count: int = 0

    def add(self, part: int, joint: Joint, score: float) -> None:
        self.parts[part] = joint
        self.count += 1
        self.score += joint.score + score


def grouped(candidates: list[list[Joint]], fields: NDArray[Any]) -> list[list[Joint | None]]:
    """Each person's 18 joints. ``fields``: [H, W, 38]."""
    bodies: list[Body] = []
    for pair, ((first, second), place) in enumerate(zip(PAIRS, FIELDS, strict=True)):
        way = fields[:, :, place : place + 2]
        for bond in _bonds(candidates[first], candidates[second], way):
            _join(bodies, bond, first, second, new=pair < DRAWN)
    whole = [
        body for body in bodies if body.count >= LEAST_PARTS and body.score / body.count >= LEAST_MEAN_SCORE
    ]
    return [[body.parts.get(part) for part in range(18)] for body in whole]


def _bonds(ones: list[Joint], twos: list[Joint], way: NDArray[Any]) -> list[Bond]:
    """The best pairs of two joints, each joint in one at most."""
    possible = [bond for one in ones for two in twos if (bond := _bond(one, two, way)) is not None]
    kept: list[Bond] = []
    for bond in sorted(possible, key=lambda each: each.score, reverse=True):
        if all(bond.one is not other.one and bond.two is not other.two for other in kept):
            kept.append(bond)
    return kept


def _bond(one: Joint, two: Joint, way: NDArray[Any]) -> Bond | None:
    """How well the maps agree with a limb from ``one`` to ``two``; None where they do not."""
    length = max(0.001, math.hypot(two.x - one.x, two.y - one.y))
    direction = ((two.x - one.x) / length, (two.y - one.y) / length)
    across, down = (np.linspace(start, end, SAMPLES) for start, end in zip(one[:2], two[:2], strict=True))
    seen = way[np.round(down).astype(int), np.round(across).astype(int)]
    along = seen[:, 0] * direction[0] + seen[:, 1] * direction[1]
    score = float(along.mean()) + min(0.5 * way.shape[0] / length - 1, 0)
    agrees = int((along > LEAST_ALONG).sum()) > LEAST_SHARE_ALONG * SAMPLES and score > 0
    return Bond(one, two, score) if agrees else None


def _join(bodies: list[Body], bond: Bond, first: int, second: int, *, new: bool) -> None:
    holding = [
        body for body in bodies if body.parts.get(first) is bond.one or body.parts.get(second) is bond.two
    ]
    if len(holding) == 1:
        if holding[0].parts.get(second) is not bond.two:
            holding[0].add(second, bond.two, bond.score)
    elif len(holding) >= 2:
        body, other = holding[:2]
        if body.parts.keys().isdisjoint(other.parts):
            body.parts |= other.parts
            body.count += other.count
            body.score += other.score + bond.score
            bodies.remove(other)
        else:
            body.add(second, bond.two, bond.score)
    elif new:
        body = Body()
        body.add(first, bond.one, 0.0)
        body.add(second, bond.two, bond.score)
        bodies.append(body)
