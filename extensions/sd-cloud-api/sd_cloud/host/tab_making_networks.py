"""What a prompt can call by name, and one ControlNet unit, in the txt2img and img2img tabs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from sd_cloud.engines.diffusion.controlnet.units import CONTROL_MODES, RESIZE_MODES
from sd_cloud.engines.diffusion.preprocess.table import module_list
from sd_cloud.host.i18n import word
from sd_cloud.host.page import SIDE_BY_SIDE, Fresh, Page, as_base64
from sd_cloud.host.picture_field import picture_field
from sd_cloud.job import Kind

#: Form fields of the unit begin with this; what follows is the unit's own field.
UNIT = "controlnet."


def prompt_pickers(page: Page, kind: Kind, prompt: Component) -> list[Fresh]:
    """Two lists that put a LoRA or an embedding into the prompt."""

    def loras() -> list[str]:
        return [one.name for one in page.service.catalogue().loras]

    def embeddings() -> list[str]:
        return [one.name for one in page.service.catalogue().embeddings]

    with gr.Accordion(word("networks"), open=False), gr.Row():
        lora = gr.Dropdown(loras(), value=None, label="LoRA", elem_id=f"{kind}_lora")
        embedding = gr.Dropdown(embeddings(), value=None, label="Embedding", elem_id=f"{kind}_embedding")
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    lora.input(
        lambda text, name: (_joined(text, f"<lora:{name}:1>"), None), [prompt, lora], [prompt, lora], **quiet
    )
    embedding.input(
        lambda text, name: (_joined(text, name), None), [prompt, embedding], [prompt, embedding], **quiet
    )
    return [Fresh(lora, loras), Fresh(embedding, embeddings)]


def _joined(text: str, added: str) -> str:
    return f"{text}, {added}" if text.strip() else added


def controlnet_fields(fields: dict[str, Component], page: Page, kind: Kind) -> Fresh:
    """One unit's fields, added to the form's."""

    def models() -> list[str]:
        return ["None", *(one.name for one in page.service.catalogue().controlnets)]

    with gr.Accordion("ControlNet", open=False):
        fields[f"{UNIT}enabled"] = gr.Checkbox(False, label=word("enable"), elem_id=f"{kind}_controlnet")
        with gr.Row():
            fields[f"{UNIT}image"] = picture_field(
                label=word("picture"), type="pil", image_mode="RGB", height=240
            )
            with gr.Column():
                modules = module_list()["module_list"]
                fields[f"{UNIT}module"] = gr.Dropdown(modules, value="none", label=word("preprocessor"))
                model = gr.Dropdown(models(), value="None", label=word("model"))
                fields[f"{UNIT}model"] = model
                fields[f"{UNIT}pixel_perfect"] = gr.Checkbox(True, label=word("pixel_perfect"))
        with gr.Row():
            fields[f"{UNIT}weight"] = gr.Slider(
                0, 2, 1, step=0.05, label=word("control_weight"), min_width=SIDE_BY_SIDE
            )
            fields[f"{UNIT}guidance_start"] = gr.Slider(
                0, 1, 0, step=0.01, label=word("control_start"), min_width=SIDE_BY_SIDE
            )
            fields[f"{UNIT}guidance_end"] = gr.Slider(
                0, 1, 1, step=0.01, label=word("control_end"), min_width=SIDE_BY_SIDE
            )
        with gr.Row():
            fields[f"{UNIT}control_mode"] = gr.Radio(
                CONTROL_MODES, value=CONTROL_MODES[0], label=word("control_mode")
            )
            fields[f"{UNIT}resize_mode"] = gr.Radio(
                RESIZE_MODES, value=RESIZE_MODES[1], label=word("resize_mode")
            )
    return Fresh(model, models)


def with_unit(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the form's unit, if it is enabled, where the ControlNet extension takes it."""
    unit = {name[len(UNIT) :]: value for name, value in body.items() if name.startswith(UNIT)}
    rest = {name: value for name, value in body.items() if not name.startswith(UNIT)}
    if not unit.pop("enabled", False):
        return rest
    if unit["image"] is None:
        del unit["image"]  # img2img's own picture is the unit's
    else:
        unit["image"] = as_base64(unit["image"])
    return {**rest, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
