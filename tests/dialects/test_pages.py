from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud import pages
from sd_cloud.access import Access, Caller
from sd_cloud.app import attach
from sd_cloud.inputs import Inputs
from sd_cloud.job import Job, Target
from sd_cloud.outputs import Outputs
from sd_cloud.service import Service
from sd_cloud.settings import settings_below
from sd_cloud.store.memory import MemoryStore
from tests.dialects.test_eas import native_app
from tests.fakes import PaintEngine

ADMIN, BOB, EVE = Caller("local", admin=True), Caller("bob"), Caller("eve")


class Site:
    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def ask(
        self, method: str, path: str, caller: Caller | None = ADMIN, **options: Any
    ) -> httpx.Response:
        async def known(scope: Any, receive: Any, send: Any) -> None:
            if caller is not None:
                scope["sd_cloud.caller"] = caller
            await self.app(scope, receive, send)

        transport = httpx.ASGITransport(app=known)
        async with httpx.AsyncClient(transport=transport, base_url="http://elsewhere") as client:
            return await client.request(method, path, **options)


@asynccontextmanager
async def site_of(tmp_path: Path, **changes: Any) -> AsyncIterator[Site]:
    settings = settings_below(tmp_path, **changes)
    service = Service(PaintEngine(), store=MemoryStore(), inputs=Inputs(settings), outputs=Outputs(settings))
    app = native_app()
    attach(app, service, settings, access=Access(settings))
    yield Site(app, service)
    await service.stop()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path, filebrowser=True) as made:
        yield made


def job(owner: str, **payload: Any) -> Job:
    return Job("txt2img", {"prompt": f"{owner}'s", "seed": 1, **payload}, owner=owner, target=Target("eas"))


async def test_a_caller_sees_their_own_tasks_and_an_admin_all(site: Site) -> None:
    for owner in ("bob", "eve"):
        await site.service.run(job(owner))
    seen = {}
    for caller in (ADMIN, BOB, EVE):
        told = (await site.ask("GET", "/sd-cloud/v1/tasks", caller)).json()
        seen[caller.owner] = [task["prompt"] for task in told["tasks"]]
    assert seen == {"local": ["eve's", "bob's"], "bob": ["bob's"], "eve": ["eve's"]}


async def test_a_finished_task_has_pictures_at_addresses_relative_to_the_pages(site: Site) -> None:
    await site.service.run(job("bob", n_iter=2, save_images=True))
    [task] = (await site.ask("GET", "/sd-cloud/v1/tasks", BOB)).json()["tasks"]
    assert task["state"] == "succeeded" and [p["role"] for p in task["pictures"]] == [
        "grid",
        "image",
        "image",
    ]
    for picture in task["pictures"]:
        assert picture["file"].startswith("v1/files/")
        answer = await site.ask("GET", f"/sd-cloud/{picture['file']}", None)
        assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")


async def test_a_failed_task_says_why(site: Site) -> None:
    with pytest.raises(Exception, match="fail"):
        await site.service.run(job("bob", prompt="fail"))
    [task] = (await site.ask("GET", "/sd-cloud/v1/tasks", BOB)).json()["tasks"]
    assert task["state"] == "failed" and task["error"] and task["pictures"] == []


async def test_only_the_owner_cancels_a_task(site: Site) -> None:
    task_id = await site.service.submit(job("bob", steps=200, step_seconds=0.05))
    while site.service.running is None:
        await asyncio.sleep(0.01)
    path = f"/sd-cloud/v1/tasks/{task_id}/cancel"
    assert (await site.ask("POST", path, EVE)).status_code == 404
    assert (await site.ask("POST", path, BOB)).json() == {"cancelled": True}


@pytest.mark.parametrize("query", ["limit=0x1", "limit=-1", "limit=201", "offset=one", "limit=" + "9" * 30])
async def test_odd_numbers_are_refused(site: Site, query: str) -> None:
    assert (await site.ask("GET", f"/sd-cloud/v1/tasks?{query}")).status_code == 422


async def test_every_page_is_served_with_a_policy_and_without_absolute_addresses(site: Site) -> None:
    for file in pages.WEB.iterdir():
        answer = await site.ask("GET", f"{pages.ROUTE}/{file.name}")
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        text = file.read_text()
        assert 'src="/' not in text and 'href="/' not in text and '"/sd-cloud' not in text, file.name


@pytest.mark.parametrize("name", ["..%2finstall.py", "nope.html", "%2e%2e%2fpreload.py", "style.css%00"])
async def test_nothing_but_a_page_is_served_as_one(site: Site, name: str) -> None:
    assert (await site.ask("GET", f"{pages.ROUTE}/{name}")).status_code == 404


async def test_a_browser_without_credentials_is_asked_for_them(tmp_path: Path) -> None:
    async with site_of(tmp_path, tokens=("secret",), filebrowser=True) as site:
        answer = await site.ask("GET", f"{pages.ROUTE}/jobs.html", None)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
        for path in ("/sd-cloud/v1/tasks", "/sd-cloud/v1/browse", "/sd-cloud/v1/browse/file?path=outputs/a"):
            assert (await site.ask("GET", path, None)).status_code == 401


async def test_files_are_put_fetched_renamed_and_removed_over_http(site: Site, tmp_path: Path) -> None:
    file = "/sd-cloud/v1/browse/file?path="
    put = await site.ask("PUT", f"{file}models/Lora/a.safetensors", content=b"tensors")
    assert put.status_code == 201 and put.json()["size_bytes"] == 7
    listed = (await site.ask("GET", "/sd-cloud/v1/browse?path=models/Lora")).json()
    assert [(one["name"], one["size_bytes"]) for one in listed["entries"]] == [("a.safetensors", 7)]
    got = await site.ask("GET", f"{file}models/Lora/a.safetensors")
    assert got.content == b"tensors" and got.headers["content-disposition"].startswith("attachment")
    rename = "/sd-cloud/v1/browse/rename?path=models/Lora/a.safetensors"
    assert (await site.ask("POST", rename, json={"name": 3})).status_code == 422
    assert (await site.ask("POST", rename, json={"name": "b"})).status_code == 200
    assert (await site.ask("DELETE", f"{file}models/Lora/b")).status_code == 200
    assert not list((tmp_path / "models/Lora").iterdir())
    for method in ("GET", "PUT", "DELETE"):
        assert (await site.ask(method, f"{file}models/Lora/a", BOB)).status_code == 403


async def test_a_page_among_the_outputs_is_saved_and_never_shown(site: Site, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/evil.html").write_text("<script>alert(1)</script>")
    answer = await site.ask("GET", "/sd-cloud/v1/browse/file?path=outputs/evil.html")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_without_filebrowser_there_is_no_way_to_files(tmp_path: Path) -> None:
    async with site_of(tmp_path) as site:
        assert (await site.ask("GET", "/sd-cloud/v1/browse")).status_code == 404


def test_tabs_are_named_by_id_or_title_in_any_case() -> None:
    shown = pages.pages_of(settings_below(Path("/nowhere"), filebrowser=True, always_hide_tabs=("FILES",)))
    assert [page.id for page in shown] == ["jobs"]
    assert pages.pages_of(settings_below(Path("/nowhere"))) == (pages.JOBS,)
    assert pages.is_hidden(("png_info",), "PNG Info") and not pages.is_hidden((), "PNG Info")
    assert 'src="sd-cloud/pages/jobs.html"' in pages.frame(pages.JOBS)
