"""The scripts to select, and soft inpainting, in the txt2img and img2img tabs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from sd_cloud.dialects.sdapi_checks import LATENT_UPSCALE_MODES, SOFT_INPAINTING
from sd_cloud.engines.base import Catalogue, ScriptArgument, ScriptInfo
from sd_cloud.engines.diffusion.scripts import forms
from sd_cloud.engines.diffusion.scripts.xyz_axes import AXES, Axis
from sd_cloud.host.i18n import label_of, word
from sd_cloud.host.page import Page
from sd_cloud.job import Kind

#: Form fields of scripts begin with these: what follows is the script's title and the argument's place.
SCRIPT, SOFT = "script.", "soft_inpainting."
CHOSEN = f"{SCRIPT}title"
NONE = "None"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def script_fields(fields: dict[str, Component], page: Page, kind: Kind) -> None:
    """A list of scripts, and below it the arguments of the one that is chosen."""
    scripts = [one for one in page.service.catalogue().scripts if kind in one.arguments]
    chosen = gr.Dropdown(
        [NONE, *(one.title for one in scripts)], value=NONE, label=word("script"), elem_id=f"{kind}_script"
    )
    fields[CHOSEN] = chosen
    groups = []
    for script in scripts:
        with gr.Column(visible=False) as group:
            _arguments(fields, page, kind, script)
        groups.append(group)

    def shown(title: str) -> list[Any]:
        return [gr.Column(visible=one.title == title) for one in scripts]

    chosen.change(shown, chosen, groups, **QUIET)


def _arguments(fields: dict[str, Component], page: Page, kind: Kind, script: ScriptInfo) -> None:
    made: dict[str, Any] = {}
    for place, one in enumerate(script.arguments[kind]):
        if one.kind == "note":
            gr.Markdown(one.default)
            continue
        made[one.name] = fields[f"{SCRIPT}{script.title}.{place}"] = _component(one, kind, script.title)
    for name in "xyz":
        if f"{name}_type" in made:
            line = (made[f"{name}_type"], made[f"{name}_values"], made[f"{name}_values_dropdown"])
            _keep_axis(page, kind, *line, made["csv_mode"])


def _component(one: ScriptArgument, kind: Kind, title: str) -> Component:
    elem_id = re.sub(r"\W+", "_", f"{kind}_{title}_{one.name}".lower())
    choices, named = list(one.choices), {"label": label_of(one.label), "elem_id": elem_id}
    if one.kind == "number":
        return gr.Slider(one.low, one.high, one.default, step=one.step, **named)
    if one.kind == "flag":
        return gr.Checkbox(one.default, **named)
    if one.kind == "choices":
        return gr.CheckboxGroup(choices, value=one.default, **named)
    if one.kind in ("place", "axis"):
        return gr.Dropdown(choices, value=choices[one.default], type="index", **named)
    if one.kind in ("choice", "upscaler"):
        return gr.Dropdown(choices, value=one.default, **named)
    if one.kind == "list":
        return gr.Dropdown([], value=[], multiselect=True, visible=False, **named)
    return gr.Textbox(one.default, lines=one.lines, **named)


def _keep_axis(
    page: Page, kind: Kind, place: Component, written: Component, listed: Component, as_text: Component
) -> None:
    """An axis whose values are names is given a list of them, where that is wanted."""
    axes = [one for one in AXES if kind in one.kinds]

    def shown(place: int, in_writing: bool) -> list[Any]:
        choices = None if in_writing else choices_of(axes[place], page.service.catalogue(), page.styles)
        return [
            gr.Textbox(visible=choices is None),
            gr.Dropdown(choices=choices or [], value=[], visible=choices is not None),
        ]

    for one in (place, as_text):
        one.change(shown, [place, as_text], [written, listed], **QUIET)


def choices_of(axis: Axis, there: Catalogue, styles: Callable[[], list[str]]) -> list[str] | None:
    """What an axis of an X/Y/Z plot can be given by name, in the webui's order; None where it has no list."""
    if not axis.listed or axis.choices:
        return list(axis.choices) or None
    checkpoints = sorted((one.title for one in there.checkpoints), key=str.casefold)
    samplers = [one.name for one in there.samplers]
    return {
        "Sampler": samplers,
        "Hires sampler": samplers,
        "Checkpoint name": checkpoints,
        "Refiner checkpoint": [NONE, *checkpoints],
        "Schedule type": [one.label for one in there.schedulers],
        "Hires upscaler": [*LATENT_UPSCALE_MODES, *(one.name for one in there.upscalers)],
        "VAE": ["Automatic", NONE, *(one.name for one in there.vaes)],
        "Styles": styles(),
    }[axis.label]


def soft_inpainting_fields(fields: dict[str, Component]) -> None:
    switch, *numbers = forms.SOFT_INPAINTING
    enabled = fields[f"{SOFT}0"] = _component(switch, "img2img", SOFT_INPAINTING)
    with gr.Column(visible=False) as sliders:
        for place, one in enumerate(numbers, start=1):
            fields[f"{SOFT}{place}"] = _component(one, "img2img", SOFT_INPAINTING)
    enabled.change(lambda on: gr.Column(visible=on), enabled, sliders, **QUIET)


def with_scripts(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the chosen script, and soft inpainting where it is switched on."""
    own = (SCRIPT, SOFT)
    rest = {name: value for name, value in body.items() if not name.startswith(own)}
    title = body.get(CHOSEN, NONE)
    if title != NONE:
        rest |= {"script_name": title, "script_args": _in_places(body, f"{SCRIPT}{title}.")}
    if body.get(f"{SOFT}0"):
        always = rest.get("alwayson_scripts") or {}
        rest["alwayson_scripts"] = {**always, SOFT_INPAINTING: {"args": _in_places(body, SOFT)}}
    return rest


def _in_places(body: Mapping[str, Any], begins: str) -> list[Any]:
    """Arguments in order; one that the form has no field for, a note, is null."""
    given = {int(name[len(begins) :]): value for name, value in body.items() if name.startswith(begins)}
    return [given.get(place) for place in range(max(given) + 1)]
