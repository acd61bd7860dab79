"""Choosing styles, and writing them, in the txt2img and img2img tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from sd_cloud.engines.diffusion.styles import Style, save_style
from sd_cloud.errors import ServiceError
from sd_cloud.host.i18n import word
from sd_cloud.host.page import Fresh, Page, check_admin, told
from sd_cloud.job import Kind

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def style_fields(fields: dict[str, Component], page: Page, kind: Kind) -> list[Fresh]:
    """The list of a request's styles, and below it a form for one of them."""
    names = page.styles()
    chosen = gr.Dropdown(
        names, multiselect=True, label=word("styles"), visible=bool(names), elem_id=f"{kind}_styles"
    )
    fields["styles"] = chosen
    with gr.Accordion(word("edit_styles"), open=False):
        name = gr.Dropdown(
            names, value=None, allow_custom_value=True, label=word("style_name"), elem_id=f"{kind}_style"
        )
        prompt = gr.Textbox(label=word("style_prompt"), elem_id=f"{kind}_style_prompt")
        negative = gr.Textbox(label=word("style_negative"), elem_id=f"{kind}_style_negative")
        with gr.Row():
            take = gr.Button(word("style_from_prompts"), size="sm")
            save = gr.Button(word("save"), size="sm", elem_id=f"{kind}_style_save")
            delete = gr.Button(word("delete"), size="sm", elem_id=f"{kind}_style_delete")

    def shown(name: str | None) -> tuple[Any, Any]:
        style = page.style(name or "")
        return (style.prompt, style.negative_prompt) if style is not None else (gr.skip(), gr.skip())

    def changed(request: gr.Request, name: str | None, style: Style | None) -> list[Any]:
        try:
            check_admin(request)
            save_style(page.settings.styles_patterns, name or "", style)
        except ServiceError as error:
            raise told(error) from None
        names = page.styles()
        left = name if style is not None else None
        return [gr.Dropdown(choices=names, visible=bool(names)), gr.Dropdown(choices=names, value=left)]

    def saved(request: gr.Request, name: str | None, prompt: str, negative: str) -> list[Any]:
        return changed(request, name, Style(prompt, negative))

    def deleted(request: gr.Request, name: str | None) -> list[Any]:
        return changed(request, name, None)

    name.input(shown, name, [prompt, negative], **QUIET)
    own = [fields["prompt"], fields["negative_prompt"]]
    take.click(lambda *texts: texts, own, [prompt, negative], **QUIET)
    save.click(saved, [name, prompt, negative], [chosen, name], **QUIET)
    delete.click(deleted, name, [chosen, name], **QUIET)
    return [Fresh(chosen, page.styles), Fresh(name, page.styles, always=True)]
