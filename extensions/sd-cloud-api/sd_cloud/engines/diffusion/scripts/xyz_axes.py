"""The axes of the X/Y/Z plot: what each changes in a request, and how its values are written.

Names, order and notation: ``scripts/xyz_grid.py`` of webui 1.10.1.
"""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from sd_cloud.engines.diffusion.request import SEEDS, find_sampler
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Kind

Apply = Callable[[Job, Any, Sequence[Any]], Job]
"""The job with one value of an axis put in; all its values come along."""

BOTH: tuple[Kind, ...] = ("txt2img", "img2img")
TRUE_WORDS = ("codeformer", "gfpgan", "true", "yes", "y", "1")
SEED_AXES = ("Seed", "Var. seed")


def _range(number: str, rest: str) -> re.Pattern[str]:
    return re.compile(rf"\s*({number})\s*-\s*({number}){rest}\s*")


_WHOLE, _REAL = r"[+-]?\s*\d+", r"[+-]?\s*\d+(?:.\d*)?"
LIMIT_VALUES = 1000
WHOLE_STEPS = _range(_WHOLE, r"(?:\s*\(([+-]\d+)\s*\))?")
WHOLE_COUNT = _range(_WHOLE, r"(?:\s*\[(\d+)\s*])?")
REAL_STEPS = _range(_REAL, r"(?:\s*\(([+-]\d+(?:.\d*)?)\s*\))?")
REAL_COUNT = _range(_REAL, r"(?:\s*\[(\d+(?:.\d*)?)\s*])?")
"""``1-5``, ``1-5 (+2)``, and ``1-10 [5]`` for so many numbers between."""


def _labelled(axis: Axis, value: Any) -> str:
    return f"{axis.label}: {_short(value)}"


def _plain(axis: Axis, value: Any) -> str:
    return str(_short(value))


def _short(value: Any) -> Any:
    return round(value, 8) if isinstance(value, float) else value


@dataclass(frozen=True)
class Axis:
    """``kind``: int, float or str, or tuple for all orders of the values. ``cost``: the axis whose values
    cost most to change is the outermost loop. ``listed``: the webui's page has a list to choose from,
    which is ``choices`` where it depends on nothing installed.
    ``limits``: the least and the greatest value."""

    label: str
    kind: type
    apply: Apply
    shown: Callable[[Axis, Any], str] = _labelled
    kinds: tuple[Kind, ...] = field(default=BOTH)
    cost: float = 0.0
    listed: bool = False
    choices: tuple[str, ...] = ()
    limits: tuple[int, int] | None = None

    def values(self, written: Any, chosen: Any, where: str, *, as_csv: bool) -> tuple[list[Any], str]:
        """The values, and how the infotext says them. Raises BadRequest, naming the argument."""
        if self.label == "Nothing":
            return [0], ""
        if self.listed and not as_csv:
            words = chosen if isinstance(chosen, list) else []
            if not all(isinstance(one, str) for one in words):
                raise BadRequest(f"{self.label}: must be a list of strings", field=where)
            written = _as_csv(words)
        elif isinstance(written, str):
            words = [
                word.strip()
                for row in csv.reader(io.StringIO(written), skipinitialspace=True)
                for word in row
            ]
        else:
            raise BadRequest(f"{self.label}: must be a string, not {written!r:.80}", field=where)
        try:
            found = self._read(words)
        except ValueError as error:
            raise BadRequest(f"{self.label}: {error}", field=where) from error
        if not found:
            raise BadRequest(f"{self.label}: has no values", field=where)
        outside = [one for one in found if self.limits and not self.limits[0] <= one <= self.limits[1]]
        if self.limits and outside:
            least, most = self.limits
            raise BadRequest(f"{self.label}: {outside[0]} is not from {least} to {most}", field=where)
        return found, written

    def _read(self, words: Sequence[str]) -> list[Any]:
        if self.kind is tuple:
            _not_too_many(math.factorial(min(len(words), 20)), f"the order of {len(words)} parts")
            return list(permutations(words))
        if self.kind is str:
            return list(words)
        return [one for word in words if word.strip() for one in _numbers(word, whole=self.kind is int)]


