"""The Extras tab: a picture made larger without diffusion."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
from PIL import Image

from sd_cloud.dialects.sdapi_models import ExtrasSingleImageRequest
from sd_cloud.errors import ServiceError
from sd_cloud.host.i18n import said, word
from sd_cloud.host.page import SIDE_BY_SIDE, Page, as_base64, order_key, owner_of, page_file, told
from sd_cloud.host.picture_field import picture_field
from sd_cloud.job import Job, Target

#: What there always is that makes a picture larger.
FIRST = "Lanczos"


def extras_tab(page: Page) -> gr.Image:
    """Build the tab within the current context; its picture, for other tabs to fill."""
    names = [one.name for one in page.service.catalogue().upscalers] or ["None"]
    with gr.Row():
        with gr.Column(min_width=300):
            picture = picture_field(
                label=word("source"), type="pil", sources=["upload", "clipboard"], elem_id="extras_image"
            )
            scale = gr.Slider(1, 8, 2, step=0.05, label=word("upscale_by"), elem_id="extras_scale")
            first = gr.Dropdown(
                names,
                value=FIRST if FIRST in names else names[0],
                label=word("upscaler"),
                elem_id="extras_upscaler_1",
            )
            with gr.Row():
                second = gr.Dropdown(names, value=names[0], label=word("upscaler_2"), min_width=SIDE_BY_SIDE)
                visibility = gr.Slider(
                    0, 1, 0, step=0.01, label=word("upscaler_2_visibility"), min_width=SIDE_BY_SIDE
                )
            generate = gr.Button(word("generate"), variant="primary", elem_id="extras_generate")
        with gr.Column(min_width=300, elem_classes=["sd-cloud-results"]):
            result = gr.Image(label=word("picture"), format="png", interactive=False, elem_id="extras_result")
            told_by = gr.HTML(elem_id="extras_told")

    async def make(
        request: gr.Request, image: Image.Image | None, by: float, one: str, two: str, share: float
    ) -> tuple[Any, str]:
        if image is None:
            raise gr.Error(said("no_picture", request), print_exception=False)
        body = ExtrasSingleImageRequest(
            image=await asyncio.to_thread(as_base64, image),
            upscaling_resize=by,
            upscaler_1=one,
            upscaler_2=two,
            extras_upscaler_2_visibility=share,
        )
        target = Target("webui") if page.options["samples_save"] else None
        job = Job(
            "extras",
            body.model_dump(),
            owner=owner_of(request),
            dialect="page",
            order_key=order_key(request),
            target=target,
        )
        try:
            outcome = await page.service.run(job)
        except ServiceError as error:
            raise told(error) from None
        for made in outcome.pictures:
            if made.image is not None:
                path = await asyncio.to_thread(page_file, result, made.image, made.infotext)
                size = f"{made.image.width} × {made.image.height} · {outcome.seconds:.1f} s"
                return path, size
        return None, str(outcome.info.get("html_info", ""))

    generate.click(
        make,
        [picture, scale, first, second, visibility],
        [result, told_by],
        concurrency_limit=None,
        api_visibility="private",
    )
    return picture
