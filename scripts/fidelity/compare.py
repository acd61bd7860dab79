"""Two answers side by side: decibels, infotexts, and the keys of ``info``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scripts.fidelity.answers import Answer
from scripts.fidelity.case import Case

SAME_PICTURE_DECIBELS = 60.0
SAME_LETTERS_DECIBELS = 25.0
"""Small letters differ at their edges from one FreeType to the next."""
OF_THE_MOMENT = ("job_timestamp", "version", "infotexts")
OURS_ALONE = ("comments",)
"""Sentences to the caller, which the webui shows in its page only; we put them into ``info``."""


@dataclass(frozen=True)
class Row:
    """``decibels``: of the least similar picture; infinite for equal ones, None without pictures."""

    group: str
    name: str
    decibels: float | None
    differences: tuple[str, ...]

    @property
    def same(self) -> bool:
        near = self.decibels is None or self.decibels >= SAME_PICTURE_DECIBELS
        return near and not self.differences


def compared(case: Case, webui: Answer, ours: Answer) -> Row:
    group, name = case.group, case.name
    if webui.status != 200 or ours.status != 200:
        return Row(group, name, None, _refused(webui, ours))
    differences = [*_infotexts(webui, ours), *_info(webui.info or {}, ours.info or {})]
    sizes = [[image.size for image in side.pictures] for side in (webui, ours)]
    if sizes[0] != sizes[1]:
        return Row(group, name, 0.0, (f"pictures: {sizes[0]} there, {sizes[1]} here", *differences))
    near = [decibels(one, other) for one, other in zip(webui.pictures, ours.pictures, strict=True)]
    if min(near[: case.lettered], default=math.inf) < SAME_LETTERS_DECIBELS:
        differences.append(f"grid with letters: {min(near[: case.lettered]):.1f} dB")
    near = near[case.lettered :]
    return Row(group, name, min(near, default=None), tuple(differences))


def decibels(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio over all pixels, alpha included where there is any."""
    mode = "RGBA" if "A" in one.getbands() + other.getbands() else "RGB"
    pixels = [np.asarray(image.convert(mode), dtype=np.float64) for image in (one, other)]
    error = float(((pixels[0] - pixels[1]) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _refused(webui: Answer, ours: Answer) -> tuple[str, ...]:
    if webui.status != 200 and ours.status != 200:
        return ()  # how each words it is its own
    there = "answers 200" if webui.status == 200 else f"{webui.status} {webui.refusal:.90}"
    here = "answers 200" if ours.status == 200 else f"{ours.status} {ours.refusal:.90}"
    return (f"webui: {there}; here: {here}",)


def _without_version(text: str) -> str:
    return re.sub(r"(, )?Version: [^,\n]*", "", text)


def _infotexts(webui: Answer, ours: Answer) -> list[str]:
    there, here = ([_without_version(text) for text in side.infotexts] for side in (webui, ours))
    if there == here:
        return []
    for one, other in zip(there, here, strict=False):
        if one != other:
            start = next(
                (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
            start = max(0, start - 20)
            return [f"infotext: …{one[start : start + 120]!r} there, …{other[start : start + 120]!r} here"]
    return [f"infotexts: {len(there)} there, {len(here)} here"]


def _info(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted({*there, *here} - {*OF_THE_MOMENT, *OURS_ALONE}):
        if key not in there or key not in here:
            found.append(f"info.{key}: only {'there' if key in there else 'here'}")
        elif there[key] != here[key]:
            found.append(f"info.{key}: {there[key]!r:.160} there, {here[key]!r:.160} here")
    return found
