"""Preprocessors that answer with numbers instead of a map: what image prompts take in.

Which networks each looks through is sd-webui-controlnet's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sd_cloud.engines.diffusion.placement import placement_for
from sd_cloud.engines.diffusion.preprocess.clip_vision import Seen, see, see_nothing
from sd_cloud.engines.diffusion.preprocess.detect import resized, weights_files
from sd_cloud.engines.diffusion.preprocess.eva_clip import Looks, look
from sd_cloud.engines.diffusion.preprocess.face_analysis import embedding, faces, largest
from sd_cloud.engines.diffusion.preprocess.face_parts import feature_values
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench, bytes_of
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.engines.diffusion.preprocess.table import (
    CLIP_EVA,
    CLIP_H,
    FACE_ID_FILES,
    FACE_PARTS_FILES,
    INSTANT_ID_FILES,
    MODULES,
    PULID,
)
from sd_cloud.engines.diffusion.weights_file import read_pickle
from sd_cloud.settings import Settings

NOTHING = "ip-adapter_clip_sd15"
"""The preprocessor whose view of nothing the negative prompt gets."""
PULID_PX = 512


@dataclass(frozen=True)
class Person:
    """What PuLID takes: who it is, [1, 512], and how the face looks that is nearest to the middle, which
    ``shown`` shows."""

    face: Tensor
    looks: Looks
    shown: Pixels


@dataclass(frozen=True)
class Embedding:
    """What is known of one picture. ``face``: [1, 512], who is in it, where it is the largest face."""

    seen: Seen | None = None
    face: Tensor | None = None
    person: Person | None = None


def embed(module: Module, image: Pixels, resolution: float, settings: Settings, *, field: str) -> Embedding:
    """What a preprocessor says of RGB, or RGB with a mask. ``resolution``, in px of the shorter side, is
    what InstantID looks at.

    Raises NotImplementedHere, naming the weights that are not there, and BadRequest where a face is
    looked for and none seen.
    """
    files = weights_files(module, settings, field=field)
    if module.name == PULID:
        return Embedding(person=_person(files, image[:, :, :3], settings, field))
    pack = [path for name, path in files.items() if name in FACE_ID_FILES + INSTANT_ID_FILES]
    clip = next((name for name in files if name.startswith("clip_vision/")), None)
    face = None
    if pack:
        for_instant_id = set(INSTANT_ID_FILES) <= set(files)
        face = _face(pack, image[:, :, :3], resolution if for_instant_id else None, field)
    with _bench(files, settings) as bench:
        return Embedding(see(bench, image, clip) if clip else None, face)


def _person(files: Mapping[str, Path], image: Pixels, settings: Settings, field: str) -> Person:
    face = _face([files[name] for name in INSTANT_ID_FILES], image, PULID_PX, field)
    parts = {name: files[name] for name in FACE_PARTS_FILES}
    with Bench(parts, placement_for(settings.precision).device, field) as bench:
        features = feature_values(bench, image)
    with _bench({CLIP_EVA: files[CLIP_EVA]}, settings) as bench:
        return Person(face, look(bench, features, CLIP_EVA), bytes_of(features))


def _face(pack: Sequence[Path], image: Pixels, resolution: float | None, field: str) -> Tensor:
    """Who is in it: as InstantID takes it (with a ``resolution``), or of length 1 as FaceID does."""
    detector, recogniser = pack
    pixels = np.ascontiguousarray(image)
    if resolution is not None:
        pixels, _ = resized(pixels, resolution)
    numbers = embedding(recogniser, pixels, largest(faces(detector, pixels), field=field))
    if resolution is None:
        numbers = numbers / np.linalg.norm(numbers)
    return torch.from_numpy(numbers.astype(np.float32))[None]


def hidden_of_nothing(settings: Settings, *, field: str) -> Tensor:
    """[1, 257, 1280]: what CLIP ViT-H sees where there is no picture, before its last layer.

    Raises NotImplementedHere where neither the extension's own numbers nor the network is there.
    """
    kept = extensions_numbers("clip_vision_h_uc", settings)
    if kept is not None:
        return kept
    files = weights_files(MODULES[NOTHING], settings, field=field)
    with _bench(files, settings) as bench:
        return see_nothing(bench, CLIP_H).hidden


def extensions_numbers(name: str, settings: Settings) -> Tensor | None:
    """A constant that sd-webui-controlnet brings along, from that extension's folder in the data dir or
    beside the networks of CLIP. Raises CheckpointBroken when the file is damaged.
    """
    places = [folder / "clip_vision" for folder in settings.folders.annotators]
    places += [folder.parent / "clipvision" for folder in settings.folders.annotators]
    files = (place / f"{name}.data" for place in places)
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    found: Tensor = read_pickle(path)["uc"]
    return found.float()


def _bench(files: Mapping[str, Path], settings: Settings) -> Bench:
    return Bench(files, placement_for(settings.precision).device)
