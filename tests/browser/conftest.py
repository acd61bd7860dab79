"""A real browser in front of a really started service on the demo checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.webui import WebUI
from tests.e2e.serving import standalone
from tests.e2e.world import World

MODELS = Path(__file__).parents[2] / "demo" / "models"
CHROMIUM = shutil.which("chromium")
#: Nothing of Chromium's own goes out, and it runs as root in a container.
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
#: Of what is waited for, on a machine that is busy with something else.
WAIT_MILLISECONDS = 90_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.engine)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip("there is no chromium (Debian's package chromium)"))


# For this folder only, not the session: while Playwright is open no asyncio test can run.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MILLISECONDS)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("browser")
    folders = ("--ckpt-dir", str(MODELS / "Stable-diffusion"), "--lora-dir", str(MODELS / "Lora"))
    state = ("--state-dir", str(data_dir / "state"))
    with standalone(data_dir, *folders, *state, "--filebrowser", with_page=True) as url:
        yield World(url, data_dir, links="", default_checkpoint="emoji")


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One person's browser, which keeps the page's scripts. Another context is another person's."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
    context.set_default_timeout(WAIT_MILLISECONDS)
    with context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    with context.new_page() as page:
        yield page


@pytest.fixture
def webui(page: Page, world: World) -> WebUI:
    return WebUI(page, world.url).opened()
