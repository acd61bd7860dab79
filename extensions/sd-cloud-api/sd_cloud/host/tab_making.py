"""The txt2img and img2img tabs: a form, a Generate button, live progress, a gallery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from sd_cloud.dialects.sdapi_infotext import pasted_fields
from sd_cloud.dialects.sdapi_models import StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img
from sd_cloud.errors import BadRequest, ServiceError
from sd_cloud.host.i18n import said, word
from sd_cloud.host.page import Page, told
from sd_cloud.host.tab_making_form import Form, form
from sd_cloud.host.tab_making_results import (
    Made,
    Results,
    folder_link,
    larger,
    progress_bar,
    results,
    shown,
    summary,
)
from sd_cloud.job import Kind, Outcome

#: How often a page that waits is told how far its job is.
TELL_SECONDS = 0.5

_MODELS = {"txt2img": StableDiffusionProcessingTxt2Img, "img2img": StableDiffusionProcessingImg2Img}
#: What a handler writes: only the components that change.
Updates = dict[Component, Any]


@dataclass(frozen=True)
class MakingTab:
    """What other tabs reach of this one."""

    kind: Kind
    form: Form
    results: Results


@dataclass(frozen=True)
class _Buttons:
    """What stands beside the prompts: where it is started and stopped, and how far it is."""

    generate: gr.Button
    interrupt: gr.Button
    skip: gr.Button
    paste: gr.Button
    status: gr.HTML

    def while_running(self, running: bool) -> Updates:
        """One job of a tab at a time: what can't be pressed now is faint."""
        return {
            self.generate: gr.Button(interactive=not running),
            self.interrupt: gr.Button(interactive=running),
            self.skip: gr.Button(interactive=running),
        }


def making_tab(kind: Kind, page: Page, checkpoint: gr.Dropdown, vae: gr.Dropdown) -> MakingTab:
    """Build one tab within the current context."""
    with gr.Row():
        with gr.Column(scale=6, min_width=300):
            prompt = gr.Textbox(
                label=word("prompt"), placeholder=word("prompt_hint"), lines=3, elem_id=f"{kind}_prompt"
            )
            negative = gr.Textbox(
                label=word("negative_prompt"),
                placeholder=word("negative_hint"),
                lines=2,
                elem_id=f"{kind}_neg_prompt",
            )
        with gr.Column(scale=1, min_width=170):
            buttons = _buttons(kind)
    with gr.Row(elem_classes=["sd-cloud-work"]):
        with gr.Column(min_width=300):
            fields = form(kind, page, prompt, negative)
        with gr.Column(min_width=300, elem_classes=["sd-cloud-results"]):
            found = results(kind, page)
    running = gr.State("")
    tab = _Tab(kind, page, fields, found, buttons, running)
    outputs = [
        *(found.gallery, found.preview, found.infotext, found.folder, found.made, found.chosen),
        *(buttons.generate, buttons.interrupt, buttons.skip, buttons.status, running),
    ]
    click = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [checkpoint, vae, *fields.components]
    buttons.generate.click(tab.make, inputs, outputs, concurrency_limit=None, **click)
    buttons.interrupt.click(tab.interrupt, running, None, concurrency_limit=None, **click)
    buttons.skip.click(tab.skip, running, None, concurrency_limit=None, **click)
    buttons.paste.click(tab.pasted, prompt, fields.components, **click)
    fields.reuse_seed.click(_seed_of, [found.made, found.chosen], fields["seed"], **click)
    return MakingTab(kind, fields, found)


def _buttons(kind: Kind) -> _Buttons:
    generate = gr.Button(word("generate"), variant="primary", elem_id=f"{kind}_generate")
    with gr.Row():
        small = {"size": "sm", "min_width": 60, "interactive": False}
        interrupt = gr.Button(word("interrupt"), elem_id=f"{kind}_interrupt", **small)
        skip = gr.Button(word("skip"), elem_id=f"{kind}_skip", **small)
    paste = gr.Button(word("paste"), size="sm", elem_id=f"{kind}_paste")
    status = gr.HTML(elem_classes=["sd-cloud-status"], elem_id=f"{kind}_status", padding=False)
    return _Buttons(generate, interrupt, skip, paste, status)


def _heard(making: asyncio.Future[Outcome]) -> None:
    """A page that was closed meanwhile asks for no result; what became of the job is in its task."""
    if not making.cancelled():
        making.exception()


