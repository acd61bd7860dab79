"""The Settings tab: the options that matter most as fields, every other one by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from sd_cloud.errors import BadRequest, ServiceError
from sd_cloud.host.i18n import word
from sd_cloud.host.options import EXPLANATIONS
from sd_cloud.host.page import Page, check_admin, told
from sd_cloud.job import Job

#: Section: its options, each with what there is to choose from, if anything.
SECTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "saving": {
        "samples_save": (),
        "samples_format": ("png", "jpg", "webp"),
        "samples_filename_pattern": (),
        "grid_save": (),
        "grid_format": ("png", "jpg", "webp"),
        "jpeg_quality": (),
        "enable_pnginfo": (),
        "outdir_txt2img_samples": (),
        "outdir_img2img_samples": (),
        "save_to_dirs": (),
        "directories_filename_pattern": (),
    },
    "making": {
        "CLIP_stop_at_last_layers": (),
        "emphasis": ("None", "Ignore", "Original", "No norm"),
        "randn_source": ("GPU", "CPU", "NV"),
        "eta_noise_seed_delta": (),
        "img2img_color_correction": (),
        "initial_noise_multiplier": (),
        "tiling": (),
    },
    "previewing": {"live_previews_enable": (), "show_progress_every_n_steps": ()},
}


def settings_tab(page: Page) -> None:
    """Build the tab within the current context."""
    fields: dict[str, Component] = {}
    apply = gr.Button(word("apply"), variant="primary", elem_id="settings_submit")
    said = gr.Markdown()
    fields["sd_model_checkpoint"] = gr.Dropdown(
        page.checkpoints(), value=page.checkpoint(), label=word("default_checkpoint")
    )
    for section, names in SECTIONS.items():
        with gr.Accordion(word(section), open=section == "saving"):
            for name, choices in names.items():
                fields[name] = _field(name, page.options[name], choices)
    with gr.Accordion(word("any_option"), open=False), gr.Row():
        others = sorted(set(page.options.defaults) - set(fields) - EXPLANATIONS)
        name = gr.Dropdown(others, value=None, label=word("option_name"))
        value = gr.Textbox(label=word("option_value"))
    tab = _Tab(page, list(fields))
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    name.change(tab.value_of, name, value, **quiet)
    apply.click(tab.apply, [name, value, *fields.values()], said, **quiet)


def _field(name: str, value: Any, choices: tuple[str, ...]) -> Component:
    if choices:
        return gr.Dropdown(list(choices), value=value, label=name)
    if isinstance(value, bool):
        return gr.Checkbox(value, label=name)
    if isinstance(value, (int, float)):
        return gr.Number(value, label=name)
    return gr.Textbox(value, label=name)


class _Tab:
    def __init__(self, page: Page, names: list[str]) -> None:
        self._page = page
        self._names = names

    def value_of(self, name: str | None) -> str:
        return json.dumps(self._page.options[name], ensure_ascii=False) if name else ""

    async def apply(self, request: gr.Request, name: str | None, text: str, *values: Any) -> str:
        """Set what differs from now. Raises gr.Error for what cannot be set; then nothing has changed."""
        try:
            check_admin(request)
            wanted = dict(zip(self._names, values, strict=True))
            if name:
                wanted[name] = _parsed(name, text)
            now = {**self._page.options.snapshot(), "sd_model_checkpoint": self._page.checkpoint()}
            changes = {key: value for key, value in wanted.items() if value != now[key]}
            self._page.options.check(changes)
            self._page.service.inputs.check_paths(Job("txt2img", {"override_settings": changes}))
            await asyncio.to_thread(self._page.options.change, changes)
        except ServiceError as error:
            raise told(error) from None
        return "✔ " + ", ".join(changes)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"no JSON: {error}", field=name) from None
