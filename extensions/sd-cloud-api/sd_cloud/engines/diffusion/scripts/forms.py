"""The scripts and their arguments, as ``/sdapi/v1/script-info`` and the page show them. Never imports torch.

Labels, steps and defaults: ``scripts/*.py`` and ``extensions-builtin/soft-inpainting`` of webui 1.10.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sd_cloud.engines.base import ScriptArgument, ScriptInfo
from sd_cloud.engines.diffusion.scripts.xyz_axes import AXES
from sd_cloud.job import Kind

BOTH: tuple[Kind, ...] = ("txt2img", "img2img")
Side = Literal["left", "right", "up", "down"]
SIDES: tuple[Side, ...] = ("left", "right", "up", "down")
FILLS = ("fill", "original", "latent noise", "latent nothing")
CURVES = ("Aggressive", "Linear", "Lazy")
DESCRIBERS = ("None", "CLIP", "DeepBooru")


@dataclass(frozen=True)
class Form:
    """A script's title, and its arguments in the order of ``script_args``."""

    title: str
    arguments: tuple[ScriptArgument, ...]
    kinds: tuple[Kind, ...] = ("img2img",)

    def info(self, upscalers: Sequence[str]) -> ScriptInfo:
        return ScriptInfo(
            self.title,
            {
                kind: tuple(_with_choices(one, kind, upscalers) for one in self.arguments)
                for kind in self.kinds
            },
        )


def _with_choices(argument: ScriptArgument, kind: Kind, upscalers: Sequence[str]) -> ScriptArgument:
    if argument.kind == "axis":
        return replace(argument, choices=tuple(one.label for one in AXES if kind in one.kinds))
    if argument.kind == "upscaler":
        return replace(argument, choices=tuple(upscalers))
    return argument


def _flag(name: str, label: str, default: bool = False) -> ScriptArgument:
    return ScriptArgument(name, label, default, "flag")


def _number(name: str, label: str, default: float, low: float, high: float, step: float) -> ScriptArgument:
    return ScriptArgument(name, label, default, "number", low, high, step)


def _text(name: str, label: str, lines: int = 1) -> ScriptArgument:
    return ScriptArgument(name, label, "", "text", lines=lines)


def _choice(name: str, label: str, default: str, choices: tuple[str, ...]) -> ScriptArgument:
    return ScriptArgument(name, label, default, "choice", choices=choices)


def _note(text: str) -> ScriptArgument:
    return ScriptArgument("info", "", text, "note")


def _paragraph(text: str) -> ScriptArgument:
    return _note(f'<p style="margin-bottom:0.75em">{text}</p>')


def _sides() -> ScriptArgument:
    return ScriptArgument("direction", "Outpainting direction", list(SIDES), "choices", choices=SIDES)


IMG2IMG_ALTERNATIVE = Form(
    "img2img alternative test",
    (
        _note("* `CFG Scale` should be 2 or lower."),
        _flag("override_sampler", "Override `Sampling method` to Euler?(this method is built for it)", True),
        _flag(
            "override_prompt",
            "Override `prompt` to the same value as `original prompt`?(and `negative prompt`)",
            True,
        ),
        _text("original_prompt", "Original prompt"),
        _text("original_negative_prompt", "Original negative prompt"),
        _flag("override_steps", "Override `Sampling Steps` to the same value as `Decode steps`?", True),
        _number("st", "Decode steps", 50, 1, 150, 1),
        _flag("override_strength", "Override `Denoising strength` to 1?", True),
        _number("cfg", "Decode CFG scale", 1.0, 0, 15, 0.1),
        _number("randomness", "Randomness", 0.0, 0, 1, 0.01),
        _flag("sigma_adjustment", "Sigma adjustment for finding noise for image"),
    ),
)

LOOPBACK = Form(
    "Loopback",
    (
        _number("loops", "Loops", 4, 1, 32, 1),
        _number("final_denoising_strength", "Final denoising strength", 0.5, 0, 1, 0.01),
        _choice("denoising_curve", "Denoising strength curve", "Linear", CURVES),
        _choice("append_interrogation", "Append interrogated prompt at each iteration", "None", DESCRIBERS),
    ),
)

