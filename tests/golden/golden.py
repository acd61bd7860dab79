"""The golden pictures as data: requests, pictures and infotexts that webui 1.10.1 made."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sd_cloud.job import Job
from sd_cloud.settings import Settings, settings_below

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
CHECKPOINTS = ("tiny-a", "tiny-b", "tiny-sd2v", "tiny-sdxl")


@dataclass(frozen=True)
class Case:
    name: str
    job: Job
    images: tuple[Path, ...]
    infotexts: tuple[str, ...]
    seeds: tuple[int, ...]


def cases() -> list[Case]:
    """All cases; none where the golden pictures are not beside the checkout."""
    listing = GOLDEN / "cases.json"
    if not listing.is_file():
        return []
    return [_case(entry) for entry in json.loads(listing.read_text("utf-8"))]


def _case(entry: dict[str, Any]) -> Case:
    request = {key: _filled(value) for key, value in entry["request"].items()}
    if isinstance(request.get("init_images"), str):
        request["init_images"] = [request["init_images"]]
    return Case(
        name=entry["name"],
        job=Job(kind=entry["route"], payload=request, options={"sd_model_checkpoint": "tiny-a"}),
        images=tuple(GOLDEN / "cases" / name for name in entry["images"]),
        infotexts=tuple(entry["infotexts"]),
        seeds=tuple(entry["all_seeds"]),
    )


def _filled(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        return base64.b64encode((GOLDEN / "cases" / value[1:]).read_bytes()).decode("ascii")
    return value


def install_models(data_dir: Path) -> Settings:
    """A data dir with links to the golden model files where the webui looks for them."""
    places = {
        **{
            f"{name}.{ending}": "models/Stable-diffusion"
            for name in CHECKPOINTS
            for ending in ("safetensors", "yaml")
        },
        "tiny-vae.safetensors": "models/VAE",
        "tiny-style.safetensors": "models/Lora",
        "tiny-word.safetensors": "embeddings",
    }
    for name, folder in places.items():
        place = data_dir / folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(GOLDEN / "checkpoints" / name)
    return settings_below(data_dir, min_ram_reserved_gib=0.5)


def decibels(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio over all pixels; infinite for equal pictures."""
    assert one.size == other.size, f"{one.size} is not {other.size}"
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float64) for image in (one, other)]
    error = float(((pixels[0] - pixels[1]) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def without_version(infotext: str) -> str:
    return re.sub(r", Version: [^,]*", "", infotext)


def compared(images: tuple[Path, ...], made: list[Image.Image]) -> Iterator[float]:
    for path, image in zip(images, made, strict=True):
        with Image.open(path) as golden:
            yield decibels(golden, image)
