"""A ControlNet unit: what it may say, and the model that it names. Never imports torch.

The fields are those of sd-webui-controlnet's ``ControlNetUnit`` (API version 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.preprocess.module import Module
from sd_cloud.errors import BadRequest, CheckpointNotFound

ControlMode = Literal["Balanced", "My prompt is more important", "ControlNet is more important"]
ResizeMode = Literal["Just Resize", "Crop and Resize", "Resize and Fill"]
HiresOption = Literal["Both", "Low res only", "High res only"]
PulidMode = Literal["Fidelity", "Extremely style"]

CONTROL_MODES: tuple[ControlMode, ...] = (
    "Balanced",
    "My prompt is more important",
    "ControlNet is more important",
)
UNION_TYPES = (
    *("OpenPose", "Depth", "Soft Edge", "Hard Edge"),
    *("Normal Map", "Segmentation", "Tile", "Inpaint", "Unknown"),
)
"""Kinds of map that a ControlNet Union tells apart, in the order of its weights; the last is none."""
RESIZE_MODES: tuple[ResizeMode, ...] = ("Just Resize", "Crop and Resize", "Resize and Fill")
HIRES_OPTIONS: tuple[HiresOption, ...] = ("Both", "Low res only", "High res only")
PULID_MODES: tuple[PulidMode, ...] = ("Fidelity", "Extremely style")

HARD_EDGES = ("canny", "mlsd")
"""Maps whose control is softened in the hires pass, whatever the mode."""


@dataclass(frozen=True)
class ControlUnit:
    """One enabled unit. ``number`` is its place among the enabled ones, ``field`` where it was sent.

    ``module_sent`` is the preprocessor as the request names it. ``image`` is RGB or ``None`` (img2img's
    own input is used), ``mask`` L; ``more_images``: those after the first, of an image prompt.
    ``embeddings``: what the extension's ``/controlnet/detect`` answered for one, in its place.
    """

    number: int
    field: str
    module: Module
    model: str
    weight: float = 1.0
    image: Image.Image | None = None
    mask: Image.Image | None = None
    resize_mode: ResizeMode = "Crop and Resize"
    resolution: float = 512
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    pixel_perfect: bool = False
    control_mode: ControlMode = "Balanced"
    hires: HiresOption = "Both"
    crop_to_mask: bool = True
    save_map: bool = True
    layer_weights: tuple[float, ...] | None = None
    region: Image.Image | None = None
    module_sent: str = ""
    union_type: str = UNION_TYPES[-1]
    more_images: tuple[tuple[Image.Image, Image.Image | None], ...] = ()
    embeddings: tuple[bytes, ...] = ()
    pulid_mode: PulidMode = PULID_MODES[0]

    @property
    def is_prompt(self) -> bool:
        """Its image is for the prompt's place, not for a map."""
        return not self.module.makes_picture or bool(self.embeddings)

    @property
    def soft(self) -> bool:
        return self.control_mode != "Balanced"

    def softened(self, hires: bool) -> bool:
        """Whether its shallow layers weigh less than its deep ones."""
        return self.soft or (hires and any(edge in self.module.name for edge in HARD_EDGES))

    @property
    def fills(self) -> bool:
        """Its map is painted under the mask, and the picture begins from it."""
        return self.module.name == "inpaint_only+lama"

    @property
    def only_on_prompt(self) -> bool:
        """The control reaches the positive prompt alone."""
        return self.control_mode == "ControlNet is more important"

    def described(self) -> str:
        """As the extension writes a unit into the infotext."""
        facts: dict[str, Any] = {
            "Module": self.module_sent or self.module.name,
            "Model": self.model,
            "Weight": self.weight,
            "Resize Mode": self.resize_mode,
            "Processor Res": self.resolution,
            "Threshold A": self.threshold_a,
            "Threshold B": self.threshold_b,
            "Guidance Start": self.guidance_start,
            "Guidance End": self.guidance_end,
            "Pixel Perfect": self.pixel_perfect,
            "Control Mode": self.control_mode,
        }
        if any(mark in str(value) for value in facts.values() for mark in ",:"):
            return ""  # the extension leaves such a unit out: it could not be parsed back
        return ", ".join(f"{name}: {value}" for name, value in facts.items())


def unit_infotext(units: Sequence[ControlUnit]) -> dict[str, str]:
    """``ControlNet 0`` and so on, for ``extra_generation_params``."""
    return {f"ControlNet {unit.number}": unit.described() for unit in units}


def find_control_model(wanted: str, there: Sequence[ModelFile], *, field: str) -> ModelFile:
    """A model as the extension finds it: full name, name without hash, else the shortest that contains it.

    Raises CheckpointNotFound listing those there, BadRequest when none was asked for.
    """
    names = ", ".join(one.name for one in there) or "none"
    if not wanted or wanted.lower() == "none":
        raise BadRequest(f"a unit needs a model; installed: {names}", field=field)
    for one in there:
        if wanted == one.name:
            return one
    low = wanted.lower()
    stems = {str(one.extra["stem"]).lower(): one for one in reversed(there)}
    if low in stems:
        return stems[low]
    holding = sorted((stem for stem in stems if low in stem), key=len)
    if not holding:
        raise CheckpointNotFound(f"no ControlNet model is named {wanted!r}; installed: {names}", field=field)
    return stems[holding[0]]
