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
from sd_cloud.host.options import CHOICES, EXPLANATIONS
from sd_cloud.host.page import Page, check_admin, told
from sd_cloud.job import Job

#: Section: its options. Each has its words in i18n under ``option_`` and its name.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "saving": (
        "samples_save",
        "samples_format",
        "samples_filename_pattern",
        "grid_save",
        "grid_format",
        "jpeg_quality",
        "enable_pnginfo",
        "outdir_txt2img_samples",
        "outdir_img2img_samples",
        "save_to_dirs",
        "directories_filename_pattern",
    ),
    "making": (
        "CLIP_stop_at_last_layers",
        "emphasis",
        "randn_source",
        "eta_noise_seed_delta",
        "img2img_color_correction",
        "initial_noise_multiplier",
        "tiling",
    ),
    "previewing": ("live_previews_enable", "show_progress_every_n_steps"),
}
CHECKPOINT = "sd_model_checkpoint"


class SettingsTab:
    """What is on the tab. ``components`` are the fields, in the order of `now`."""

    def __init__(self, page: Page, fields: Mapping[str, Component]) -> None:
        self._page = page
        self._names = list(fields)
        self.components = list(fields.values())

    def now(self) -> list[Any]:
        """Every field as the options are: somebody else, or the API, may have changed them."""
        options = self._page.options
        rest = [gr.update(value=options[name]) for name in self._names if name != CHECKPOINT]
        return [gr.Dropdown(choices=self._page.checkpoints(), value=self._page.checkpoint()), *rest]

    def value_of(self, name: str | None) -> str:
        return json.dumps(self._page.options[name], ensure_ascii=False) if name else ""

    async def apply(self, request: gr.Request, name: str | None, text: str, *values: Any) -> str:
        """Set what differs from now. Raises gr.Error for what cannot be set; then nothing has changed."""
        try:
            check_admin(request)
            wanted = dict(zip(self._names, values, strict=True))
            if name:
                wanted[name] = _parsed(name, text)
            now = {**self._page.options.snapshot(), CHECKPOINT: self._page.checkpoint()}
            changes = {key: value for key, value in wanted.items() if value != now[key]}
            self._page.options.check(changes)
            self._page.service.inputs.check_paths(Job("txt2img", {"override_settings": changes}))
            await asyncio.to_thread(self._page.options.change, changes)
        except ServiceError as error:
            raise told(error) from None
        return f"✔ {', '.join(changes)}" if changes else str(word("nothing_changed"))


def settings_tab(page: Page) -> SettingsTab:
    """Build the tab within the current context."""
    fields: dict[str, Component] = {}
    with gr.Row(equal_height=True):
        apply = gr.Button(word("apply"), variant="primary", scale=0, min_width=200, elem_id="settings_submit")
        said = gr.HTML(elem_id="settings_result")
    fields[CHECKPOINT] = gr.Dropdown(
        page.checkpoints(), value=page.checkpoint(), label=word("default_checkpoint"), info=CHECKPOINT
    )
    for section, names in SECTIONS.items():
        with gr.Accordion(word(section), open=section == "saving"):
            for name in names:
                fields[name] = _field(name, page.options[name])
    with gr.Accordion(word("any_option"), open=False), gr.Row():
        others = sorted(set(page.options.defaults) - set(fields) - EXPLANATIONS)
        name = gr.Dropdown(others, value=None, label=word("option_name"))
        value = gr.Textbox(label=word("option_value"))
    tab = SettingsTab(page, fields)
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    name.change(tab.value_of, name, value, **quiet)
    apply.click(tab.apply, [name, value, *tab.components], said, **quiet)
    return tab


def _field(name: str, value: Any) -> Component:
    """What it does as the label; below it the name by which the API and config.json have it."""
    words = {"label": word(f"option_{name}"), "info": name, "elem_id": f"setting_{name}"}
    if name in CHOICES:
        return gr.Dropdown([str(one) for one in CHOICES[name]], value=value, **words)
    if isinstance(value, bool):
        return gr.Checkbox(value, **words)
    if isinstance(value, (int, float)):
        return gr.Number(value, **words)
    return gr.Textbox(value, **words)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"no JSON: {error}", field=name) from None
