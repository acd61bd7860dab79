"""The webui's options: their names and defaults, and the user's own values in config.json.

The file is the webui's own, so that a data dir can be shared with one: keys that this host does
not know stay in it as they are.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import tempfile
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sd_cloud.errors import BadRequest, NotAllowed, NotFound, SavingFailed
from sd_cloud.settings import Settings

log = logging.getLogger(__name__)

DEFAULTS = Path(__file__).with_name("option_defaults.json")
#: Names of options by the section of the webui's settings page that they stand in.
SECTIONS = Path(__file__).with_name("option_sections.json")

#: Texts shown on the settings page; the webui stores no value for them either.
EXPLANATIONS = frozenset(
    {
        *("profiling_explanation", "sd_vae_explanation", "infotext_explanation", "hypertile_explanation"),
        "settings_in_ui",
    }
)
_PICTURE_FORMATS = ("png", "jpg", "jpeg", "webp")
CHOICES: Mapping[str, tuple[object, ...]] = {
    "samples_format": _PICTURE_FORMATS,
    "grid_format": _PICTURE_FORMATS,
    "live_previews_image_format": ("png", "jpeg", "webp", "jpg"),
    "randn_source": ("GPU", "CPU", "NV"),
    "emphasis": ("None", "Ignore", "Original", "No norm"),
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "CLIP_stop_at_last_layers": (1, 12),
    "jpeg_quality": (1, 100),
    "s_min_uncond": (0, 15),
    "ESRGAN_tile": (0, 8192),
    "ESRGAN_tile_overlap": (0, 1024),
    "code_former_weight": (0, 1),
}


#: What the webui's --hide-ui-dir-config keeps from being changed.
PATHS = frozenset(
    {
        *("clean_temp_dir_at_start", "temp_dir", "directories_filename_pattern", "samples_filename_pattern"),
        *("outdir_samples", "outdir_txt2img_samples", "outdir_img2img_samples", "outdir_extras_samples"),
        *("outdir_grids", "outdir_txt2img_grids", "outdir_save", "outdir_init_images"),
    }
)


class OptionsUnreadable(ValueError):
    """config.json is no JSON object, or a flag names a section that is none; the message says which."""


def frozen_options(settings: Settings) -> frozenset[str]:
    """Names of options that nobody can change, from the launch flags. Raises OptionsUnreadable."""
    sections: dict[str, list[str]] = json.loads(SECTIONS.read_text())
    names = {*settings.frozen_options, *(PATHS if settings.paths_frozen else ())}
    for section in settings.frozen_sections:
        if section not in sections:
            known = ", ".join(sorted(sections))
            raise OptionsUnreadable(
                f"--freeze-settings-in-sections: there is no section {section!r}; there are {known}"
            )
        names.update(sections[section])
    return frozenset(names)


class Options:
    """What ``config.json`` of a data dir says, over the webui's defaults."""

    def __init__(
        self,
        data_dir: Path,
        file: Path | None = None,
        frozen: Collection[str] = (),
        set_at_start: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Read ``config.json`` of the data dir, or another file, if there is one. Raises OptionsUnreadable.

        ``frozen``: names of options that nobody can change; ``*`` stands for all. ``set_at_start``
        counts instead of what the file says, and is written with the next change.
        """
        self.path = file or data_dir / "config.json"
        self._frozen = frozenset(frozen)
        self.defaults: Mapping[str, Any] = _defaults(data_dir)
        self._given = {**_read(self.path), **set_at_start}
        self._writing = threading.Lock()

    def snapshot(self) -> dict[str, Any]:
        """Every option by name, the user's unknown ones included. A copy."""
        return {**self.defaults, **self._given}

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name, self.defaults[name])

    def check(self, values: Mapping[str, Any], field: str = "") -> None:
        """Raise NotFound for a name that is no option, BadRequest for a value it cannot have.

        ``field`` is the request's field that holds the values, for the message.
        """
        for name, value in values.items():
            where = f"{field}.{name}" if field else name
            if name not in self.defaults:
                near = difflib.get_close_matches(name, self.defaults, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "; /sdapi/v1/options lists them"
                raise NotFound(f"there is no such option{hint}", field=where)
            wrong = _objection(name, value, self.defaults[name])
            if wrong:
                raise BadRequest(wrong, field=where)

    def change(self, values: Mapping[str, Any]) -> None:
        """Check, set and write them. A null sets an option back to its default.

        Blocks on the disk: call it in a thread. Raises NotFound, BadRequest, NotAllowed, SavingFailed;
        then nothing has changed.
        """
        self.check(values)
        for name in values:
            if name in self._frozen or "*" in self._frozen:
                raise NotAllowed(f"{name}: this option is frozen by the service's launch flags")
        kept = {name: value for name, value in values.items() if name not in EXPLANATIONS}
        with self._writing:
            given = {**self._given, **kept}
            for name in [name for name, value in kept.items() if value is None]:
                del given[name]
            _write(self.path, given)
            self._given = given


def _defaults(data_dir: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(DEFAULTS.read_text())
    return {
        name: value.replace("{data_dir}", str(data_dir)) if isinstance(value, str) else value
        for name, value in raw.items()
    }


def _objection(name: str, value: Any, default: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) != isinstance(default, bool) and default is not None:
        return f"expected {_word(default)}, got {_shown(value)}"
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        if not isinstance(value, (int, float)):
            return f"expected a number, got {_shown(value)}"
        if not math.isfinite(value):
            return "expected a finite number"
    elif not isinstance(value, str if default is None else type(default)):
        return f"expected {_word(default)}, got {_shown(value)}"
    if name in CHOICES and value not in CHOICES[name]:
        return f"expected one of {', '.join(map(str, CHOICES[name]))}, got {_shown(value)}"
    if name in _RANGES and not _RANGES[name][0] <= value <= _RANGES[name][1]:
        return f"expected {_RANGES[name][0]:g} to {_RANGES[name][1]:g}, got {_shown(value)}"
    return None


def _word(default: Any) -> str:
    words = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return words.get(type(default), "a number" if default is not None else "a text")


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8") or "{}")
    except ValueError as error:
        raise OptionsUnreadable(f"{path} is no JSON ({error}); mend it or move it away") from error
    if not isinstance(given, dict):
        raise OptionsUnreadable(f"{path} holds no JSON object; mend it or move it away")
    return given


def _write(path: Path, given: Mapping[str, Any]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    text = json.dumps(given, indent=4, ensure_ascii=False)
    try:
        handle, name = tempfile.mkstemp(prefix=".config-", suffix=".json", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                Path(name).chmod(path.stat().st_mode & 0o777)
            else:
                Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, UnicodeEncodeError) as error:
        raise SavingFailed(f"{path} could not be written: {error}") from error