OUTPAINTING = Form(
    "Outpainting mk2",
    (
        _paragraph("Recommended settings: Sampling Steps: 80-100, Sampler: Euler a, Denoising strength: 0.8"),
        _number("pixels", "Pixels to expand", 128, 8, 256, 8),
        _number("mask_blur", "Mask blur", 8, 0, 64, 1),
        _sides(),
        _number("noise_q", "Fall-off exponent (lower=higher detail)", 1.0, 0, 4, 0.01),
        _number("color_variation", "Color variation", 0.05, 0, 1, 0.01),
    ),
)

POOR_OUTPAINTING = Form(
    "Poor man's outpainting",
    (
        _number("pixels", "Pixels to expand", 128, 8, 256, 8),
        _number("mask_blur", "Mask blur", 4, 0, 64, 1),
        ScriptArgument("inpainting_fill", "Masked content", 0, "place", 0, len(FILLS) - 1, choices=FILLS),
        _sides(),
    ),
)

PROMPT_MATRIX = Form(
    "Prompt matrix",
    (
        _flag("put_at_start", "Put variable parts at start of prompt"),
        _flag("different_seeds", "Use different seed for each picture"),
        _choice("prompt_type", "Select prompt", "positive", ("positive", "negative")),
        _choice("variations_delimiter", "Select joining char", "comma", ("comma", "space")),
        _number("margin_size", "Grid margins (px)", 0, 0, 500, 2),
    ),
    BOTH,
)

PROMPTS_FROM_FILE = Form(
    "Prompts from file or textbox",
    (
        _flag("checkbox_iterate", "Iterate seed every line"),
        _flag("checkbox_iterate_batch", "Use same random seed for all lines"),
        _choice("prompt_position", "Insert prompts at the", "start", ("start", "end")),
        _text("prompt_txt", "List of prompt inputs", lines=5),
    ),
    BOTH,
)

SD_UPSCALE = Form(
    "SD upscale",
    (
        _paragraph(
            "Will upscale the image by the selected scale factor; "
            "use width and height sliders to set tile size"
        ),
        _number("overlap", "Tile overlap", 64, 0, 256, 16),
        ScriptArgument("upscaler", "Upscaler", "None", "upscaler"),
        _number("scale_factor", "Scale Factor", 2.0, 1, 4, 0.05),
    ),
)

XYZ_PLOT = Form(
    "X/Y/Z plot",
    (
        *(
            argument
            for name in "XYZ"
            for argument in (
                ScriptArgument(f"{name.lower()}_type", f"{name} type", 1 if name == "X" else 0, "axis"),
                ScriptArgument(f"{name.lower()}_values", f"{name} values", "", "values"),
                ScriptArgument(f"{name.lower()}_values_dropdown", f"{name} values", [], "list"),
            )
        ),
        _flag("draw_legend", "Draw legend", True),
        _flag("include_lone_images", "Include Sub Images"),
        _flag("include_sub_grids", "Include Sub Grids"),
        _flag("no_fixed_seeds", "Keep -1 for seeds"),
        _flag("vary_seeds_x", "Vary seeds for X"),
        _flag("vary_seeds_y", "Vary seeds for Y"),
        _flag("vary_seeds_z", "Vary seeds for Z"),
        _number("margin_size", "Grid margins (px)", 0, 0, 500, 2),
        _flag("csv_mode", "Use text inputs instead of dropdowns"),
    ),
    BOTH,
)

SOFT_INPAINTING = (
    _flag("enabled", "Soft inpainting"),
    _number("power", "Schedule bias", 1, 0, 8, 0.1),
    _number("scale", "Preservation strength", 0.5, 0, 8, 0.05),
    _number("detail", "Transition contrast boost", 4, 1, 32, 0.5),
    _number("mask_inf", "Mask influence", 0, 0, 1, 0.05),
    _number("dif_thresh", "Difference threshold", 0.5, 0, 8, 0.25),
    _number("dif_contr", "Difference contrast", 2, 0, 8, 0.25),
)
"""The arguments of the always-visible script of that name."""

FORMS = (
    *(IMG2IMG_ALTERNATIVE, LOOPBACK, OUTPAINTING, POOR_OUTPAINTING),
    *(PROMPT_MATRIX, PROMPTS_FROM_FILE, SD_UPSCALE, XYZ_PLOT),
)
"""In the order of ``/sdapi/v1/scripts``."""
