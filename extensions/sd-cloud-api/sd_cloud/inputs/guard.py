"""Paths that a request names, wherever it names them, and the rule that they all obey.

A path is below an output root, links followed, and outside the folders of models, extensions and
state (:mod:`sd_cloud.roots`). The rule is looked at before a job is queued (:func:`check_paths`);
:func:`settle_paths` then puts the resolved, absolute path in each place, so that what was checked is
what the engine opens, whatever folder it runs in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_cloud.errors import InputRefused
from sd_cloud.inputs.pictures import is_bare_picture
from sd_cloud.inputs.units import controlnet_units, is_controlnet
from sd_cloud.job import Job
from sd_cloud.oss import SCHEME, Oss
from sd_cloud.roots import CLOSED_FOLDERS, Roots

#: Options that are one path.
PATH_OPTIONS = frozenset({"profiling_filename", "restore_config_state_file"})
_PATH_OPTION = re.compile(r"outdir_.*|.*_(dir|path|folder)")
#: Options that are patterns of a path's last parts.
PATTERN_OPTIONS = frozenset(
    {"samples_filename_pattern", "directories_filename_pattern", "grid_zip_filename_pattern"}
)
#: Options that become the ending of a file's name.
ENDING_OPTIONS = frozenset({"samples_format", "grid_format"})

#: Fields of a ControlNet unit that are folders or lists of files: one that is written to, and those read.
UNIT_TARGET = "output_dir"
UNIT_SOURCES = ("batch_images", "batch_mask_dir", "batch_image_files", "input_dir")

LIMIT_PATH_CHARS = 4096
_TOKEN = re.compile(r"\[[^\[\]]+\]")
_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"/|\\|~(/|$)|file:|[A-Za-z]:[/\\]", re.IGNORECASE)


@dataclass(frozen=True)
class PathSlot:
    """One place in a payload where a path stands; a relative one is below ``below``.

    ``reads``: what is there is read, and shown to the caller in some form.
    """

    container: Any
    key: Any
    field: str
    below: Path | None = None
    reads: bool = True

    def place(self, roots: Roots, owner: str) -> Path:
        """Raises InputRefused."""
        find = roots.readable if self.reads else roots.place
        return find(str(self.container[self.key]), field=self.field, below=self.below, owner=owner)


def check_paths(job: Job, roots: Roots, oss: Oss, data_dir: Path) -> None:
    """Raise InputRefused, naming the field and the rule, for the first path that is not allowed."""
    if job.target is not None and job.target.save_dir:
        save_dir = job.target.save_dir
        if save_dir.startswith(SCHEME):
            oss.allowed(save_dir, field="save_dir")
        else:
            roots.place(save_dir, field="save_dir", owner=job.owner)
    if job.kind == "call":
        return  # replayed through the app, whose routes check for themselves
    override = job.payload.get("override_settings")
    if isinstance(override, Mapping):
        check_options(override, roots, data_dir, owner=job.owner, field="override_settings")
    for slot in _slots(job.payload, data_dir):
        slot.place(roots, job.owner)
    for text, field in _script_texts(job.payload):
        if text.startswith("/") and names_a_place(text):
            roots.readable(text, field=field, owner=job.owner)
        elif names_a_place(text):
            # Below which folder the script would look for it is not known here.
            raise InputRefused(
                f"{text!r} looks like a path; name it by its absolute path below an output folder",
                field=field,
            )


def settle_paths(payload: dict[str, Any], job: Job, roots: Roots, data_dir: Path) -> None:
    """Put the resolved path in each place of a payload, which is changed."""
    for slot in list(_slots(payload, data_dir)):
        slot.container[slot.key] = str(slot.place(roots, job.owner))


def check_options(values: Mapping[str, Any], roots: Roots, data_dir: Path, *, owner: str, field: str) -> None:
    """The rule for options: folders, filename patterns and formats. Raises InputRefused."""
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            continue
        where = f"{field}.{name}"
        if _is_path_option(name):
            roots.place(value, field=where, below=data_dir, owner=owner)
        elif name in PATTERN_OPTIONS:
            check_pattern(value, field=where)
        elif name in ENDING_OPTIONS and not re.fullmatch(r"[A-Za-z0-9]{1,5}", value):
            raise InputRefused(f"{value!r} is not the ending of a file's name", field=where)


def check_pattern(pattern: str, *, field: str) -> None:
    """Refuse a filename pattern that is absolute or climbs, also when its tokens become nothing."""
    for text in (pattern, _TOKEN.sub("", pattern)):
        parts = [part.strip() for part in _SEPARATOR.split(text)]
        if "\0" in text or ".." in parts:
            raise InputRefused(f"{pattern!r} climbs out of its folder", field=field)
    if _ABSOLUTE.match(pattern.strip()):
        raise InputRefused(f"{pattern!r} is absolute; a pattern is below its folder", field=field)


def names_a_place(text: str) -> bool:
    """Whether a free text is a path that could lead out of a folder, or into a closed one."""
    if not text or len(text) > LIMIT_PATH_CHARS or "\n" in text or is_bare_picture(text):
        return False
    parts = _SEPARATOR.split(text)
    closed = len(parts) > 1 and parts[0].lower() in CLOSED_FOLDERS
    return bool(_ABSOLUTE.match(text)) or ".." in parts or closed


def _is_path_option(name: str) -> bool:
    return name in PATH_OPTIONS or _PATH_OPTION.fullmatch(name) is not None


def _slots(payload: Mapping[str, Any], data_dir: Path) -> Iterator[PathSlot]:
    override = payload.get("override_settings")
    for name, value in override.items() if isinstance(override, dict) else ():
        if isinstance(value, str) and value and _is_path_option(name):
            yield PathSlot(override, name, f"override_settings.{name}", data_dir, reads=False)
    for unit, field in controlnet_units(payload):
        for name in (UNIT_TARGET, *UNIT_SOURCES):
            value = unit.get(name)
            if isinstance(value, str) and value.strip():
                yield PathSlot(unit, name, f"{field}.{name}", reads=name != UNIT_TARGET)
            elif isinstance(value, list) and name == "batch_image_files":
                for index, one in enumerate(value):
                    if isinstance(one, str):
                        yield PathSlot(value, index, f"{field}.{name}[{index}]")


def _script_texts(payload: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text in the arguments of scripts that we do not know, with its field."""
    yield from _texts(payload.get("script_args"), "script_args")
    scripts = payload.get("alwayson_scripts")
    for name, block in scripts.items() if isinstance(scripts, Mapping) else ():
        if not is_controlnet(name):
            yield from _texts(block, f"alwayson_scripts.{name}")


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield value, field
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(one, f"{field}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _texts(one, f"{field}[{index}]")
