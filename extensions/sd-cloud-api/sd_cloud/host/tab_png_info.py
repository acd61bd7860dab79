"""The PNG Info tab: how a picture was made, and back into a form."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from sd_cloud.host.i18n import said, word
from sd_cloud.host.picture_field import picture_field
from sd_cloud.host.tab_making import MakingTab, pasted
from sd_cloud.host.tab_making_form import INPUT, SOURCE
from sd_cloud.outputs.png import geninfo


def png_info_tab(txt2img: MakingTab, img2img: MakingTab, tabs: gr.Tabs) -> None:
    """Build the tab within the current context."""
    with gr.Row():
        with gr.Column(min_width=300):
            # As the file that was sent: a decoded picture no longer has its texts.
            picture = picture_field(
                label=word("source"), type="filepath", sources=["upload"], elem_id="pnginfo_image"
            )
        with gr.Column(min_width=300):
            infotext = gr.Textbox(
                label=word("infotext"), lines=6, interactive=False, buttons=["copy"], elem_id="pnginfo_info"
            )
            others = gr.HTML(label=word("other_data"), elem_id="pnginfo_others")
            with gr.Row():
                to_txt2img = gr.Button(word("send_txt2img"), elem_id="pnginfo_send_txt2img")
                to_img2img = gr.Button(word("send_img2img"), elem_id="pnginfo_send_img2img")

    def read(path: str | None) -> tuple[str, str]:
        if not path:
            return "", ""
        with Image.open(path) as image:
            info, items, _ = geninfo(image)
        rows = "".join(f"<p><b>{html.escape(k)}</b>: {html.escape(str(v))}</p>" for k, v in items.items())
        # A picture that was drawn by hand has nothing to tell; that is said, not left empty.
        return info, rows if info or rows else str(word("picture_without_infotext"))

    picture.change(read, picture, [infotext, others], api_visibility="private")
    for button, tab in ((to_txt2img, txt2img), (to_img2img, img2img)):
        written = [*tab.form.components, tabs]
        button.click(_sends(tab), [infotext, picture], written, api_visibility="private")


def _sends(tab: MakingTab) -> Callable[[gr.Request, str, str | None], list[Any]]:
    """To img2img goes the picture as well."""

    def sent(request: gr.Request, info: str, path: str | None) -> list[Any]:
        if tab.kind == "txt2img" and not info:
            raise gr.Error(said("picture_without_infotext", request), print_exception=False)
        if not path:
            raise gr.Error(said("no_picture", request), print_exception=False)
        filled = dict(zip(tab.form.names, pasted(tab.kind, tab.form, info), strict=True))
        if tab.form.inputs is not None:
            filled |= {SOURCE: path, INPUT: SOURCE}
        return [*filled.values(), gr.Tabs(selected=tab.kind)]

    return sent
