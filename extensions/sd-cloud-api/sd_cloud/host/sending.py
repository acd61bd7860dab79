"""A picture of the gallery into img2img, Inpaint or Extras, with how it was made."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
from gradio.components import Component

from sd_cloud.host.i18n import said, word
from sd_cloud.host.page import Page
from sd_cloud.host.tab_making import MakingTab, Updates, pasted
from sd_cloud.host.tab_making_form import EDITED, INPUT, SOURCE
from sd_cloud.host.tab_making_results import Made

#: What a gallery gives a handler: each picture's file and what is written below it.
Pictures = list[tuple[str, str | None]]
#: What opens another tab: the components it writes, and what into them, given the picture's infotext.
Opens = tuple[list[Component], Callable[[str], Updates]]


def send_from_gallery(
    page: Page, tabs: gr.Tabs, tab: MakingTab, img2img: MakingTab, extras: gr.Image
) -> None:
    """Buttons that put the picture that is shown into another tab and go there."""
    for label, target in (("send_img2img", SOURCE), ("send_inpaint", EDITED)):
        _sends(tab, label, _opens_img2img(page, tabs, img2img, target), img2img.form[target])
    _sends(tab, "send_extras", ([tabs], lambda infotext: {tabs: gr.Tabs(selected="extras")}), extras)


def _sends(tab: MakingTab, label: str, opens: Opens, target: Component) -> None:
    outputs, opened = opens
    found = tab.results
    with found.buttons:
        button = gr.Button(word(label), elem_id=f"{tab.kind}_{label}", size="sm", min_width=110)

    def go(request: gr.Request, pictures: Pictures | None, chosen: int, made: list[Made]) -> Updates:
        if not pictures:
            raise gr.Error(said("nothing_to_send", request), print_exception=False)
        return opened(next((one.infotext for one in made[chosen:] if one.infotext), ""))

    def put(pictures: Pictures, chosen: int) -> str:
        return pictures[min(chosen, len(pictures) - 1)][0]

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    went = button.click(go, [found.gallery, found.chosen, found.made], outputs, **quiet)
    # Only then: an editor that was never shown takes no picture.
    went.success(put, [found.gallery, found.chosen], target, **quiet)


def _opens_img2img(page: Page, tabs: gr.Tabs, img2img: MakingTab, target: str) -> Opens:
    form = img2img.form
    inner = form.inputs
    assert inner is not None
    names = [name for name in form.names if name != target]

    def opened(infotext: str) -> Updates:
        filled = dict(zip(form.names, pasted("img2img", form, infotext, sent_fields(page)), strict=True))
        filled[INPUT] = target
        return {
            tabs: gr.Tabs(selected="img2img"),
            inner: gr.Tabs(selected=target),
            **{form[name]: filled[name] for name in names},
        }

    return [tabs, inner, *(form[name] for name in names)], opened


def sent_fields(page: Page) -> frozenset[str]:
    """What goes along with a picture, as the webui's options ``send_seed`` and ``send_size`` say."""
    fields = {"prompt", "negative_prompt", "steps", "cfg_scale"}
    if page.options["send_seed"]:
        fields.add("seed")
    if page.options["send_size"]:
        fields |= {"width", "height"}
    return frozenset(fields)
