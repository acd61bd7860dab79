"""The caller's tasks one by one and as events, over a socket: what a browser or a script meets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from sd_cloud.access import Caller
from sd_cloud.dialects import following
from sd_cloud.dialects.replay import call_job
from sd_cloud.job import Job
from tests.dialects.test_pages import BOB, EVE, Site, job, site_of

TASKS = "/sd-cloud/v1/tasks"
ENDLESS: dict[str, Any] = {"steps": 100_000, "step_seconds": 0.01}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path) as made:
        yield made


@asynccontextmanager
async def client_of(site: Site, caller: Caller = BOB) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the site on a port of its own: only a socket can be hung up on."""

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["sd_cloud.caller"] = caller
        await site.app(scope, receive, send)

    app: ASGIApp = known
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Each event's ``id``, ``event`` and parsed ``data``, read as the standard says."""
    event: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        line = line.rstrip("\r\n")
        if line.startswith(":"):
            yield {"event": "comment"}
        elif line:
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")
        elif "data" in event:
            yield {**event, "data": json.loads(event["data"])}
            event = {}


async def test_events_tell_every_state_with_steps_and_preview_and_end_with_the_task(site: Site) -> None:
    async with client_of(site) as client:
        task_id = await site.service.submit(job("bob", **ENDLESS))
        told: list[dict[str, Any]] = []
        async with client.stream("GET", f"{TASKS}/{task_id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            async for one in events(answer):
                told.append(one)
                if sum((one["data"].get("step") or 0) > 0 for one in told) == 3:
                    await site.service.interrupt(task_id)
        assert {one["event"] for one in told[:-1]} == {"progress"}
        end = told[-1]
        assert end["event"] == "end" and end["data"]["state"] == "succeeded"
        assert end["data"]["pictures"][0]["link"]
        running = [one["data"] for one in told if one["data"]["state"] == "running"]
        steps = [one["step"] for one in running]
        assert len(steps) >= 3 and steps == sorted(steps) and running[-1]["steps"] == ENDLESS["steps"]
        assert running[-1]["seconds_left"] is not None
        assert any(one.get("preview", "").startswith("data:image/jpeg;base64,") for one in running)
        assert len({one["id"] for one in told}) == len(told)


async def test_an_event_source_that_comes_back_gets_the_state_now_and_gives_up_after_the_end(
    site: Site,
) -> None:
    async with client_of(site) as client:
        task_id = await site.service.submit(job("bob"))
        await site.service.result(task_id)
        path = f"{TASKS}/{task_id}/events"
        again = await client.get(path, headers={"Last-Event-ID": "3"})
        [end] = [line for line in again.text.splitlines() if line.startswith("event:")]
        assert end == "event: end"
        assert (await client.get(path, headers={"Last-Event-ID": "end"})).status_code == 204


async def test_a_hung_up_client_leaves_nothing_behind_and_the_task_goes_on(site: Site) -> None:
    task_id = await site.service.submit(job("bob", **ENDLESS))
    live = site.service._under_way.get(task_id)
    assert live is not None
    async with client_of(site) as client:
        for _ in range(3):
            async with client.stream("GET", f"{TASKS}/{task_id}/events") as answer:
                async for _ in events(answer):
                    break
                assert live._watchers and live.askers
        while live._watchers or live.askers:
            await asyncio.sleep(0.01)
        while (await client.get(f"{TASKS}/{task_id}")).json()["state"] != "running":
            await asyncio.sleep(0.01)
    await site.service.cancel(task_id)


async def test_a_stream_on_which_nothing_happens_stays_alive(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "HEARTBEAT_SECONDS", 0.02)
    blocker = await site.service.submit(job("bob", **ENDLESS))
    waiting = await site.service.submit(job("bob"))
    async with client_of(site) as client, client.stream("GET", f"{TASKS}/{waiting}/events") as answer:
        seen = events(answer)
        while (await anext(seen))["event"] != "comment":
            pass
        await site.service.cancel(blocker)
        async for one in seen:
            last = one
        assert last["event"] == "end" and last["data"]["state"] == "succeeded"


async def test_events_of_a_cancelled_task_end_with_why(site: Site) -> None:
    task_id = await site.service.submit(job("bob", **ENDLESS))
    async with client_of(site) as client, client.stream("GET", f"{TASKS}/{task_id}/events") as answer:
        seen = events(answer)
        await anext(seen)
        assert (await client.post(f"{TASKS}/{task_id}/cancel")).json() == {"cancelled": True}
        async for one in seen:
            last = one
    assert last["event"] == "end"
    assert last["data"]["state"] == last["data"]["error_code"] == "cancelled"


@pytest.mark.parametrize("dialect", ["eas", "tasks", "dashscope", "queue", "sdapi"])
async def test_tasks_of_every_dialect_are_followed(site: Site, dialect: str) -> None:
    if dialect == "queue":
        asked: Job = call_job(method="POST", path="/sdapi/v1/nothing", caller=BOB, dialect=dialect)
    else:
        asked = replace(job("bob"), dialect=dialect)
    task_id = await site.service.submit(asked)
    answer = await site.ask("GET", f"{TASKS}/{task_id}/events", BOB)
    [data] = [line for line in answer.text.splitlines() if line.startswith("data:")][-1:]
    told = json.loads(data[5:])
    assert told["dialect"] == dialect and told["state"] in ("succeeded", "failed")
    one = (await site.ask("GET", f"{TASKS}/{task_id}", BOB)).json()
    assert one.pop("preview") is None
    for what in (one, told):
        for picture in what["pictures"]:
            picture.pop("link"), picture.pop("file")
    assert one == told


async def test_another_user_finds_no_such_task(site: Site) -> None:
    task_id = await site.service.submit(job("bob", **ENDLESS))
    for path in ("", "/events"):
        for caller, asked in ((EVE, task_id), (BOB, "nothing")):
            answer = await site.ask("GET", f"{TASKS}/{asked}{path}", caller)
            assert answer.status_code == 404 and asked in answer.json()["detail"]
    assert (await site.ask("POST", f"{TASKS}/{task_id}/cancel", EVE)).status_code == 404
    await site.service.cancel(task_id)


async def test_the_listing_is_told_again_whenever_a_task_of_the_callers_changes(site: Site) -> None:
    theirs = await site.service.submit(job("eve", **ENDLESS))
    async with client_of(site) as client, client.stream("GET", f"{TASKS}/events?limit=5") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = events(answer)
        first = await anext(seen)
        assert first["event"] == "tasks" and first["data"]["tasks"] == []
        mine = await site.service.submit(job("bob", **ENDLESS))
        told: list[dict[str, Any]] = []
        while not told or told[-1]["state"] != "succeeded":
            tasks = (await anext(seen))["data"]["tasks"]
            assert [one["id"] for one in tasks] in ([], [mine])
            if tasks and not told:
                await site.service.cancel(theirs)
            told += tasks
            if len({one["step"] for one in told if one["state"] == "running"}) > 1:
                await site.service.interrupt(mine)
        states = [one["state"] for one in told]
        assert list(dict.fromkeys(states)) == ["pending", "running", "succeeded"]
        await site.service.stop()
        assert [one async for one in seen] == [], "a service that stops lets go of who follows it"
    assert not site.service._under_way._watchers


async def test_a_refused_listing_is_a_plain_error(site: Site) -> None:
    answer = await site.ask("GET", f"{TASKS}/events?limit=x", BOB)
    assert answer.status_code == 422 and answer.json()["detail"].startswith("limit")
