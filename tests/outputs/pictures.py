"""Jobs, outcomes and settings that the tests of saving share."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from sd_cloud.job import Job, Kind, Outcome, Picture, Target
from sd_cloud.settings import Settings, settings_below

MOMENT = datetime(2024, 6, 26, 9, 35, 46)
INFOTEXT = "girls\nNegative prompt: ugly\nSteps: 30, Sampler: Euler a, CFG scale: 7.0, Seed: 1003"


def settings_in(folder: Path, **changes: Any) -> Settings:
    return settings_below(folder / "data", **changes)


def job(target: Target | None = None, kind: Kind = "txt2img", **payload: Any) -> Job:
    return Job(kind, {"prompt": "girls", **payload}, target=target or Target("eas"), owner="alice")


def picture(colour: str = "red", **facts: Any) -> Picture:
    return Picture(Image.new("RGB", (16, 8), colour), **{"infotext": INFOTEXT, "seed": 1003, **facts})


def outcome(*pictures: Picture, **info: Any) -> Outcome:
    return Outcome(pictures or (picture(),), info=info)


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()
