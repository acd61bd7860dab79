"""Pictures made in a browser: txt2img, img2img, inpainting, and what goes wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from tests.browser.webui import WebUI, difference, is_drawn, pixels
from tests.e2e.world import World, png_of


@pytest.fixture
def somebody_else(browser: Browser, world: World) -> Iterator[WebUI]:
    with browser.new_context(locale="en-US") as context:
        yield WebUI(context.new_page(), world.url).opened()


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
    webui.choose("Stable Diffusion checkpoint", re.compile(r"^ink\.safetensors"), top)
    for one in (webui, somebody_else):
        one.write("a house")
    ink, colour = webui.generate(), somebody_else.generate()
    assert "Model: ink" in webui.infotext.input_value()
    assert "Model: emoji" in somebody_else.infotext.input_value()
    assert is_drawn(colour) and difference(ink, colour) > 10
    expect(somebody_else.page.get_by_role("combobox", name="Stable Diffusion checkpoint")).to_have_value(
        re.compile(r"^emoji\.safetensors")
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
    webui.upload("img2img_image", png_of(64, 64))
    expect(panel.locator("#img2img_image img")).to_be_visible()
    webui.write("a red apple", **{"Denoising strength": 0.2})
    close = webui.generate()
    webui.set("Denoising strength", 0.95)
    far = webui.generate()
    source = Image.open(io.BytesIO(png_of(64, 64)))
    assert difference(close, source) < difference(far, source) / 1.5


def test_only_what_was_painted_over_is_drawn_anew(webui: WebUI) -> None:
    webui.write("a red apple")
    before = webui.generate()
    webui.press("Send to Inpaint")
    webui.kind = "img2img"
    editor = webui.tab.locator("#img2img_inpaint")
    expect(webui.field("Prompt")).to_have_value("a red apple")
    expect(editor.locator("canvas").first).to_be_visible()
    expect(editor.get_by_text("Upload an image")).to_be_hidden()
    _paint_the_right_side(editor)
    webui.write("a house", **{"Denoising strength": 1, "Seed (-1: random)": 8})
    after = webui.generate()
    changed = np.abs(pixels(after) - pixels(before)).mean(axis=2)
    assert changed[:, 48:].mean() > 4 * changed[:, :16].mean()
    assert "Mask blur" in webui.infotext.input_value()


def _paint_the_right_side(editor: Locator) -> None:
    """One stroke, a third of the picture wide; again where the editor was not there yet and lost it."""
    shown = _steady(editor)
    for _ in range(10):
        _stroke(editor)
        if difference(_steady(editor), shown) > 5:
            return
    raise AssertionError("the editor takes no stroke")


def _steady(editor: Locator) -> Image.Image:
    """What the editor shows, once it shows a picture and that no longer changes."""
    before: Image.Image | None = None
    for _ in range(200):
        now = Image.open(io.BytesIO(editor.locator("canvas").first.screenshot()))
        if before is not None and now.size == before.size and is_drawn(now) and difference(now, before) < 0.5:
            return now
        before = now
        editor.page.wait_for_timeout(300)
    raise AssertionError("the editor shows no picture")


def _stroke(editor: Locator) -> None:
    """From top to bottom. The picture is in the middle of the canvas."""
    box = editor.locator("canvas").first.bounding_box()
    assert box is not None
    mouse = editor.page.mouse
    x, top = box["x"] + box["width"] / 2 + box["height"] / 4, box["y"]
    mouse.move(x, top + box["height"] * 0.2)
    mouse.down()
    mouse.move(x, top + box["height"] * 0.8, steps=2)
    mouse.up()


def test_a_mask_may_be_uploaded_with_its_picture(webui: WebUI) -> None:
    panel = webui.go("img2img", "img2img")
    panel.get_by_role("tab", name="Inpaint upload").click()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    held = io.BytesIO()
    mask.save(held, "PNG")
    webui.upload("img2img_upload", png_of(64, 64))
    webui.upload("img2img_mask", held.getvalue())
    expect(panel.locator("#img2img_mask img")).to_be_visible()
    webui.write("a red apple", **{"Denoising strength": 1})
    changed = np.abs(pixels(webui.generate()) - pixels(Image.open(io.BytesIO(png_of(64, 64)))))
    assert changed[:, 48:].mean() > 4 * changed[:, :16].mean()


def test_a_script_makes_a_labelled_grid_of_checkpoints_and_steps(webui: WebUI) -> None:
    webui.write("a house", **{"Sampling steps": 2})
    webui.choose("Script", "X/Y/Z plot")
    webui.choose("X type", "Checkpoint name")
    for name in ("emoji", "ink"):
        webui.choose("X values", re.compile(rf"^{name}\.safetensors"))
    webui.choose("Y type", "Steps")
    webui.set("Y values", "1, 3")
    grid = webui.generate()
    assert grid.width > 128 and grid.height > 128  # two pictures each way, and their labels
    assert is_drawn(grid)
    told = webui.infotext.input_value()
    assert "Script: X/Y/Z plot" in told and 'Y Values: "1, 3"' in told


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
    webui.field("Prompt").press("Control+Enter")
    expect(webui.status).to_contain_text("/150")
    expect(webui.tab.locator("#txt2img_preview img")).to_be_visible()
    expect(webui.tab.get_by_role("button", name="Generate", exact=True)).to_be_disabled()
    webui.press("Interrupt")
    expect(webui.status).to_contain_text("interrupted")
    expect(webui.infotext).to_have_value(re.compile("Steps: "))
    assert webui.picture().size == (256, 256)
    expect(webui.tab.get_by_role("button", name="Interrupt", exact=True)).to_be_disabled()


def test_several_pictures_each_tell_their_own_seed(webui: WebUI) -> None:
    webui.write("a red apple", **{"Batch count": 2})
    webui.generate()
    thumbnails = webui.tab.locator("#txt2img_gallery .thumbnails button")
    expect(thumbnails).to_have_count(3)  # the grid comes first
    thumbnails.nth(2).click()
    expect(webui.infotext).to_have_value(re.compile("Seed: 4,"))
    webui.press("Last seed")
    expect(webui.field("Seed (-1: random)")).to_have_value("4")
