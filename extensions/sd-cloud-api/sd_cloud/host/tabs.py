"""The WebUI at ``/``: Gradio tabs that submit through the same `Service` as every API caller."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by gradio when it is imported: nothing here talks to anybody but the browser.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi import FastAPI
from gradio.routes import INTERNAL_ROUTES
from starlette.requests import ClientDisconnect
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from sd_cloud.host.i18n import dictionary, word
from sd_cloud.host.page import Fresh, Page
from sd_cloud.host.sending import send_from_gallery
from sd_cloud.host.tab_extras import extras_tab
from sd_cloud.host.tab_making import MakingTab, making_tab
from sd_cloud.host.tab_making_form import Form
from sd_cloud.host.tab_png_info import png_info_tab
from sd_cloud.host.tab_settings import settings_tab
from sd_cloud.pages import frame, is_hidden, pages_of
from sd_cloud.settings import Settings

#: Fonts of the system: the default theme's would come from a font service.
_FONT = ("system-ui", "-apple-system", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")
_CSS = Path(__file__).with_name("page.css")
_JS = Path(__file__).with_name("page.js")

#: What gradio serves beside the page itself; with ``--gradio-auth`` its own log-in guards all of it.
_PAGE_PATHS = ("/", *(f"/{name}" for name in INTERNAL_ROUTES), *(f"/{name}/" for name in INTERNAL_ROUTES))

#: How often files that a page showed are looked through, and their age when they go.
FILES_SECONDS = (3600, 24 * 3600)
#: How often it is looked whether the service is stopping.
LOOK_SECONDS = 0.2


log = logging.getLogger(__name__)

TABS = ("txt2img", "img2img", "extras", "png_info", "settings")


def open_paths(settings: Settings) -> tuple[str, ...]:
    """Paths that the access gate leaves to gradio's own log-in: all of the page's, if there is one."""
    return _PAGE_PATHS if settings.gradio_auth else ()


def mount(app: FastAPI, page: Page) -> FastAPI:
    """Put the pages at ``/``. Everything else must hang on the app by now: this takes all the rest."""
    settings = page.settings
    files = settings.state_dir / "page"
    files.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(files)  # not among everybody's temporary files
    theme = gr.themes.Default(font=list(_FONT), font_mono=list(_MONO))
    gr.mount_gradio_app(
        app,
        blocks(page),
        path="/",
        root_path=settings.subpath or None,
        auth=list(settings.gradio_auth) or None,
        i18n=dictionary({f"page_{one.id}": (one.title, one.title_zh) for one in pages_of(settings)}),
        theme=theme,
        css_paths=_CSS,
        js=_JS.read_text(),
        footer_links=["settings"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        max_file_size=settings.fetch.limit_bytes,
        show_error=True,
    )
    _hang_up_with_the_service(app, page)
    return app


class _Leaving:
    """A browser that leaves in the middle of an upload is no failure of the service's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            log.info("a browser left in the middle of %s", scope["path"])


def _hang_up_with_the_service(app: FastAPI, page: Page) -> None:
    """End each open page's standing connection once the service stops; the server waits for them."""
    [mounted] = [route for route in app.router.routes if isinstance(route, Mount)]
    gradio = mounted.app
    mounted.app = _Leaving(gradio)
    inner = app.router.lifespan_context

    async def hang_up() -> None:
        while not page.service.closing:  # noqa: ASYNC110 - the service announces it to nobody
            await asyncio.sleep(LOOK_SECONDS)
        gradio.stop_event.set()  # type: ignore[attr-defined]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            watch = asyncio.create_task(hang_up())
            yield state
            watch.cancel()

    app.router.lifespan_context = lifespan


