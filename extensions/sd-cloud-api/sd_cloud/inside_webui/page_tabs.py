"""Tabs of the webui's page: ours, each a page in a frame, and those that are always hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sd_cloud.pages import frame, is_hidden, pages_of

OPTION = "hidden_tabs"


def framed_pages() -> Sequence[tuple[Any, str, str]]:
    """(blocks, title, id) of every page, as the webui's ``on_ui_tabs`` wants them."""
    import gradio

    from sd_cloud.inside_webui.hook import webuis_settings

    tabs = []
    for page in pages_of(webuis_settings()):
        with gradio.Blocks(analytics_enabled=False) as blocks:
            gradio.HTML(frame(page))
        tabs.append((blocks, page.title, f"sd_cloud_{page.id}"))
    return tabs


class HiddenTabs(list[str]):
    """The webui's option of hidden tabs, as saved, that also holds what ``--always-hide-tabs`` names."""

    def __init__(self, saved: Sequence[str] | None, always: Sequence[str]) -> None:
        super().__init__(saved or ())
        self.was_saved = saved is not None
        self._always = tuple(always)

    def __contains__(self, title: object) -> bool:
        return super().__contains__(title) or (isinstance(title, str) and is_hidden(self._always, title))


def hide_tabs(opts: Any, always: Sequence[str]) -> None:
    """Until `page_is_built`, ``always`` are among the hidden tabs. The saved option stays as it is."""
    if not always:
        return
    opts.data[OPTION] = HiddenTabs(opts.data.get(OPTION), always)


def page_is_built(opts: Any) -> None:
    """Put the option back as `hide_tabs` found it."""
    held = opts.data.get(OPTION)
    if isinstance(held, HiddenTabs):
        if held.was_saved:
            opts.data[OPTION] = list(held)
        else:
            del opts.data[OPTION]
