"""The fields of the txt2img and img2img tabs, each named after the request field that it fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from PIL import Image

from sd_cloud.dialects.sdapi_checks import LATENT_UPSCALE_MODES
from sd_cloud.host.i18n import word
from sd_cloud.host.page import SIDE_BY_SIDE, Fresh, Page, as_base64
from sd_cloud.host.picture_field import picture_field
from sd_cloud.host.tab_making_networks import controlnet_fields, prompt_pickers, with_unit
from sd_cloud.host.tab_making_scripts import script_fields, soft_inpainting_fields, with_scripts
from sd_cloud.host.tab_making_styles import style_fields
from sd_cloud.job import Kind

#: Fields of the form that are no request fields: pictures, which `Form.request` turns into base64, and
#: which of the `INPUTS` is open, whose pictures they are.
SOURCE, EDITED, UPLOADED, MASK, INPUT = "source", "inpaint", "inpaint_upload", "inpaint_mask", "input"
INPUTS = (SOURCE, EDITED, UPLOADED)


@dataclass(frozen=True)
class Form:
    """Components by the name of the request field that each fills. ``inputs`` are img2img's tabs."""

    by_name: Mapping[str, Component]
    reuse_seed: gr.Button
    fresh: tuple[Fresh, ...]
    inputs: gr.Tabs | None = None

    def __getitem__(self, name: str) -> Component:
        return self.by_name[name]

    @property
    def names(self) -> list[str]:
        return list(self.by_name)

    @property
    def components(self) -> list[Component]:
        return list(self.by_name.values())

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The native request that the values of :attr:`components` say."""
        body = with_scripts(with_unit(dict(zip(self.names, values, strict=True))))
        if self.inputs is None:
            return body
        opened = body.pop(INPUT)
        of_each = _pictures_of(*(body.pop(name) for name in (SOURCE, EDITED, UPLOADED, MASK)))
        picture, mask = of_each[opened]
        if picture is not None:
            body["init_images"] = [as_base64(picture)]
        if mask is not None:
            body["mask"] = as_base64(mask)
        return body


def _pictures_of(
    source: Image.Image | None,
    edited: Mapping[str, Any] | None,
    uploaded: Image.Image | None,
    mask: Image.Image | None,
) -> dict[str, tuple[Image.Image | None, Image.Image | None]]:
    """By the tab that they are on: the picture and its mask."""
    background = edited["background"].convert("RGB") if edited and edited["background"] else None
    painted = mask_of(edited) if edited and background and _painted(edited) else None
    return {SOURCE: (source, None), EDITED: (background, painted), UPLOADED: (uploaded, mask)}


def mask_of(edited: Mapping[str, Any]) -> Image.Image:
    """White where any layer was painted on, black elsewhere; the size of the background."""
    size = edited["background"].size
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for layer in edited["layers"]:
        mask |= np.asarray(layer.convert("RGBA").resize(size))[:, :, 3] > 0
    return Image.fromarray(np.where(mask, 255, 0).astype("uint8"), "L")


def _painted(edited: Mapping[str, Any]) -> bool:
    return any(np.asarray(layer.convert("RGBA"))[:, :, 3].any() for layer in edited["layers"])


def form(kind: Kind, page: Page, prompt: Component, negative: Component) -> Form:
    """Build the fields within the current context."""
    fields: dict[str, Component] = {"prompt": prompt, "negative_prompt": negative}
    inputs = _pictures(fields) if kind == "img2img" else None
    fresh = style_fields(fields, page, kind)
    _sampling(fields, page, kind)
    if kind == "txt2img":
        _hires(fields, page)
    _size(fields, page, kind)
    if kind == "img2img":
        _inpainting(fields)
    reuse = _seeds(fields, kind)
    fresh += [
        _refiner(fields, page),
        *prompt_pickers(page, kind, prompt),
        controlnet_fields(fields, page, kind),
    ]
    script_fields(fields, page, kind)
    return Form(fields, reuse, tuple(fresh), inputs)


def _pictures(fields: dict[str, Component]) -> gr.Tabs:
    """The tabs that a picture is given on; the one that is open counts."""
    opened = fields[INPUT] = gr.State(SOURCE)
    file = {"type": "pil", "image_mode": "RGB", "sources": ["upload", "clipboard"], "height": 300}
    with gr.Tabs() as tabs:
        with gr.Tab(word("source"), id=SOURCE) as first:
            fields[SOURCE] = picture_field(label=word("source"), elem_id="img2img_image", **file)
        with gr.Tab(word("inpaint"), id=EDITED) as second:
            fields[EDITED] = gr.ImageEditor(
                label=word("mask_picture"),
                type="pil",
                layers=False,
                sources=["upload", "clipboard"],
                brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                transforms=(),
                elem_id="img2img_inpaint",
            )
        with gr.Tab(word("upload_mask"), id=UPLOADED) as third, gr.Row():
            fields[UPLOADED] = picture_field(label=word("source"), elem_id="img2img_upload", **file)
            fields[MASK] = picture_field(
                label=word("mask"), elem_id="img2img_mask", **{**file, "image_mode": "L"}
            )
    for tab, name in zip((first, second, third), INPUTS, strict=True):
        tab.select(partial(str, name), None, opened, api_visibility="private", show_progress="hidden")
    fields["resize_mode"] = gr.Radio(
        [(word(f"resize_{name}"), i) for i, name in enumerate(("just", "crop", "fill", "latent"))],
        value=0,
        label=word("resize_mode"),
    )
    return tabs


def _sampling(fields: dict[str, Component], page: Page, kind: Kind) -> None:
    there = page.service.catalogue()
    with gr.Row():
        samplers = [one.name for one in there.samplers]
        first = "DPM++ 2M" if "DPM++ 2M" in samplers else next(iter(samplers), None)
        fields["sampler_name"] = gr.Dropdown(
            samplers, value=first, label=word("sampler"), elem_id=f"{kind}_sampling"
        )
        labels = [one.label for one in there.schedulers] or ["Automatic"]
        fields["scheduler"] = gr.Dropdown(labels, value=labels[0], label=word("scheduler"))
        fields["steps"] = gr.Slider(1, 150, 20, step=1, label=word("steps"), elem_id=f"{kind}_steps")


def _hires(fields: dict[str, Component], page: Page) -> None:
    with gr.Accordion(word("hires_fix"), open=False):
        fields["enable_hr"] = gr.Checkbox(False, label=word("enable"))
        with gr.Row():
            names = [*LATENT_UPSCALE_MODES, *(one.name for one in page.service.catalogue().upscalers)]
            fields["hr_upscaler"] = gr.Dropdown(names, value="Latent", label=word("upscaler"))
            fields["hr_second_pass_steps"] = gr.Slider(
                0, 150, 0, step=1, label=word("hires_steps"), min_width=SIDE_BY_SIDE
            )
            fields["denoising_strength"] = gr.Slider(
                0, 1, 0.7, step=0.01, label=word("denoising"), min_width=SIDE_BY_SIDE
            )
        with gr.Row():
            fields["hr_scale"] = gr.Slider(
                1, 4, 2, step=0.05, label=word("upscale_by"), min_width=SIDE_BY_SIDE
            )
            fields["hr_resize_x"] = gr.Slider(
                0, 2048, 0, step=8, label=word("resize_width"), min_width=SIDE_BY_SIDE
            )
            fields["hr_resize_y"] = gr.Slider(
                0, 2048, 0, step=8, label=word("resize_height"), min_width=SIDE_BY_SIDE
            )


def _size(fields: dict[str, Component], page: Page, kind: Kind) -> None:
    side = page.native_side(page.checkpoint())
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Row():
        width = gr.Slider(
            64, 2048, side, step=8, label=word("width"), min_width=SIDE_BY_SIDE, elem_id=f"{kind}_width"
        )
        height = gr.Slider(
            64, 2048, side, step=8, label=word("height"), min_width=SIDE_BY_SIDE, elem_id=f"{kind}_height"
        )
        with gr.Column(scale=0, min_width=130):
            swap = gr.Button(word("swap"), size="sm")
            if kind == "img2img":
                measure = gr.Button(word("source_size"), size="sm", elem_id="img2img_source_size")
    swap.click(lambda w, h: (h, w), [width, height], [width, height], **quiet)
    if kind == "img2img":
        names = (INPUT, SOURCE, EDITED, UPLOADED)
        measure.click(_source_size, [fields[name] for name in names], [width, height], **quiet)
    fields["width"], fields["height"] = width, height
    with gr.Row():
        fields["n_iter"] = gr.Slider(
            1,
            100,
            1,
            step=1,
            label=word("batch_count"),
            min_width=SIDE_BY_SIDE,
            elem_id=f"{kind}_batch_count",
        )
        fields["batch_size"] = gr.Slider(
            1, 8, 1, step=1, label=word("batch_size"), min_width=SIDE_BY_SIDE, elem_id=f"{kind}_batch_size"
        )
    fields["cfg_scale"] = gr.Slider(1, 30, 7, step=0.5, label=word("cfg_scale"), elem_id=f"{kind}_cfg_scale")
    if kind == "img2img":
        fields["denoising_strength"] = gr.Slider(
            0, 1, 0.75, step=0.01, label=word("denoising"), min_width=SIDE_BY_SIDE
        )


def _source_size(
    opened: str, source: Image.Image | None, edited: Mapping[str, Any] | None, uploaded: Image.Image | None
) -> tuple[Any, Any]:
    """The sides of the picture that is open, as multiples of 8."""
    picture, _ = _pictures_of(source, edited, uploaded, None)[opened]
    if picture is None:
        return gr.skip(), gr.skip()
    return round(picture.width / 8) * 8, round(picture.height / 8) * 8


def _inpainting(fields: dict[str, Component]) -> None:
    with gr.Accordion(word("inpaint"), open=False):
        fields["mask_blur"] = gr.Slider(0, 64, 4, step=1, label=word("mask_blur"))
        with gr.Row():
            fields["inpainting_mask_invert"] = gr.Radio(
                [(word("masked"), 0), (word("not_masked"), 1)], value=0, label=word("mask_mode")
            )
            fields["inpainting_fill"] = gr.Radio(
                [
                    (word("fill"), 0),
                    (word("original"), 1),
                    (word("latent_noise"), 2),
                    (word("latent_nothing"), 3),
                ],
                value=1,
                label=word("masked_content"),
            )
        with gr.Row():
            fields["inpaint_full_res"] = gr.Radio(
                [(word("whole_picture"), False), (word("only_masked"), True)],
                value=False,
                label=word("inpaint_area"),
            )
            fields["inpaint_full_res_padding"] = gr.Slider(0, 256, 32, step=4, label=word("padding"))
        soft_inpainting_fields(fields)


def _seeds(fields: dict[str, Component], kind: Kind) -> gr.Button:
    with gr.Row():
        seed = gr.Number(-1, label=word("seed"), precision=0, elem_id=f"{kind}_seed")
        random = gr.Button(word("random_seed"), size="sm", scale=0, min_width=90)
        reuse = gr.Button(word("reuse_seed"), size="sm", scale=0, min_width=90)
    random.click(lambda: -1, None, seed, api_visibility="private", show_progress="hidden")
    fields["seed"] = seed
    with gr.Accordion(word("variation"), open=False), gr.Row():
        fields["subseed"] = gr.Number(-1, label=word("subseed"), precision=0)
        fields["subseed_strength"] = gr.Slider(
            0, 1, 0, step=0.01, label=word("subseed_strength"), min_width=SIDE_BY_SIDE
        )
    return reuse


def _refiner(fields: dict[str, Component], page: Page) -> Fresh:
    def checkpoints() -> list[str]:
        return ["None", *page.checkpoints()]

    with gr.Accordion(word("refiner"), open=False), gr.Row():
        refiner = gr.Dropdown(checkpoints(), value="None", label=word("checkpoint"))
        fields["refiner_checkpoint"] = refiner
        fields["refiner_switch_at"] = gr.Slider(
            0.01, 1, 0.8, step=0.01, label=word("switch_at"), min_width=SIDE_BY_SIDE
        )
    return Fresh(refiner, checkpoints)