def _seed_of(made: list[Made], chosen: int) -> Any:
    """The seed of the picture that is shown; a grid has its first picture's."""
    seeds = [one.seed for one in made[chosen:] if one.seed >= 0]
    return seeds[0] if seeds else gr.skip()


class _Tab:
    """The handlers of one tab."""

    def __init__(
        self,
        kind: Kind,
        page: Page,
        fields: Form,
        found: Results,
        buttons: _Buttons,
        running: gr.State,
    ) -> None:
        self._kind = kind
        self._page = page
        self._fields = fields
        self._results = found
        self._buttons = buttons
        self._running = running

    async def make(
        self, request: gr.Request, checkpoint: str | None, vae: str | None, *values: Any
    ) -> AsyncIterator[Updates]:
        """Submit, tell how far it is, show what came of it."""
        try:
            payload = await asyncio.to_thread(self._payload, checkpoint, vae, values)
            job = await self._page.job(self._kind, payload, request)
            bar = progress_bar(self._kind, None, 0.0)
            yield {**self._buttons.while_running(True), self._buttons.status: bar, self._running: job.id}
            making = asyncio.ensure_future(self._page.service.run(job))
            making.add_done_callback(_heard)
            async for update in self._watched(making, job.id):
                yield update
            yield await asyncio.to_thread(self._shown, making.result())
        except ServiceError as error:
            # Put the page right first: an error leaves every output as it is.
            yield {**self._idle(), self._buttons.status: ""}
            raise told(error) from None

    def _idle(self) -> Updates:
        found = self._results
        return {
            **self._buttons.while_running(False),
            found.gallery: gr.Gallery(visible=True),
            found.preview: gr.Image(visible=False),
            self._running: "",
        }

    def _payload(self, checkpoint: str | None, vae: str | None, values: tuple[Any, ...]) -> dict[str, Any]:
        body = self._fields.request(values)
        override = {"sd_model_checkpoint": checkpoint, "sd_vae": vae}
        body["override_settings"] = {name: value for name, value in override.items() if value}
        body["save_images"] = bool(self._page.options["samples_save"])
        return dict(_MODELS[self._kind](**body))

    async def _watched(self, making: asyncio.Future[Outcome], task_id: str) -> AsyncIterator[Updates]:
        service, found = self._page.service, self._results
        seen: Image.Image | None = None
        while not making.done():
            await asyncio.wait({making}, timeout=TELL_SECONDS)
            progress = service.progress(task_id)
            bar = progress_bar(self._kind, progress, service.seconds_running(task_id))
            update: Updates = {self._buttons.status: bar}
            if progress is not None and progress.preview is not None and progress.preview is not seen:
                seen = progress.preview
                update[found.gallery] = gr.Gallery(visible=False)
                update[found.preview] = gr.Image(value=larger(seen), visible=True)
            yield update

    def _shown(self, outcome: Outcome) -> Updates:
        found = self._results
        pictures, made = shown(outcome, found.gallery)
        link = folder_link(self._page.settings.outputs_dir, made)
        saved = any(one.path is not None for one in made)
        return {
            **self._idle(),
            found.gallery: gr.Gallery(pictures, selected_index=0 if pictures else None, visible=True),
            self._buttons.status: summary(outcome),
            found.infotext: next((one.infotext for one in made if one.infotext), ""),
            found.folder: gr.Button(link=link, link_target="_blank", interactive=saved),
            found.made: made,
            found.chosen: 0,
        }

    async def interrupt(self, running: str) -> None:
        """Stop this page's own job: a running one keeps its pictures, a waiting one is cancelled."""
        if running and not await self._page.service.interrupt(running):
            await self._page.service.cancel(running)

    async def skip(self, running: str) -> None:
        if running:
            await self._page.service.skip(running)

    def pasted(self, request: gr.Request, prompt: str) -> list[Any]:
        """The form as the infotext in the prompt says."""
        if "Steps:" not in (prompt or ""):
            raise gr.Error(said("no_infotext", request), print_exception=False)
        return pasted(self._kind, self._fields, prompt)


def pasted(kind: Kind, fields: Form, infotext: str, only: frozenset[str] | None = None) -> list[Any]:
    """Updates of every field of a form by an infotext; fields it does not mention stay.

    With ``only``, the other fields stay too.
    """
    try:
        filled = pasted_fields(kind, infotext)
    except BadRequest as error:
        raise told(error) from None
    return [
        filled.get(name, gr.skip()) if only is None or name in only else gr.skip() for name in fields.names
    ]