def blocks(page: Page) -> gr.Blocks:
    """The whole page: the checkpoint and VAE on top, the tabs below."""
    with gr.Blocks(
        title="Stable Diffusion", analytics_enabled=False, delete_cache=FILES_SECONDS, fill_width=True
    ) as whole:
        with gr.Row():
            checkpoint = gr.Dropdown(
                page.checkpoints(),
                value=page.checkpoint(),
                label=word("checkpoint"),
                min_width=240,
                elem_id="setting_sd_model_checkpoint",
            )
            vae = gr.Dropdown(
                page.vaes(),
                value=page.options["sd_vae"],
                label=word("vae"),
                min_width=240,
                elem_id="setting_sd_vae",
            )
            refresh = gr.Button(word("refresh"), scale=0, min_width=130, elem_id="refresh_checkpoints")
        notice = gr.HTML(
            word("no_checkpoint"),
            visible=not page.checkpoints(),
            elem_classes=["sd-cloud-notice"],
            elem_id="no_checkpoint",
        )
        shown = _shown(page)
        with gr.Tabs(elem_id="tabs") as tabs:
            made: dict[str, MakingTab] = {}
            for kind in ("txt2img", "img2img"):
                with gr.Tab(word(kind), id=kind, elem_id=f"tab_{kind}", visible=kind in shown):
                    made[kind] = making_tab(kind, page, checkpoint, vae)
            with gr.Tab(word("extras"), id="extras", elem_id="tab_extras", visible="extras" in shown):
                extras_picture = extras_tab(page)
            with gr.Tab(word("png_info"), id="png_info", elem_id="tab_png_info", visible="png_info" in shown):
                png_info_tab(made["txt2img"], made["img2img"], tabs)
            for one in pages_of(page.settings):
                with gr.Tab(word(f"page_{one.id}"), id=one.id, elem_id=f"tab_{one.id}"):
                    gr.HTML(frame(one))
            with gr.Tab(word("settings"), id="settings", elem_id="tab_settings", visible="settings" in shown):
                options = settings_tab(page)
        for tab in made.values():
            send_from_gallery(page, tabs, tab, made["img2img"], extras_picture)
        fresh = [one for tab in made.values() for one in tab.form.fresh]
        _keep_lists_fresh(whole, page, _Top(checkpoint, vae, refresh, notice), fresh)
        _follow_native_size(page, checkpoint, [tab.form for tab in made.values()])
        whole.load(options.now, None, options.components, api_visibility="private", show_progress="hidden")
    return whole


@dataclass(frozen=True)
class _Top:
    """What stands above the tabs."""

    checkpoint: gr.Dropdown
    vae: gr.Dropdown
    refresh: gr.Button
    notice: gr.HTML


def _shown(page: Page) -> set[str]:
    """Every tab but those that ``--always-hide-tabs`` names, by id or by its English title."""
    return {id for id in TABS if not is_hidden(page.settings.always_hide_tabs, id)}


def _keep_lists_fresh(whole: gr.Blocks, page: Page, top: _Top, others: list[Fresh]) -> None:
    def lists(chosen: str | None, chosen_vae: str | None) -> list[Any]:
        """The catalogue as it is now; a choice that is still there stays."""
        titles, vaes = page.checkpoints(), page.vaes()
        kept = page.service.catalogue().checkpoint(chosen) if chosen else None
        return [
            gr.HTML(visible=not titles),
            gr.Dropdown(choices=titles, value=kept.title if kept else page.checkpoint()),
            gr.Dropdown(choices=vaes, value=chosen_vae if chosen_vae in vaes else page.options["sd_vae"]),
            *(other.now() for other in others),
        ]

    async def look_again(chosen: str | None, chosen_vae: str | None) -> list[Any]:
        await page.service.engine.refresh()
        return lists(chosen, chosen_vae)

    both = [top.checkpoint, top.vae]
    every = [top.notice, *both, *(other.dropdown for other in others)]
    top.refresh.click(look_again, both, every, api_visibility="private")
    whole.load(lists, both, every, api_visibility="private", show_progress="hidden")


def _follow_native_size(page: Page, checkpoint: gr.Dropdown, forms: list[Form]) -> None:
    """A form whose size is still the last checkpoint's own takes the size of the next one."""
    before = gr.State(page.native_side(page.checkpoint()))
    sizes = [form[side] for form in forms for side in ("width", "height")]

    def sized(title: str | None, before: int, *sides: int) -> list[Any]:
        now = page.native_side(title)
        pairs = zip(sides[::2], sides[1::2], strict=True)
        fresh = [now if pair == (before, before) else gr.skip() for pair in pairs]
        return [now, *(one for one in fresh for _ in range(2))]

    checkpoint.change(
        sized,
        [checkpoint, before, *sizes],
        [before, *sizes],
        api_visibility="private",
        show_progress="hidden",
    )
