"""What saved pictures are called: by the EAS guide, by the webui's options, or by task id."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from sd_cloud.job import Job, Outcome, Picture, Role
from sd_cloud.outputs.patterns import Facts, expand
from sd_cloud.outputs.png import CONTENT_TYPES, LONGEST_SIDE
from sd_cloud.roots import OWNERS_FOLDER, owner_folder
from sd_cloud.settings import Settings

#: Longest file name that common file systems take, in bytes.
LIMIT_NAME_BYTES = 255

#: What the webui puts behind the name of a picture that is not the result itself.
SUFFIXES: dict[Role, str] = {
    "mask": "-mask",
    "mask_composite": "-mask-composite",
    "first_pass": "-before-highres-fix",
}
#: The option that says whether such a picture is saved at all, and whether it is by default.
SAVED_BY_OPTION: dict[Role, tuple[str, bool]] = {
    "image": ("samples_save", True),
    "grid": ("grid_save", True),
    "mask": ("save_mask", False),
    "mask_composite": ("save_mask_composite", False),
    "first_pass": ("save_images_before_highres_fix", False),
}


@dataclass(frozen=True)
class Name:
    """Where one picture goes: ``folder`` (relative to the target) and ``stem.ending``.

    ``numbered``: the folder's next free number stands before the stem, behind ``basename``.
    ``replaces``: a file of that name may be replaced.
    """

    folder: Path
    stem: str
    ending: str = "png"
    numbered: bool = False
    basename: str = ""
    replaces: bool = True

    def with_number(self, number: int) -> str:
        counted = f"{self.basename}-{number:04}" if self.basename else f"{number:05}"
        return self.fitted(f"{counted}-{self.stem}" if self.stem else counted)

    def fitted(self, stem: str) -> str:
        """The file name, cut to what a file system takes."""
        room = LIMIT_NAME_BYTES - len(self.ending) - 1
        return f"{stem.encode('utf-8', 'replace')[:room].decode('utf-8', 'ignore')}.{self.ending}"


def eas_name(job: Job, picture: Picture, moment: datetime) -> Name:
    """``<kind>-images/<date>/<time>-<uuid>-<seed>.png``, and the guide's folders for the rest."""
    unique = f"{moment:%H%M%S}-{uuid.uuid4()}"
    if picture.role == "grid":
        folder, stem = f"{job.kind}-grids", f"grid-{unique}"
    elif picture.role == "control_map":
        folder, stem = "controlnet_mask", unique
    else:
        seed = "" if picture.seed is None else f"-{picture.seed}"
        folder, stem = f"{job.kind}-images", f"{unique}{seed}{SUFFIXES.get(picture.role, '')}"
    return Name(Path(folder) / f"{moment:%Y-%m-%d}", stem)


def task_name(job: Job, number: int) -> Name:
    """``images/<owner>/<task id>_<number>.png``, numbers from 1."""
    return Name(Path(OWNERS_FOLDER) / owner_folder(job.owner), f"{quote(job.id, safe='')}_{number}")


def webui_name(
    settings: Settings, job: Job, outcome: Outcome, picture: Picture, index: int, moment: datetime
) -> Name | None:
    """The name that the options give a picture; None when they say that it is not saved."""
    if picture.image is None or picture.role not in SAVED_BY_OPTION:
        return None
    option, default = SAVED_BY_OPTION[picture.role]
    if not job.option(option, default):
        return None
    facts = Facts(job, outcome.info, picture.image, moment, picture.seed, index)
    grid = picture.role == "grid"
    folder = _folder(settings, job, grid=grid)
    if job.option("grid_save_to_dirs" if grid else "save_to_dirs", True) and job.kind != "extras":
        pattern = str(job.option("directories_filename_pattern", "[date]") or "[prompt_words]")
        folder = folder / expand(pattern, facts).lstrip(" /").rstrip("\\ /")
    below, stem = _parted(_stem(job, facts, grid=grid))
    folder, stem = folder.joinpath(*below), stem + SUFFIXES.get(picture.role, "")
    return Name(
        folder,
        stem,
        _ending(job, picture.image.size, grid=grid),
        numbered=bool(job.option("save_images_add_number", True)) or not stem,
        basename="grid" if grid else "",
        replaces=job.option("save_images_replace_action", "Replace") == "Replace",
    )


def _folder(settings: Settings, job: Job, *, grid: bool) -> Path:
    """The option's folder. A relative one is below the data dir, as the webui's is below its own."""
    what = "grids" if grid else "samples"
    given = job.option(f"outdir_{what}") or job.option(f"outdir_{job.kind}_{what}")
    default = f"{job.kind}-{'grids' if grid else 'images'}"
    return settings.data_dir / str(given) if given else settings.outputs_dir / default


def _stem(job: Job, facts: Facts, *, grid: bool) -> str:
    if job.kind == "extras" or (grid and not job.option("grid_extended_filename", False)):
        return ""
    default = "[seed]" if job.option("save_to_dirs", True) else "[seed]-[prompt_spaces]"
    return expand(str(job.option("samples_filename_pattern") or default), facts)


def _parted(stem: str) -> tuple[list[str], str]:
    """A stem whose pattern names folders, taken apart: they are below the picture's folder."""
    *below, last = [part for part in re.split(r"[/\\]", stem) if part] or [""]
    return below, last


def _ending(job: Job, size: tuple[int, int], *, grid: bool) -> str:
    """The format's ending; png where the picture is too large for the format."""
    ending = str(job.option("grid_format" if grid else "samples_format") or "png").lower()
    too_large = ending in CONTENT_TYPES and max(size) > LONGEST_SIDE.get(ending, max(size))
    return "png" if too_large else ending
