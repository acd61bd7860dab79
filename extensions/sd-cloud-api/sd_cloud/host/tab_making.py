"""The txt2img and img2img tabs: a form, a Generate button, live progress, a gallery."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sd_cloud.dialects.sdapi_infotext import filled_in
from sd_cloud.dialects.sdapi_models import StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img
from sd_cloud.errors import BadRequest, ServiceError
from sd_cloud.host.i18n import word
from sd_cloud.host.page import Page, page_file, told
from sd_cloud.host.tab_making_form import Form, form
from sd_cloud.job import Kind, Outcome, Progress

#: How often a page that waits is told how far its job is.
TELL_SECONDS = 0.5
#: The longer side that a preview is shown at, about.
PREVIEW_PIXELS = 384

_MODELS = {"txt2img": StableDiffusionProcessingTxt2Img, "img2img": StableDiffusionProcessingImg2Img}


@dataclass(frozen=True)
class MakingTab:
    """What other tabs reach of this one."""

    kind: Kind
    form: Form
    gallery: gr.Gallery
    buttons: gr.Row

    @property
    def source(self) -> gr.Image:
        assert self.form.source is not None
        return self.form.source

    def send_from_gallery(self, tabs: gr.Tabs, target: gr.Image, tab: str, label: str) -> None:
        """A button that puts the chosen picture, or the first one, into another tab and goes there."""
        with self.buttons:
            send = gr.Button(word(label), elem_id=f"{self.kind}_{label}", size="sm")
        chosen = gr.State(0)

        def choose(event: gr.SelectData) -> int:
            return int(event.index)

        def sent(pictures: list[tuple[Image.Image, str | None]] | None, index: int) -> tuple[Any, gr.Tabs]:
            if not pictures:
                raise gr.Error("there is no picture to send yet", print_exception=False)
            return pictures[min(index, len(pictures) - 1)][0], gr.Tabs(selected=tab)

        self.gallery.select(choose, None, chosen, api_visibility="private", show_progress="hidden")
        send.click(sent, [self.gallery, chosen], [target, tabs], api_visibility="private")


def making_tab(kind: Kind, page: Page, checkpoint: gr.Dropdown, vae: gr.Dropdown) -> MakingTab:
    """Build one tab within the current context."""
    with gr.Row():
        with gr.Column(scale=6):
            prompt = gr.Textbox(
                label=word("prompt"), placeholder=word("prompt_hint"), lines=3, elem_id=f"{kind}_prompt"
            )
            negative = gr.Textbox(
                label=word("negative_prompt"),
                placeholder=word("negative_hint"),
                lines=2,
                elem_id=f"{kind}_neg_prompt",
            )
        with gr.Column(scale=1, min_width=160):
            generate = gr.Button(word("generate"), variant="primary", elem_id=f"{kind}_generate")
            with gr.Row():
                interrupt = gr.Button(word("interrupt"), size="sm", min_width=60, elem_id=f"{kind}_interrupt")
                skip = gr.Button(word("skip"), size="sm", min_width=60, elem_id=f"{kind}_skip")
            paste = gr.Button(word("paste"), size="sm", elem_id=f"{kind}_paste")
    with gr.Row():
        with gr.Column():
            fields = form(kind, page, prompt, negative)
        with gr.Column():
            preview = gr.Image(
                label=word("preview"), visible=False, interactive=False, format="jpeg", buttons=[], height=320
            )
            gallery = gr.Gallery(
                label=word("gallery"),
                type="pil",
                format="png",
                columns=2,
                object_fit="contain",
                interactive=False,
                elem_id=f"{kind}_gallery",
            )
            status = gr.HTML(elem_classes=["sd-cloud-status"], elem_id=f"{kind}_status")
            buttons = gr.Row()
            infotext = gr.Textbox(
                label=word("infotext"), lines=3, interactive=False, buttons=["copy"], elem_id=f"{kind}_info"
            )
    running, last_seed = gr.State(""), gr.State(-1)
    tab = _Tab(kind, page, fields, gallery)
    outputs = [gallery, preview, status, infotext, running, last_seed]
    click = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [checkpoint, vae, *fields.components]
    generate.click(tab.make, inputs, outputs, concurrency_limit=None, **click)
    interrupt.click(tab.interrupt, running, None, concurrency_limit=None, **click)
    skip.click(tab.skip, running, None, concurrency_limit=None, **click)
    paste.click(tab.pasted, prompt, fields.components, **click)
    fields.reuse_seed.click(lambda seed: seed, last_seed, fields["seed"], **click)
    return MakingTab(kind, fields, gallery, buttons)


class _Tab:
    """The handlers of one tab."""

    def __init__(self, kind: Kind, page: Page, fields: Form, gallery: gr.Gallery) -> None:
        self._kind = kind
        self._page = page
        self._fields = fields
        self._gallery = gallery

    async def make(
        self, request: gr.Request, checkpoint: str | None, vae: str | None, *values: Any
    ) -> AsyncIterator[list[Any]]:
        """Submit, tell how far it is, show what came of it."""
        try:
            payload = await asyncio.to_thread(self._payload, checkpoint, vae, values)
            job = await self._page.job(self._kind, payload, request)
            yield [gr.skip(), gr.skip(), _status(None, 0.0), gr.skip(), job.id, gr.skip()]
            making = asyncio.ensure_future(self._page.service.run(job))
            async for update in self._watched(making, job.id):
                yield update
            yield await asyncio.to_thread(self._shown, making.result())
        except ServiceError as error:
            # Put the page right first: an error leaves every output as it is.
            yield [gr.skip(), gr.Image(visible=False), "", gr.skip(), "", gr.skip()]
            raise told(error) from None

    def _payload(self, checkpoint: str | None, vae: str | None, values: tuple[Any, ...]) -> dict[str, Any]:
        body = self._fields.request(values)
        override = {"sd_model_checkpoint": checkpoint, "sd_vae": vae}
        body["override_settings"] = {name: value for name, value in override.items() if value}
        body["save_images"] = bool(self._page.options["samples_save"])
        return dict(_MODELS[self._kind](**body))

    async def _watched(self, making: asyncio.Future[Outcome], task_id: str) -> AsyncIterator[list[Any]]:
        service = self._page.service
        seen: Image.Image | None = None
        while not making.done():
            await asyncio.wait({making}, timeout=TELL_SECONDS)
            progress = service.progress(task_id)
            preview: Any = gr.skip()
            if progress is not None and progress.preview is not None and progress.preview is not seen:
                seen = progress.preview
                preview = gr.Image(value=_larger(seen), visible=True)
            status = _status(progress, service.seconds_running(task_id))
            yield [gr.skip(), preview, status, gr.skip(), gr.skip(), gr.skip()]

    def _shown(self, outcome: Outcome) -> list[Any]:
        pictures = []
        for picture in outcome.pictures:
            if picture.image is not None:
                path = page_file(self._gallery, picture.image, picture.infotext)
                pictures.append((path, Path(picture.path).name if picture.path else None))
        infotext = next((p.infotext for p in outcome.pictures if p.infotext), "")
        seed = next((p.seed for p in outcome.pictures if p.seed is not None), -1)
        failed = [p.error for p in outcome.pictures if p.error]
        said = [f"{outcome.seconds:.1f} s", *(["⏹"] if outcome.interrupted else []), *failed]
        return [pictures, gr.Image(visible=False), html.escape(" · ".join(said)), infotext, "", seed]

    async def interrupt(self, running: str) -> None:
        """Stop this page's own job: a running one keeps its pictures, a waiting one is cancelled."""
        if running and not await self._page.service.interrupt(running):
            await self._page.service.cancel(running)

    async def skip(self, running: str) -> None:
        if running:
            await self._page.service.skip(running)

    def pasted(self, prompt: str) -> list[Any]:
        """The form as the infotext in the prompt says."""
        if "Steps:" not in (prompt or ""):
            raise gr.Error("the prompt holds no generation parameters", print_exception=False)
        return pasted(self._kind, self._fields, prompt)


