"""What becomes of a picture: read, sent to another tab, made larger."""

from __future__ import annotations

import io

from PIL import PngImagePlugin
from playwright.sync_api import expect

from tests.browser.webui import WebUI
from tests.e2e.world import png_of


def test_a_dropped_picture_tells_how_it_was_made_and_fills_in_the_form(webui: WebUI) -> None:
    webui.write("a yellow star", **{"Sampling steps": 9})
    made = webui.generate()
    held = io.BytesIO()
    info = made.info["parameters"]
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", info)
    made.save(held, "PNG", pnginfo=texts)
    webui.opened().go("PNG Info", "png_info")
    webui.drop("pnginfo_image", held.getvalue())
    expect(webui.page.locator("#pnginfo_info textarea")).to_have_value(info)
    webui.press("Send to txt2img")
    webui.kind = "txt2img"
    expect(webui.field("Prompt")).to_have_value("a yellow star")
    expect(webui.field("Sampling steps")).to_have_value("9")
    expect(webui.field("Seed (-1: random)")).to_have_value("3")


def test_a_picture_that_nothing_made_says_so(webui: WebUI) -> None:
    panel = webui.go("PNG Info", "png_info")
    webui.upload("pnginfo_image", png_of())
    expect(panel).to_contain_text("the picture tells no generation parameters")
    webui.press("Send to txt2img")
    expect(webui.told()).to_contain_text("no generation parameters")


def test_a_file_that_is_no_picture_is_told_in_a_sentence(webui: WebUI) -> None:
    webui.go("PNG Info", "png_info")
    webui.upload("pnginfo_image", b"this is no picture")
    expect(webui.told()).to_contain_text("the file is no picture that can be read")


def test_a_picture_goes_from_the_gallery_to_extras_and_is_made_larger(webui: WebUI) -> None:
    webui.write("a rocket")
    webui.generate()
    webui.press("Send to Extras")
    webui.kind = "extras"
    expect(webui.tab.locator("#extras_image img")).to_be_visible()
    webui.choose("Upscaler", "Lanczos")
    webui.press("Generate")
    expect(webui.tab.locator("#extras_told")).to_contain_text("128 × 128")
    assert webui.picture("#extras_result").size == (128, 128)


def test_extras_without_a_picture_says_so(webui: WebUI) -> None:
    webui.go("Extras", "extras")
    webui.press("Generate")
    expect(webui.told()).to_contain_text("there is no picture yet")
