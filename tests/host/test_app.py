"""The standalone app as a whole: who is let in, what hangs on it, how it begins and ends."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sd_cloud.host.app import build
from sd_cloud.host.options import OptionsUnreadable
from sd_cloud.settings import settings_below
from tests.dialects.sdapi_world import PaintEngineWithNames, native

SMALL = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 1}


async def test_it_is_ready_and_alive_once_it_has_begun(tmp_path: Path) -> None:
    async with native(tmp_path) as world:
        assert (await world.client.get("/healthz")).status_code == 200
        assert (await world.client.get("/readyz")).json() == {"status": "ready"}
        assert (await world.client.get("/internal/ping")).json() == {}
        assert (await world.client.get("/internal/sysinfo")).json()["Checkpoints"] == [
            "first.safetensors",
            "second.safetensors",
        ]


async def test_a_full_disk_under_the_database_is_told_and_the_next_request_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with native(tmp_path) as world:
        database = world.service.store.database
        pages = 1  # no more than there are: the same to SQLite as a full disk

        @event.listens_for(database.engine, "checkout")
        def _(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        long = {**SMALL, "prompt": "a cat, " * 10_000}
        answer = await world.client.post("/sdapi/v1/txt2img", json=long)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"] == "store_unavailable"
        assert str(world.settings.state_dir) in answer.json()["detail"] and "full" in answer.json()["detail"]
        with monkeypatch.context() as patch:
            patch.setattr(database, "_written", lambda work: raised())
            ready = await world.client.get("/readyz")
            assert ready.status_code == 503 and "database" in ready.json()["reason"]
        pages = 1_000_000
        assert (await world.client.get("/readyz")).status_code == 200
        assert (await world.client.post("/sdapi/v1/txt2img", json=long)).status_code == 200


def raised() -> None:
    raise OperationalError("", {}, OSError("database or disk is full"))


async def test_a_caller_without_a_token_reaches_no_native_route(tmp_path: Path) -> None:
    async with native(tmp_path, tokens=("secret",)) as world:
        for path in ("/sdapi/v1/sd-models", "/controlnet/version", "/openapi.json", "/docs"):
            assert (await world.client.get(path)).status_code == 401, path
        assert (await world.client.get("/healthz")).status_code == 200
        answer = await world.client.post("/sdapi/v1/txt2img", json=SMALL, headers={"Authorization": "secret"})
        assert answer.status_code == 200


async def test_a_page_of_a_listed_origin_may_ask_from_a_browser(tmp_path: Path) -> None:
    origin = "https://page.example"
    async with native(tmp_path, cors_allow_origins=(origin,), tokens=("secret",)) as world:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = await world.client.options("/sdapi/v1/txt2img", headers=asked)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
        other = {**asked, "Origin": "https://other.example"}
        answer = await world.client.options("/sdapi/v1/txt2img", headers=other)
        assert "access-control-allow-origin" not in answer.headers


async def test_a_request_with_eas_keys_takes_the_checks_and_defaults_of_the_native_route(
    tmp_path: Path,
) -> None:
    async with native(tmp_path) as world:
        body = {**SMALL, "sampler_name": "k_euler_a", "alwayson_scripts": {"id_task": "7"}}
        answer = await world.post("txt2img", body)
        assert answer.status_code == 200 and answer.json()["parameters"]["id_task"] == "7"
        assert world.job.payload["sampler_name"] == "Euler a" and world.job.payload["cfg_scale"] == 7.0
        answer = await world.post("txt2img", {**body, "sampler_name": "Eular"})
        assert answer.status_code == 404 and "Sampler not found" in answer.json()["parameters"]["error_msg"]


async def test_save_images_puts_them_into_the_options_folders(tmp_path: Path) -> None:
    async with native(tmp_path) as world:
        await world.post("txt2img", {**SMALL, "save_images": True})
        [saved] = (tmp_path / "outputs" / "txt2img-images").rglob("*.png")
        assert saved.stat().st_size > 0
        await world.post("txt2img", SMALL)
        assert len(list((tmp_path / "outputs").rglob("*.png"))) == 1


async def test_an_unreadable_config_stops_the_start_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(OptionsUnreadable, match=r"config\.json"):
        build(settings_below(tmp_path, nowebui=True), engine=PaintEngineWithNames())


async def test_it_serves_below_a_subpath(tmp_path: Path) -> None:
    settings = replace(settings_below(tmp_path), subpath="/sd", nowebui=True)
    app = build(settings, engine=PaintEngineWithNames())
    transport = httpx.ASGITransport(app, root_path="/sd")
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        assert (await client.get("/sd/sdapi/v1/sd-models")).status_code == 200