def pasted(kind: Kind, fields: Form, infotext: str) -> list[Any]:
    """Updates of every field of a form by an infotext; fields it does not mention stay."""
    try:
        said = filled_in(kind, {"infotext": infotext, "override_settings": {}}, ())
    except BadRequest as error:
        raise told(error) from None
    return [said.get(name, gr.skip()) for name in fields.names]


def _larger(preview: Image.Image) -> Image.Image:
    """A preview is as small as the latent it shows."""
    scale = max(1, PREVIEW_PIXELS // max(preview.size))
    return preview.resize((preview.width * scale, preview.height * scale), Image.Resampling.BICUBIC)


def _status(progress: Progress | None, seconds: float) -> str:
    if progress is None:
        return "<progress></progress>"
    fraction = progress.fraction
    left = f" · ETA {seconds / fraction - seconds:.0f} s" if fraction > 0.05 else ""
    steps = f"{progress.step}/{progress.steps}" if progress.steps else ""
    batches = f" · {progress.job_no + 1}/{progress.job_count}" if progress.job_count > 1 else ""
    stage = html.escape(f" · {progress.stage}") if progress.stage else ""
    return (
        f'<progress value="{fraction:.3f}" max="1"></progress>'
        f"<div>{fraction:.0%} · {steps}{batches}{stage}{left}</div>"
    )
