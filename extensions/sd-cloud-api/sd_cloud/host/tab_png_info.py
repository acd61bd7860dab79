"""The PNG Info tab: how a picture was made, and back into a form."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
from PIL import Image

from sd_cloud.host.i18n import word
from sd_cloud.host.tab_making import MakingTab, pasted
from sd_cloud.outputs.png import geninfo


def png_info_tab(txt2img: MakingTab, img2img: MakingTab, tabs: gr.Tabs) -> None:
    """Build the tab within the current context."""
    with gr.Row():
        with gr.Column():
            # As the file that was sent: a decoded picture no longer has its texts.
            picture = gr.Image(label=word("source"), type="filepath", elem_id="pnginfo_image")
        with gr.Column():
            infotext = gr.Textbox(
                label=word("infotext"), lines=6, interactive=False, buttons=["copy"], elem_id="pnginfo_info"
            )
            others = gr.HTML(label=word("other_data"))
            with gr.Row():
                to_txt2img = gr.Button(word("send_txt2img"))
                to_img2img = gr.Button(word("send_img2img"))

    def read(path: str | None) -> tuple[str, str]:
        if not path:
            return "", ""
        with Image.open(path) as image:
            info, items, _ = geninfo(image)
        rows = "".join(f"<p><b>{html.escape(k)}</b>: {html.escape(str(v))}</p>" for k, v in items.items())
        return info, rows

    def send(tab: MakingTab) -> Any:
        def sent(info: str) -> list[Any]:
            if not info:
                raise gr.Error("the picture tells no generation parameters", print_exception=False)
            return [*pasted(tab.kind, tab.form, info), gr.Tabs(selected=tab.kind)]

        return sent

    picture.change(read, picture, [infotext, others], api_visibility="private")
    for button, tab in ((to_txt2img, txt2img), (to_img2img, img2img)):
        button.click(send(tab), infotext, [*tab.form.components, tabs], api_visibility="private")
