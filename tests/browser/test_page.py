"""The page itself: settings, languages, themes, a phone, who is let in, an empty data dir."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.webui import WebUI
from tests.e2e.serving import standalone
from tests.e2e.world import World

TABS = {"txt2img": "txt2img", "img2img": "img2img", "Extras": "extras", "PNG Info": "png_info"}
PAGES = {"Jobs": "jobs", "Files": "files", "Settings": "settings"}


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service that asks for a token, hides tabs and has no checkpoint."""
    data_dir = tmp_path_factory.mktemp("guarded")
    state = ("--state-dir", str(data_dir / "state"))
    flags = (*state, "--token", "secret", "--always-hide-tabs", "Extras", "PNG Info", "settings")
    with standalone(data_dir, *flags, with_page=True, until="/healthz") as url:
        yield World(url, data_dir, links="")


def test_a_setting_is_kept_and_is_what_the_api_says(webui: WebUI, world: World) -> None:
    panel = webui.go("Settings", "settings")
    webui.set("Quality of JPEG and WebP (1 to 100)", 91)
    webui.press("Apply settings")
    expect(panel.locator("#settings_result")).to_have_text("✔ jpeg_quality")
    assert world.get("/sdapi/v1/options").json()["jpeg_quality"] == 91
    webui.press("Apply settings")
    expect(panel.locator("#settings_result")).to_have_text("Nothing to change")
    webui.set("Quality of JPEG and WebP (1 to 100)", 500)
    webui.press("Apply settings")
    expect(webui.told()).to_contain_text("jpeg_quality: expected 1 to 100")
    assert world.post("/sdapi/v1/options", {"jpeg_quality": 77}).status_code == 200
    webui.opened().go("Settings", "settings")
    expect(webui.field("Quality of JPEG and WebP (1 to 100)")).to_have_value("77")


def test_a_chinese_browser_has_a_chinese_page(browser: Browser, world: World) -> None:
    with browser.new_context(locale="zh-CN") as context:
        page = context.new_page()
        page.goto(world.url)
        tabs = page.get_by_role("tablist").first.get_by_role("tab")
        expect(tabs).to_have_text(["文生图", "图生图", "后期处理", "图片信息", "任务", "文件", "设置"])
        expect(page.get_by_role("button", name="生成", exact=True).first).to_be_visible()
        expect(page.get_by_role("textbox", name="提示词", exact=True)).to_be_visible()
        page.get_by_role("tab", name="后期处理").click()
        page.locator("#extras_generate").click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("还没有图片")
        page.get_by_role("tab", name="任务").click()
        expect(page.frame_locator("iframe").locator("#title")).to_have_text("任务")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_its_screen_in_both_themes(
    browser: Browser, world: World, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 844}
    with browser.new_context(viewport=size, color_scheme=scheme, locale="en-US") as context:
        page = context.new_page()
        page.goto(world.url)
        expect(page.get_by_role("tab", name="txt2img")).to_be_visible()
        assert luminance(page) > 200 if scheme == "light" else luminance(page) < 50
        for title, panel in (TABS | PAGES).items():
            _go(page, title)
            expect(page.locator(f"#tab_{panel}")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, title
        frame = page.locator("#tab_jobs iframe").content_frame
        dark = frame.locator("html.dark")
        expect(dark).to_have_count(int(scheme == "dark"))


def luminance(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(float(one) for one in colour.strip("rgba()").split(",")[:3]) / 3


def _go(page: Page, title: str) -> None:
    """On a phone most tabs are behind the button with three dots."""
    tab = page.get_by_role("tab", name=title, exact=True)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").first.click()
        tab = page.locator(".overflow-dropdown").get_by_text(title, exact=True)
    tab.click()


def test_nothing_is_asked_of_anybody_else(page: Page, world: World) -> None:
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    WebUI(page, world.url).opened().frame("Jobs").locator("#title").wait_for()
    elsewhere = [one for one in addresses if not one.startswith((world.url, "data:", "blob:"))]
    assert addresses and not elsewhere


def test_behind_a_token_the_page_asks_for_it_and_then_serves_its_tabs(
    browser: Browser, guarded: World
) -> None:
    with browser.new_context() as stranger:
        assert stranger.request.get(guarded.url).status == 401
    password = {"username": "anybody", "password": "secret"}
    with browser.new_context(locale="en-US", http_credentials=password) as context:
        webui = WebUI(context.new_page(), guarded.url).opened()
        tabs = webui.page.get_by_role("tablist").first.get_by_role("tab")
        expect(tabs).to_have_text(["txt2img", "img2img", "Jobs"])
        expect(webui.page.locator("#no_checkpoint")).to_contain_text("There is no checkpoint yet.")
        webui.write("a red apple")
        webui.press("Generate")
        expect(webui.told()).to_contain_text("no checkpoint is installed")
        expect(webui.frame("Jobs").locator("#jobs")).to_contain_text("No jobs yet.")
