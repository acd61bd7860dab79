"""The Files page of ``--filebrowser``: pictures and models of the data dir, in a tab of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, expect

from tests.browser.webui import WebUI
from tests.e2e.world import World, png_of


@pytest.fixture
def files(webui: WebUI, world: World) -> FrameLocator:
    """The page at the LoRA folder, with one file in it."""
    (world.data_dir / "models" / "Lora" / "old.safetensors").write_bytes(b"tensors" * 300)
    frame = webui.frame("Files")
    for name in ("models/", "Lora/"):
        frame.get_by_role("link", name=name, exact=True).click()
    expect(frame.locator("#where")).to_contain_text("Lora")
    return frame


def answered(webui: WebUI, answer: str) -> None:
    """What the next question of the page is answered."""
    webui.page.once("dialog", lambda dialog: dialog.accept(answer))


def test_a_file_is_listed_downloaded_renamed_and_deleted(
    webui: WebUI, world: World, files: FrameLocator
) -> None:
    row = files.locator("tr").filter(has_text="old.safetensors")
    expect(row).to_contain_text("2.1 KiB")
    with webui.page.expect_download() as download:
        row.get_by_role("link").click()
    assert Path(download.value.path()).read_bytes() == b"tensors" * 300
    folder = world.data_dir / "models" / "Lora"
    answered(webui, "new.safetensors")
    row.get_by_role("button", name="Rename").click()
    expect(files.get_by_role("link", name="new.safetensors")).to_be_visible()
    assert [one.name for one in folder.iterdir()] == ["new.safetensors"]
    answered(webui, "")
    files.locator("tr").filter(has_text="new.safetensors").get_by_role("button", name="Delete").click()
    expect(files.locator("#entries")).to_have_text("Nothing here yet.")
    assert not list(folder.iterdir())


def test_a_file_is_uploaded_into_a_new_folder_and_never_over_another(
    webui: WebUI, world: World, files: FrameLocator
) -> None:
    answered(webui, "styles")
    files.get_by_role("button", name="New folder").click()
    files.get_by_role("link", name="styles/").click()
    expect(files.locator("#entries")).to_have_text("Nothing here yet.")
    upload = {"name": "tone.safetensors", "mimeType": "application/octet-stream", "buffer": b"new"}
    files.locator("#upload").set_input_files([upload])
    expect(files.get_by_role("link", name="tone.safetensors")).to_be_visible()
    assert (world.data_dir / "models/Lora/styles/tone.safetensors").read_bytes() == b"new"
    files.locator("#upload").set_input_files([{**upload, "buffer": b"other"}])
    expect(files.locator("#problem")).to_contain_text("is there already")
    assert (world.data_dir / "models/Lora/styles/tone.safetensors").read_bytes() == b"new"


def test_a_picture_is_shown_and_outside_the_folders_there_is_nothing(webui: WebUI, world: World) -> None:
    picture = world.outputs / "extras-images" / "shown.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png_of())
    frame = webui.frame("Files")
    frame.get_by_role("link", name="outputs/", exact=True).click()
    frame.get_by_role("link", name="extras-images/").click()
    frame.get_by_role("link", name="shown.png").click()
    assert webui.fetched(frame.locator("#picture")).size == (96, 96)
    frame.get_by_role("button", name="Close").click()
    expect(frame.locator("#picture")).to_be_hidden()
    webui.page.goto(f"{world.url}/sd-cloud/pages/files.html#outputs/../../")
    expect(webui.page.locator("#problem")).to_have_text(re.compile("outside|no folder"))


def test_open_folder_shows_where_the_pictures_are(webui: WebUI) -> None:
    webui.write("a red apple")
    webui.generate()
    caption = webui.tab.locator("#txt2img_gallery .caption").first
    expect(caption).to_have_text(re.compile(r"\.png$"))
    with webui.page.expect_popup() as opened:
        webui.tab.get_by_role("link", name="Open folder").click()
    expect(opened.value.get_by_role("link", name=caption.inner_text().strip())).to_be_visible()
