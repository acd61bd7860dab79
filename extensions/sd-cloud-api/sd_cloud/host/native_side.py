"""The side of the square pictures that a checkpoint was trained on: the size its form begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from sd_cloud.dialects.dashscope_models import Base, base_of
from sd_cloud.engines.base import Checkpoint

#: Pixels to a latent's side.
FACTOR = 8
SIDES: Mapping[Base | None, int] = {"sd1": 512, "sdxl": 1024, "sd3": 1024, None: 512}


def native_side(checkpoint: Checkpoint | None) -> int:
    """In pixels: what the sidecar yaml says (``image_size``, in latents), else what its base has."""
    if checkpoint is None:
        return SIDES[None]
    if checkpoint.config is not None:
        said = _image_size(Path(checkpoint.config))
        if isinstance(said, int) and said > 0:
            return said * FACTOR
    return SIDES[base_of(checkpoint.filename)]


def _image_size(sidecar: Path) -> object:
    """None also for a file that the engine will refuse by name once it is asked for the checkpoint."""
    try:
        return yaml.safe_load(sidecar.read_text("utf-8"))["model"]["params"]["image_size"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
