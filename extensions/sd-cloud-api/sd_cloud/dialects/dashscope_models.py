"""Which installed checkpoint stands for a DashScope model name.

A name in ``--dashscope-model NAME=CHECKPOINT`` is that checkpoint; another one the first installed
checkpoint of its base, by the names of its tensors; and any installed one when there is none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sd_cloud.engines.base import Catalogue, Checkpoint
from sd_cloud.errors import CheckpointNotFound

log = logging.getLogger(__name__)

Base = Literal["sd1", "sdxl", "sd3"]

LIMIT_HEADER_BYTES = 100_000_000
#: A tensor that only checkpoints of that base have (names of the original repositories).
TELLING: tuple[tuple[str, Base], ...] = (
    ("joint_blocks.0.", "sd3"),
    ("conditioner.embedders.1.", "sdxl"),
    ("cond_stage_model.transformer.", "sd1"),
)


@dataclass(frozen=True)
class Model:
    """A model of the guides: its base, its default size and steps, and the sizes it takes.

    ``old``: of the guide for SD 1.5 and XL, whose guidance is ``scale``; else ``cfg``.
    """

    name: str
    base: Base
    steps: int
    guidance: float
    sides: tuple[int, ...]
    default_side: int
    old: bool

    @property
    def sizes(self) -> list[str]:
        return [f"{width}*{height}" for width in self.sides for height in self.sides]


_SIDES = (512, 640, 768, 896, 1024)
MODELS: Mapping[str, Model] = {
    one.name: one
    for one in (
        Model("stable-diffusion-v1.5", "sd1", 50, 10.0, (512,), 512, old=True),
        Model("stable-diffusion-xl", "sdxl", 50, 10.0, _SIDES, 1024, old=True),
        Model("stable-diffusion-3.5-large", "sd3", 40, 4.5, _SIDES, 1024, old=False),
        Model("stable-diffusion-3.5-large-turbo", "sd3", 40, 4.5, _SIDES, 1024, old=False),
    )
}


class Choice:
    """The table of one service; what it decided by itself is logged once."""

    def __init__(self, table: Sequence[tuple[str, str]]) -> None:
        self._table = dict(table)
        self._told: set[tuple[str, str]] = set()

    def checkpoint(self, model: Model, catalogue: Catalogue) -> Checkpoint:
        """Reads headers of files: call it in a thread. Raises CheckpointNotFound."""
        wanted = self._table.get(model.name)
        if wanted is not None:
            found = catalogue.checkpoint(wanted)
            if found is None:
                raise CheckpointNotFound(
                    f"--dashscope-model maps {model.name} to {wanted!r}, which is not installed",
                    field="model",
                )
            return found
        if not catalogue.checkpoints:
            raise CheckpointNotFound("no checkpoint is installed", field="model")
        of_base = [one for one in catalogue.checkpoints if base_of(one.filename) == model.base]
        of_base.sort(key=lambda one: ("turbo" in one.name.lower()) != ("turbo" in model.name))
        chosen = of_base[0] if of_base else catalogue.checkpoints[0]
        if (model.name, chosen.name) not in self._told:
            self._told.add((model.name, chosen.name))
            if of_base:
                log.info("DashScope's %s is %s", model.name, chosen.name)
            else:
                log.warning(
                    "no checkpoint of %s's base (%s) is installed: it is %s; --dashscope-model changes that",
                    model.name,
                    model.base,
                    chosen.name,
                )
        return chosen


def base_of(filename: str) -> Base | None:
    """The base of a safetensors checkpoint; None for another one, and for what can't be read."""
    path = Path(filename)
    try:
        stat = path.stat()
    except OSError:
        return None
    return _base_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _base_of(path: Path, size_bytes: int, changed: int) -> Base | None:
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size_bytes, LIMIT_HEADER_BYTES):
            return None
        try:
            names = json.loads(file.read(length))
        except ValueError:
            return None
    return next((base for part, base in TELLING if any(part in name for name in names)), None)