def _as_csv(words: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(words)
    return text.getvalue().strip()


def _numbers(word: str, *, whole: bool) -> list[Any]:
    """A number or a range of them."""
    import numpy as np  # the axes are listed where it is not loaded

    kind: Callable[[Any], Any] = int if whole else float
    if found := (WHOLE_STEPS if whole else REAL_STEPS).fullmatch(word):
        first, last, step = kind(found[1]), kind(found[2]), kind(found[3] or 1)
        if step == 0:
            raise ValueError(f"{word!r} has a step of 0")
        _not_too_many((last - first) // step + 1, repr(word))
        return list(range(first, last + 1, step)) if whole else np.arange(first, last + step, step).tolist()
    if found := (WHOLE_COUNT if whole else REAL_COUNT).fullmatch(word):
        _not_too_many(int(found[3] or 1), repr(word))
        spread = np.linspace(kind(found[1]), kind(found[2]), int(found[3] or 1))
        return [kind(one) for one in spread.tolist()]
    return [kind(word)]


def _not_too_many(count: float, what: str) -> None:
    """Raises ValueError before a list of them fills the memory."""
    if not count <= LIMIT_VALUES:  # also where it is nan
        raise ValueError(f"{what} makes {count:.0f} values, more than {LIMIT_VALUES}")


def fixed(axis: Axis, values: list[Any]) -> list[Any]:
    """Seeds of -1 drawn now."""
    if axis.label not in SEED_AXES:
        return values
    return [random.randrange(SEEDS) if value == -1 else value for value in values]


# --- what a value changes ---------------------------------------------------------------------------


def _changed(job: Job, **fields: Any) -> Job:
    return job.with_payload({**job.payload, **fields})


def _field(name: str) -> Apply:
    return lambda job, value, values: _changed(job, **{name: value})


def _option(name: str) -> Apply:
    def apply(job: Job, value: Any, values: Sequence[Any]) -> Job:
        return _changed(job, override_settings={**(job.payload.get("override_settings") or {}), name: value})

    return apply


def _switch(name: str) -> Apply:
    set_option = _option(name)
    return lambda job, value, values: set_option(job, value.lower() == "true", values)


def _nothing(job: Job, value: Any, values: Sequence[Any]) -> Job:
    return job


def _sampler(job: Job, value: str, values: Sequence[Any]) -> Job:
    return _changed(job, sampler_name=find_sampler(value, None, "sampler_name", "scheduler")[0].name)


def _search(job: Job, value: str, values: Sequence[str]) -> Job:
    prompt, negative = job.payload.get("prompt") or "", job.payload.get("negative_prompt") or ""
    if values[0] not in prompt and values[0] not in negative:
        raise BadRequest(
            f"Prompt S/R did not find {values[0]!r} in prompt or negative prompt", field="script_args"
        )
    return _changed(
        job, prompt=prompt.replace(values[0], value), negative_prompt=negative.replace(values[0], value)
    )


def _order(job: Job, value: Sequence[str], values: Sequence[Any]) -> Job:
    """The words of ``value``, wherever they stand in the prompt, in the order of ``value``."""
    rest = job.payload.get("prompt") or ""
    between = []
    for word in sorted(value, key=rest.find):
        place = rest.find(word)
        if place < 0:
            raise BadRequest(f"Prompt order did not find {word!r} in the prompt", field="script_args")
        between.append(rest[:place])
        rest = rest[place + len(word) :]
    return _changed(job, prompt="".join(gap + word for gap, word in zip(between, value, strict=True)) + rest)


def _checkpoint(job: Job, value: str, values: Sequence[Any]) -> Job:
    return replace(job, checkpoint=value)


def _vae(job: Job, value: str, values: Sequence[Any]) -> Job:
    name = value.strip()
    return replace(
        job, vae={"auto": "Automatic", "automatic": "Automatic", "none": "None"}.get(name.lower(), name)
    )


def _styles(job: Job, value: str, values: Sequence[Any]) -> Job:
    return _changed(job, styles=[*(job.payload.get("styles") or []), *value.split(",")])


def _unipc_order(job: Job, value: int, values: Sequence[Any]) -> Job:
    return _option("uni_pc_order")(job, min(value, int(job.payload.get("steps") or 50) - 1), values)


def _faces(job: Job, value: str, values: Sequence[Any]) -> Job:
    return _changed(job, restore_faces=value.lower() in TRUE_WORDS)


def _size(job: Job, value: str, values: Sequence[Any]) -> Job:
    found = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", value)
    if found is None:
        raise BadRequest(f"Size: {value!r} is not of the form 512x768", field="script_args")
    return _changed(job, width=int(found[1]), height=int(found[2]))


def _name(axis: Axis, value: str) -> str:
    return Path(value).name


def _together(axis: Axis, value: Sequence[str]) -> str:
    return ", ".join(value)


def _empty(axis: Axis, value: Any) -> str:
    return ""


_TXT2IMG: tuple[Kind, ...] = ("txt2img",)
_IMG2IMG: tuple[Kind, ...] = ("img2img",)
FP8_MODES = ("Disable", "Enable for SDXL", "Enable")


def _yes_or_no(label: str, option: str) -> Axis:
    return Axis(label, str, _switch(option), listed=True, choices=("False", "True"))


def _depth(label: str, option: str) -> Axis:
    return Axis(label, int, _option(option), listed=True, choices=("0", "1", "2", "3"), limits=(0, 3))


AXES = (
    Axis("Nothing", str, _nothing, _empty),
    Axis("Seed", int, _field("seed")),
    Axis("Var. seed", int, _field("subseed")),
    Axis("Var. strength", float, _field("subseed_strength")),
    Axis("Steps", int, _field("steps")),
    Axis("Hires steps", int, _field("hr_second_pass_steps"), kinds=_TXT2IMG),
    Axis("CFG Scale", float, _field("cfg_scale")),
    Axis("Image CFG Scale", float, _field("image_cfg_scale"), kinds=_IMG2IMG),
    Axis("Prompt S/R", str, _search, _plain),
    Axis("Prompt order", tuple, _order, _together),
    Axis("Sampler", str, _sampler, _plain, kinds=_TXT2IMG, listed=True),
    Axis("Hires sampler", str, _field("hr_sampler_name"), kinds=_TXT2IMG, listed=True),
    Axis("Sampler", str, _sampler, _plain, kinds=_IMG2IMG, listed=True),
    Axis("Checkpoint name", str, _checkpoint, _name, cost=1.0, listed=True),
    Axis("Negative Guidance minimum sigma", float, _field("s_min_uncond")),
    Axis("Sigma Churn", float, _field("s_churn")),
    Axis("Sigma min", float, _field("s_tmin")),
    Axis("Sigma max", float, _field("s_tmax")),
    Axis("Sigma noise", float, _field("s_noise")),
    Axis("Schedule type", str, _field("scheduler"), listed=True),
    Axis("Schedule min sigma", float, _option("sigma_min")),
    Axis("Schedule max sigma", float, _option("sigma_max")),
    Axis("Schedule rho", float, _option("rho")),
    Axis("Beta schedule alpha", float, _option("beta_dist_alpha")),
    Axis("Beta schedule beta", float, _option("beta_dist_beta")),
    Axis("Eta", float, _field("eta")),
    Axis("Clip skip", int, _option("CLIP_stop_at_last_layers")),
    Axis("Denoising", float, _field("denoising_strength")),
    Axis("Initial noise multiplier", float, _field("initial_noise_multiplier")),
    Axis("Extra noise", float, _option("img2img_extra_noise")),
    Axis("Hires upscaler", str, _field("hr_upscaler"), kinds=_TXT2IMG, listed=True),
    Axis("Cond. Image Mask Weight", float, _option("inpainting_mask_weight"), kinds=_IMG2IMG),
    Axis("VAE", str, _vae, cost=0.7, listed=True),
    Axis("Styles", str, _styles, listed=True),
    Axis("UniPC Order", int, _unipc_order, cost=0.5),
    Axis("Face restore", str, _faces, _plain),
    Axis("Token merging ratio", float, _option("token_merging_ratio")),
    Axis("Token merging ratio high-res", float, _option("token_merging_ratio_hr")),
    _yes_or_no("Always discard next-to-last sigma", "always_discard_next_to_last_sigma"),
    _yes_or_no("SGM noise multiplier", "sgm_noise_multiplier"),
    Axis("Refiner checkpoint", str, _field("refiner_checkpoint"), _name, cost=1.0, listed=True),
    Axis("Refiner switch at", float, _field("refiner_switch_at")),
    Axis("RNG source", str, _option("randn_source"), listed=True, choices=("GPU", "CPU", "NV")),
    Axis("FP8 mode", str, _option("fp8_storage"), cost=0.9, listed=True, choices=FP8_MODES),
    Axis("Size", str, _size),
    # Those that the webui's built-in extension adds.
    _yes_or_no("[Hypertile] Unet First pass Enabled", "hypertile_enable_unet"),
    _yes_or_no("[Hypertile] Unet Second pass Enabled", "hypertile_enable_unet_secondpass"),
    _depth("[Hypertile] Unet Max Depth", "hypertile_max_depth_unet"),
    Axis("[Hypertile] Unet Max Tile Size", int, _option("hypertile_max_tile_unet"), limits=(0, 512)),
    Axis("[Hypertile] Unet Swap Size", int, _option("hypertile_swap_size_unet"), limits=(0, 64)),
    _yes_or_no("[Hypertile] VAE Enabled", "hypertile_enable_vae"),
    _depth("[Hypertile] VAE Max Depth", "hypertile_max_depth_vae"),
    Axis("[Hypertile] VAE Max Tile Size", int, _option("hypertile_max_tile_vae"), limits=(0, 512)),
    Axis("[Hypertile] VAE Swap Size", int, _option("hypertile_swap_size_vae"), limits=(0, 64)),
)


def axis_of(kind: Kind, asked: Any, where: str) -> Axis:
    """An axis by its place in the webui's list for this kind of job, or by its label; None: nothing.

    Raises BadRequest, listing them.
    """
    there = [one for one in AXES if kind in one.kinds]
    if isinstance(asked, str):
        found = next((one for one in there if one.label.lower() == asked.strip().lower()), None)
    elif asked is None or (
        isinstance(asked, int) and not isinstance(asked, bool) and 0 <= asked < len(there)
    ):
        found = there[asked or 0]
    else:
        found = None
    if found is None:
        names = ", ".join(f"{place}: {one.label}" for place, one in enumerate(there))
        raise BadRequest(f"{asked!r:.80} is no axis; there are {names}", field=where)
    return found
