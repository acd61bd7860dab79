"""Fetch the drawings, rasterise them, recolour some: one array of pictures and one index."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .concepts import (
    COLOURED,
    COLOURS,
    CORE,
    FAVOURITES,
    HELD_OUT_PAIRS,
    LABELS,
    MAIN_STYLE,
    NAMES_PACKAGE,
    STYLES,
)

SIDE = 64
MARGIN = 3
SUPERSAMPLE = 4
# How often a picture is seen, relative to a plain one of a core concept in the main style.
FAVOURITE_WEIGHT = 2.5
COLOURED_WEIGHT = 0.35
OTHER_STYLE_WEIGHT = 0.25
OTHER_CONCEPT_WEIGHT = 0.4


@dataclass(frozen=True)
class Entry:
    """One picture: what it shows, in whose style, and in which colour if it was recoloured."""

    concept: str
    style: str
    colour: str
    tags: tuple[str, ...]


def weight_of(entry: Entry) -> float:
    """How often a picture is drawn from the data, relative to a plain core one in the main style."""
    concept = 1.0 if entry.concept in CORE else OTHER_CONCEPT_WEIGHT
    if entry.style != MAIN_STYLE:
        return OTHER_STYLE_WEIGHT * concept * (COLOURED_WEIGHT if entry.colour else 1.0)
    if entry.colour:
        return COLOURED_WEIGHT * concept
    return FAVOURITE_WEIGHT if entry.concept in FAVOURITES else concept


def weights_of(entries: tuple[Entry, ...]) -> torch.Tensor:
    return torch.tensor([weight_of(entry) for entry in entries])


@dataclass(frozen=True)
class Dataset:
    pictures: np.ndarray  # uint8, [n, side, side, 3], on white
    entries: tuple[Entry, ...]

    def in_ink(self, ink: tuple[int, int, int]) -> Dataset:
        """The same drawings in one ink on white: dark colours become the ink, light ones fade."""
        light = (self.pictures @ np.array([0.299, 0.587, 0.114], np.float32) / 255)[..., None] ** 1.4
        drawn = np.array(ink, np.float32) * (1 - light) + 255 * light
        return replace(self, pictures=drawn.clip(0, 255).round().astype(np.uint8))

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        return tuple(sorted({entry.concept for entry in self.entries}))


def fetch_package(name: str, folder: Path) -> Path:
    """Download an npm package with the npm client, once; returns its unpacked folder."""
    target = folder / name.replace("@", "").replace("/", "-")
    if (target / "package.json").exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True, text=True
    )
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        for member in archive.getmembers():
            member.name = str(Path(*Path(member.name).parts[1:]))
            archive.extract(member, target, filter="data")
    return target


class IconSet:
    """An Iconify set: emoji code point -> SVG."""

    def __init__(self, folder: Path) -> None:
        self._icons: dict[str, Any] = json.loads((folder / "icons.json").read_text())
        names: dict[str, str] = json.loads((folder / "chars.json").read_text())
        self._names = {_bare(code): name for code, name in names.items()}

    def svg(self, code: str) -> str | None:
        name = self._names.get(_bare(code))
        name = self._icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self._icons["icons"].get(name)
        if icon is None:
            return None
        width = icon.get("width", self._icons.get("width", 16))
        height = icon.get("height", self._icons.get("height", 16))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )


def _bare(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def rasterise(svg: str, side: int = SIDE) -> np.ndarray:
    """Draw on white, cropped to what is drawn and centred with a small margin."""
    import resvg_py

    large = side * SUPERSAMPLE
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    box = drawn.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise ValueError("the SVG draws nothing")
    drawn = drawn.crop(box)
    room = side - 2 * MARGIN
    scale = room / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    premultiplied = drawn.convert("RGBa").resize(size, Image.Resampling.BOX)
    small = premultiplied.convert("RGBA")
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas.convert("RGB"))


def recolour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Turn the picture's main hue into `colour`, leaving other hues, greys and shades."""
    hue, saturation_factor, value_power = COLOURS[colour]
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).astype(np.float32) / 255
    h, s, v = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    weights = np.where(s > 0.25, s * v, 0)
    histogram, _ = np.histogram(h, bins=36, range=(0, 1), weights=weights)
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    main = (int(smooth.argmax()) + 0.5) / 36
    distance = np.abs((h - main + 0.5) % 1 - 0.5)
    chosen = (distance < 0.11) & (s > 0.12)
    shifted = (hue + ((h - main + 0.5) % 1 - 0.5) * 0.3) % 1
    out = np.stack(
        [
            np.where(chosen, shifted, h),
            np.where(chosen, np.clip(s * saturation_factor, 0, 1), s),
            np.where(chosen, v**value_power, v),
        ],
        axis=-1,
    )
    return np.asarray(Image.fromarray((out * 255).round().astype(np.uint8), "HSV").convert("RGB"))


def build(work: Path, side: int = SIDE) -> Dataset:
    """Make the data set in `work/data` (or load it, when it is there)."""
    folder = work / "data"
    pictures_file, index_file = folder / f"drawings-{side}.npy", folder / f"drawings-{side}.json"
    if not index_file.exists():
        pictures, entries = _draw(work / "npm", side)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(pictures_file, pictures)
        index_file.write_text(json.dumps([asdict(entry) for entry in entries], indent=0))
    entries_json = json.loads(index_file.read_text())
    return Dataset(
        np.load(pictures_file),
        tuple(Entry(e["concept"], e["style"], e["colour"], tuple(e["tags"])) for e in entries_json),
    )


def _draw(packages: Path, side: int) -> tuple[np.ndarray, list[Entry]]:
    names = json.loads((fetch_package(NAMES_PACKAGE, packages) / "en" / "data.json").read_text())
    by_label = {name["label"]: name for name in names}
    pictures: list[np.ndarray] = []
    entries: list[Entry] = []
    for style, package in STYLES.items():
        icons = IconSet(fetch_package(package, packages))
        for label in LABELS:
            name = by_label[label]
            svg = icons.svg(name["hexcode"])
            if svg is None:
                print(f"{package} has no {label}")
                continue
            drawn = rasterise(svg, side)
            tags = tuple(name.get("tags", ()))
            pictures.append(drawn)
            entries.append(Entry(label, style, "", tags))
            noun = COLOURED.get(label)
            if noun is None:
                continue
            for colour in COLOURS:
                if (colour, noun) not in HELD_OUT_PAIRS:
                    pictures.append(recolour(drawn, colour))
                    entries.append(Entry(label, style, colour, tags))
    return np.stack(pictures), entries
