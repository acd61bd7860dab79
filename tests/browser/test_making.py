"""Pictures made in a browser: txt2img, img2img, inpainting, and what goes wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.browser.webui import WebUI, is_drawn, pixels
from tests.e2e.world import World, png_of

SOURCE = {"name": "square.png", "mimeType": "image/png", "buffer": png_of(64, 64)}


@pytest.fixture
def somebody_else(browser: Browser, world: World) -> Iterator[WebUI]:
    with browser.new_context(locale="en-US") as context:
        yield WebUI(context.new_page(), world.url).opened()


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


def test_a_prompt_becomes_a_picture_that_says_how_it_was_made(webui: WebUI, world: World) -> None:
    webui.write("a red apple")
    image = webui.generate()
    assert image.size == (64, 64) and is_drawn(image)
    told = webui.infotext.input_value()
    assert told.startswith("a red apple\nSteps: 20, Sampler: ") and "Seed: 3, Size: 64x64" in told
    assert image.info["parameters"] == told
    saved = [pixels(Image.open(one)) for one in world.outputs.rglob("*-3.png")]
    assert any(np.array_equal(one, pixels(image)) for one in saved)


def test_another_checkpoint_is_the_choice_of_one_browser_only(webui: WebUI, somebody_else: WebUI) -> None:
    top = webui.page.locator("body")
    webui.choose("Stable Diffusion checkpoint", "ink.safetensors", top)
    for one in (webui, somebody_else):
        one.write("a house")
    ink, colour = webui.generate(), somebody_else.generate()
    assert "Model: ink" in webui.infotext.input_value()
    assert "Model: emoji" in somebody_else.infotext.input_value()
    assert is_drawn(colour) and difference(ink, colour) > 10
    expect(somebody_else.page.get_by_role("combobox", name="Stable Diffusion checkpoint")).to_have_value(
        "emoji.safetensors"
    )


def test_a_lora_chosen_from_the_list_changes_the_picture(webui: WebUI) -> None:
    webui.write("a house")
    plain = webui.generate()
    webui.open("LoRA and embeddings")
    webui.choose("LoRA", "cyanotype")
    expect(webui.field("Prompt")).to_have_value("a house, <lora:cyanotype:1>")
    assert difference(webui.generate(), plain) > 10
    assert "Lora hashes" in webui.infotext.input_value()


def test_an_uploaded_picture_is_drawn_over(webui: WebUI) -> None:
    panel = webui.go("img2img", "img2img")
    webui.upload(panel.locator("#img2img_image"), SOURCE)
    expect(panel.locator("#img2img_image img")).to_be_visible()
    webui.write("a red apple", **{"Denoising strength": 0.2})
    close = webui.generate()
    webui.set("Denoising strength", 0.95)
    far = webui.generate()
    source = Image.open(io.BytesIO(png_of(64, 64)))
    assert difference(close, source) < difference(far, source) / 1.5


def test_a_value_that_cannot_be_is_told_in_a_sentence_and_the_page_goes_on(webui: WebUI) -> None:
    webui.write("a red apple", **{"Seed (-1: random)": -7})
    webui.press("Generate")
    expect(webui.told()).to_contain_text("seed: expected -1 to")
    webui.set("Seed (-1: random)", 3)
    assert is_drawn(webui.generate())


def test_img2img_without_a_picture_says_so(webui: WebUI) -> None:
    webui.go("img2img", "img2img")
    webui.write("a red apple")
    webui.press("Generate")
    expect(webui.told()).to_contain_text("Init image not found")


def test_interrupt_stops_a_long_job_and_keeps_what_is_there(webui: WebUI) -> None:
    webui.write("a red apple", Width=256, Height=256, **{"Sampling steps": 150})
    webui.press("Generate")
    expect(webui.tab.locator("#txt2img_status")).to_contain_text("/150")
    webui.press("Interrupt")
    expect(webui.infotext).to_have_value(re.compile("Steps: "))
    assert webui.picture().size == (256, 256)
