"""One request to compare, and what most requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.fidelity import pictures

CAT = "a red cat on a wooden table, watercolor"
BASE: dict[str, Any] = {
    "prompt": CAT,
    "steps": 5,
    "width": 64,
    "height": 64,
    "seed": 1234,
    "subseed": 77,  # of no effect without a strength; left out, each side draws its own
    "sampler_name": "Euler a",
    "cfg_scale": 7,
}
PARTS = ", ".join(f"thing number {number} of the long list" for number in range(40))


@dataclass(frozen=True)
class Case:
    """``group``: the heading it stands under. ``route``: below ``/sdapi/v1/``.

    ``options`` are set as the host's own for the while of the request. ``lettered``: so many of its first
    pictures are grids with letters around them.
    """

    group: str
    name: str
    route: str
    request: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    lettered: int = 0


def case(group: str, name: str, route: str = "txt2img", /, **fields: Any) -> Case:
    return Case(group, name, route, {**BASE, **fields})


def under(one: Case, **options: Any) -> Case:
    return replace(one, options=options)


def source(denoising: float) -> dict[str, Any]:
    size = {"width": 128, "height": 128}
    return {"init_images": [pictures.plain()], "denoising_strength": denoising, **size}


def hires_fields(**fields: Any) -> dict[str, Any]:
    return {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "hr_second_pass_steps": 4,
        **fields,
    }


def lettered(one: Case, count: int = 1) -> Case:
    return replace(one, lettered=count)
