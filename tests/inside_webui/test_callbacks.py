from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sd_cloud.inside_webui import callbacks
from sd_cloud.inside_webui.censor import Checking
from sd_cloud.inside_webui.page_tabs import HiddenTabs, hide_tabs, page_is_built


def test_a_callback_that_fails_is_logged_by_name_and_goes_no_further(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Here there is no webui at all, so that every one of them fails."""
    with caplog.at_level(logging.ERROR):
        callbacks.loading()
        callbacks.register(__file__)
        callbacks.app_started(None, None)  # type: ignore[arg-type]
        assert callbacks.tabs() == () and callbacks.censor_scripts() == (None, None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 5
    for name in ("loading", "register", "app_started", "tabs", "censor_scripts"):
        assert any(f"sd-cloud-api: {name} failed; the webui goes on without" in one for one in told)


def test_registering_loads_nothing_heavy() -> None:
    text = (
        "import sys; import sd_cloud.inside_webui; "
        "heavy = {'sqlalchemy', 'fastapi', 'PIL', 'oss2', 'httpx'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_hidden_tabs_are_hidden_while_the_page_is_built_and_the_option_stays() -> None:
    opts = SimpleNamespace(data={"hidden_tabs": ["Extras"]})
    hide_tabs(opts, ("train", "png info"))
    assert all(title in opts.data["hidden_tabs"] for title in ("Extras", "Train", "PNG Info"))
    assert "txt2img" not in opts.data["hidden_tabs"] and list(opts.data["hidden_tabs"]) == ["Extras"]
    page_is_built(opts)
    assert opts.data == {"hidden_tabs": ["Extras"]} and not isinstance(opts.data["hidden_tabs"], HiddenTabs)


def test_an_option_that_was_never_saved_is_not_saved_by_hiding() -> None:
    opts = SimpleNamespace(data={})
    hide_tabs(opts, ("train",))
    page_is_built(opts)
    assert opts.data == {}


def test_a_picture_is_checked_once_and_its_metadata_stays() -> None:
    asked = []

    def clean(image: Image.Image) -> Image.Image:
        asked.append(image)
        return image.transpose(Image.Transpose.ROTATE_90)

    checking = Checking(lambda: clean)
    image = Image.new("RGB", (8, 4))
    image.info["parameters"] = "a cat"
    checked, was_censored = checking(image)
    assert was_censored and checked.size == (4, 8) and checked.info == {"parameters": "a cat"}
    assert checking(checked) == (checked, False) and len(asked) == 1


def test_a_picture_that_cannot_be_checked_does_not_leave() -> None:
    def broken(image: Image.Image) -> Image.Image:
        raise RuntimeError("no detector")

    image = Image.new("RGB", (8, 4), (200, 10, 10))
    checked, was_censored = Checking(lambda: broken)(image)
    assert was_censored and checked.size == (8, 4) and checked.getextrema() == ((0, 0),) * 3
