"""Our pages below a path behind nginx: in the standalone service and in a real webui."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import FrameLocator, Page, expect

from tests.browser.proxy import NGINX, NO_NGINX, behind_nginx
from tests.e2e.serving import free_port, golden_data_dir, standalone
from tests.e2e.world import GOLDEN, NO_GOLDEN
from tests.webui.real import NO_WEBUI, WEBUI, data_dir, webui

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason=NO_NGINX),
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=NO_GOLDEN),
]

TOKEN = "only-nginx-knows"
HOSTS = [
    "standalone",
    pytest.param("webui", marks=pytest.mark.skipif(not WEBUI.is_dir(), reason=NO_WEBUI)),
]


@contextmanager
def started(host: str, root: Path, *flags: str) -> Iterator[str]:
    flags = ("--filebrowser", "--token", TOKEN, *flags)
    if host == "webui":
        with webui(data_dir(root), *flags, ui=True) as running:
            yield running.url
    else:
        with standalone(golden_data_dir(root), *flags, with_page=True) as url:
            yield url


@pytest.fixture(scope="module", params=HOSTS)
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address below which people reach the service."""
    root, port = tmp_path_factory.mktemp("data"), free_port()
    flags = ("--subpath", "sd", "--public-url", f"http://127.0.0.1:{port}/sd")
    with (
        started(request.param, root, *flags) as url,
        behind_nginx(url, root / "nginx", port=port, subpath="sd", token=TOKEN) as public,
    ):
        yield public


def tab(page: Page, title: str) -> FrameLocator:
    page.get_by_role("tab", name=title, exact=True).or_(
        page.get_by_role("button", name=title, exact=True)
    ).click()
    return page.frame_locator(f'iframe[title="{title}"]')


def asked(public: str, **scripts: str) -> dict[str, object]:
    body = {
        **{"prompt": "a cat behind a proxy", "width": 64, "height": 64, "steps": 1, "seed": 4},
        "alwayson_scripts": {"save_dir": "proxied", **scripts},
    }
    answer = httpx.post(f"{public}/sdapi/v1/txt2img", json=body, timeout=300, trust_env=False)
    assert answer.status_code == 200, answer.text
    parameters: dict[str, object] = answer.json()["parameters"]
    return parameters


def test_a_job_its_picture_and_its_file_are_seen_below_the_path(public: str, page: Page) -> None:
    failed: list[str] = []
    page.on(
        "response",
        lambda r: failed.append(f"{r.status} {r.url}") if "/sd-cloud/" in r.url and not r.ok else None,
    )
    asked(public, id_task="proxied-1")
    page.goto(f"{public}/")
    jobs = tab(page, "Jobs")
    job = jobs.locator("article.job", has_text="id_task=proxied-1")
    expect(job.locator(".state")).to_have_text("done")
    picture = job.locator("img").first
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") == 64
    files = tab(page, "Files")
    for folder in ("outputs", "proxied"):
        files.locator("#entries").get_by_text(folder).click()
    expect(files.locator("#entries").get_by_text("txt2img-images")).to_be_visible()
    assert failed == []


def test_a_link_leads_through_the_proxy(public: str) -> None:
    [link] = asked(public)["image_links"]  # type: ignore[misc]
    assert link.startswith(f"{public}/sd-cloud/v1/files/")
    answer = httpx.get(link, trust_env=False)
    assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")
