"""The right half of the txt2img and img2img tabs: progress, preview, gallery, and where pictures go next."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from PIL import Image

from sd_cloud import pages
from sd_cloud.files.browser import OUTPUTS
from sd_cloud.host.i18n import word
from sd_cloud.host.page import Page, page_file
from sd_cloud.job import Kind, Outcome, Progress

#: The longer side that a preview is shown at, about.
PREVIEW_PIXELS = 384
#: The same for the preview and the gallery, so that nothing jumps when one takes the other's place.
HEIGHT = "min(52vh, 480px)"


@dataclass(frozen=True)
class Made:
    """One picture of the gallery: how it was made, and where it was saved."""

    infotext: str
    seed: int
    path: Path | None


@dataclass(frozen=True)
class Results:
    """Its components. ``made`` is a list of `Made`, ``chosen`` the index of the one that is shown."""

    gallery: gr.Gallery
    preview: gr.Image
    buttons: gr.Row
    folder: gr.Button
    infotext: gr.Textbox
    made: gr.State
    chosen: gr.State


def results(kind: Kind, page: Page) -> Results:
    """Build them within the current context."""
    preview = gr.Image(
        label=word("preview"),
        visible=False,
        interactive=False,
        format="jpeg",
        buttons=[],
        height=HEIGHT,
        elem_id=f"{kind}_preview",
    )
    gallery = gr.Gallery(
        label=word("gallery"),
        type="filepath",
        format="png",
        columns=4,
        height=HEIGHT,
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen", "download_all"],
        elem_id=f"{kind}_gallery",
    )
    buttons = gr.Row()
    with buttons:
        files = pages.FILES in pages.pages_of(page.settings)
        folder = gr.Button(
            word("open_folder"),
            size="sm",
            min_width=110,
            visible=files,
            interactive=False,
            elem_id=f"{kind}_open_folder",
        )
    infotext = gr.Textbox(
        label=word("infotext"), lines=3, interactive=False, buttons=["copy"], elem_id=f"{kind}_info"
    )
    made, chosen = gr.State([]), gr.State(0)

    def choose(event: gr.SelectData, made: list[Made]) -> tuple[int, str]:
        index = int(event.index)
        return index, made[index].infotext if index < len(made) else ""

    gallery.select(choose, made, [chosen, infotext], api_visibility="private", show_progress="hidden")
    return Results(gallery, preview, buttons, folder, infotext, made, chosen)


def shown(outcome: Outcome, gallery: gr.Gallery) -> tuple[list[tuple[str, str | None]], list[Made]]:
    """The gallery's pictures and what is known of each. Encodes them: call it in a thread."""
    pictures, made = [], []
    for picture in outcome.pictures:
        if picture.image is not None:
            path = Path(picture.path) if picture.path else None
            file = page_file(gallery, picture.image, picture.infotext)
            pictures.append((file, path.name if path else None))
            made.append(Made(picture.infotext, -1 if picture.seed is None else picture.seed, path))
    return pictures, made


def folder_link(outputs_dir: Path, made: list[Made]) -> str:
    """The Files page at the pictures' folder; relative, as every address of ours. A grid comes first."""
    path = next((one.path for one in reversed(made) if one.path is not None), outputs_dir)
    inside = path.parent.relative_to(outputs_dir) if path.is_relative_to(outputs_dir) else Path()
    place = "/".join((OUTPUTS, *inside.parts))
    return f"{pages.ROUTE.lstrip('/')}/{pages.FILES.id}.html#{quote(place)}"


def larger(preview: Image.Image) -> Image.Image:
    """A preview is as small as the latent it shows."""
    scale = max(1, PREVIEW_PIXELS // max(preview.size))
    return preview.resize((preview.width * scale, preview.height * scale), Image.Resampling.BICUBIC)


def progress_bar(kind: Kind, progress: Progress | None, seconds: float) -> str:
    if progress is None:
        return f"<progress></progress><div>{word('waiting')}</div>"
    fraction = progress.fraction
    told = [f"{fraction:.0%}"]
    if progress.steps:
        told.append(f"{progress.step}/{progress.steps}")
    if progress.job_count > 1:
        told.append(f"{progress.job_no + 1}/{progress.job_count}")
    if progress.stage and progress.stage != kind:
        told.append(html.escape(progress.stage))
    if fraction > 0.05:
        told.append(f"ETA {seconds / fraction - seconds:.0f} s")
    return f'<progress value="{fraction:.3f}" max="1"></progress><div>{" · ".join(told)}</div>'


def summary(outcome: Outcome) -> str:
    """How long it took, and what of it went wrong."""
    failed = [html.escape(one.error) for one in outcome.pictures if one.error]
    interrupted = [str(word("interrupted"))] if outcome.interrupted else []
    return " · ".join([f"{outcome.seconds:.1f} s", *failed, *interrupted])
