"""``callback_url``: the end of a task, told to a real server that may fail, be slow or lead astray."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from sd_cloud.access import Access
from sd_cloud.app import attach
from sd_cloud.dialects import callbacks
from sd_cloud.errors import InputRefused
from sd_cloud.inputs import Inputs
from sd_cloud.job import Job
from sd_cloud.outputs import Outputs
from sd_cloud.service import Service
from sd_cloud.settings import settings_below
from sd_cloud.store.database import Database
from sd_cloud.store.schema import webhooks
from sd_cloud.store.sql import SqlStore
from sd_cloud.webhook_secret import decoded, encoded, webhook_secret
from tests.dialects.test_eas import native_app
from tests.dialects.test_pages import BOB, Site, job
from tests.fakes import PaintEngine
from tests.inputs.servers import Conversation, Server, serving
from tests.store.conftest import Open

SECRET = encoded(bytes(range(32)))


@asynccontextmanager
async def living(tmp_path: Path, database: Database, **changes: Any) -> AsyncIterator[Site]:
    """One life of a service on this database."""
    settings = settings_below(
        tmp_path, **{"image_link_allow": ("127.0.0.1",), "webhook_secret": SECRET, **changes}
    )
    service = Service(
        PaintEngine(), store=SqlStore(database), inputs=Inputs(settings), outputs=Outputs(settings)
    )
    app = native_app()
    attach(app, service, settings, access=Access(settings))
    service.start()
    yield Site(app, service)
    await service.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "RETRY_SECONDS", (0.05, 0.05, 0.05))


def calling(server: Server, **payload: Any) -> Job:
    return replace(job("bob", **payload), callback_url=server.url(host="127.0.0.1", path="/told"))


async def state_of(site: Site, task_id: str, wanted: str) -> dict[str, Any]:
    for _ in range(3000):
        told: dict[str, Any] = (await site.ask("GET", f"/sd-cloud/v1/tasks/{task_id}", BOB)).json()[
            "callback"
        ]
        if told and told["state"] == wanted:
            return told
        await asyncio.sleep(0.01)
    raise AssertionError(told)


async def failing(times: int, conversation: Conversation, seen: list[Conversation]) -> None:
    await conversation.answer(500 if len(seen) <= times else 204)


async def test_the_end_is_told_with_a_signature_and_told_again_after_failures(
    open_one: Open, tmp_path: Path
) -> None:
    async with (
        serving(lambda said: failing(2, said, server.seen)) as server,
        living(tmp_path, open_one()) as site,
    ):
        task_id = await site.service.submit(calling(server))
        told = await state_of(site, task_id, "delivered")
    assert told["attempts"] == 3 and len(server.seen) == 3
    for said in server.seen:
        assert said.line.startswith("POST /told")
        assert said.headers["webhook-id"] == task_id
        signed = f"{task_id}.{said.headers['webhook-timestamp']}.".encode() + said.body
        expected = base64.b64encode(hmac.new(decoded(SECRET), signed, hashlib.sha256).digest()).decode()
        assert said.headers["webhook-signature"] == f"v1,{expected}"
        assert abs(int(said.headers["webhook-timestamp"]) - time.time()) < 60
        content = json.loads(said.body)
        assert content["type"] == "task.succeeded" and content["task"]["id"] == task_id
        assert content["task"]["pictures"][0]["link"]


async def test_a_call_that_was_not_made_before_the_service_ended_is_made_by_the_next(
    open_one: Open, tmp_path: Path
) -> None:
    hanging = asyncio.Event()

    async def script(said: Conversation) -> None:
        if len(server.seen) == 1:
            hanging.set()
            await asyncio.sleep(60)
        await said.answer(200)

    async with serving(script) as server:
        async with living(tmp_path, open_one()) as site:
            task_id = await site.service.submit(calling(server, prompt="fail"))
            await hanging.wait()
        database = open_one()
        # Whoever takes a call has it for a minute; that minute is over.
        await database.write(lambda c: c.execute(update(webhooks).values(due=0.0)))
        async with living(tmp_path, database) as site:
            await state_of(site, task_id, "delivered")
    assert [json.loads(said.body)["type"] for said in server.seen] == ["task.failed"] * 2


async def test_it_is_given_up_after_a_bounded_number_of_tries(open_one: Open, tmp_path: Path) -> None:
    async with serving(lambda said: said.answer(503)) as server, living(tmp_path, open_one()) as site:
        task_id = await site.service.submit(calling(server))
        told = await state_of(site, task_id, "failed")
        await asyncio.sleep(0.2)
    assert told["attempts"] == len(server.seen) == 4 and "503" in told["error"]


async def test_a_redirect_is_not_followed_and_a_receiver_that_is_gone_is_not_asked_again(
    open_one: Open, tmp_path: Path
) -> None:
    async def script(said: Conversation) -> None:
        assert said.path == "/told"
        if len(server.seen) == 1:
            await said.answer(307, Location="/elsewhere")
        else:
            await said.answer(410)

    async with serving(script) as server, living(tmp_path, open_one()) as site:
        task_id = await site.service.submit(calling(server))
        told = await state_of(site, task_id, "failed")
    assert told["attempts"] == 2 and {said.path for said in server.seen} == {"/told"}


async def test_an_answer_without_end_counts_by_its_status(open_one: Open, tmp_path: Path) -> None:
    async def script(said: Conversation) -> None:
        await said.send(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n")
        while True:
            await said.send(b"x" * 65536)

    async with serving(script) as server, living(tmp_path, open_one()) as site:
        task_id = await site.service.submit(calling(server))
        assert (await state_of(site, task_id, "delivered"))["attempts"] == 1


async def test_an_address_that_links_may_not_lead_to_is_refused_when_the_task_is_asked_for(
    open_one: Open, tmp_path: Path
) -> None:
    async with living(tmp_path, open_one(), image_link_allow=()) as site:
        for link in (
            "http://127.0.0.1:1/x",
            "http://169.254.169.254/x",
            "http://u:p@example.com/",
            "http://[::1]/",
        ):
            with pytest.raises(InputRefused) as refused:
                await site.service.submit(replace(job("bob"), callback_url=link))
            assert refused.value.field == "callback_url"
        assert await site.service.store.find() == []


@pytest.mark.parametrize("how", ["tag", "body", "task api", "task flag"])
async def test_every_asynchronous_dialect_takes_it(open_one: Open, tmp_path: Path, how: str) -> None:
    async with serving(lambda said: said.answer(200)) as server:
        url = server.url(host="127.0.0.1", path="/told")
        body: dict[str, Any] = {"prompt": "a cat", "seed": 1}
        async with living(tmp_path, open_one()) as site:
            if how == "tag":
                answer = await site.ask(
                    "POST", "/api/predict/sd_async/sdapi/v1/txt2img", params={"callback_url": url}, json=body
                )
            elif how == "body":
                asked = {**body, "callback_url": url}
                answer = await site.ask("POST", "/api/predict/sd_async/sdapi/v1/txt2img", json=asked)
            elif how == "task api":
                asked = {**body, "stable_diffusion_model": "first", "callback_url": url}
                answer = await site.ask("POST", "/txt2img", json=asked, headers={"Request-Type": "async"})
            else:
                headers = {"Task-Flag": "true", "Request-Type": "async", "Callback-Url": url}
                answer = await site.ask("POST", "/sdapi/v1/txt2img", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            [task] = await site.service.store.find()
            await state_of(site, task.id, "delivered") if task.job.owner == "bob" else None
            while not server.seen:
                await asyncio.sleep(0.01)
    assert json.loads(server.seen[0].body)["task"]["id"] == task.id


def test_the_secret_is_made_once_and_a_given_one_wins(tmp_path: Path) -> None:
    settings = settings_below(tmp_path)
    made = webhook_secret(settings)
    assert webhook_secret(settings) == made and len(made) == 32
    assert (settings.state_dir / "webhook-secret").stat().st_mode & 0o077 == 0
    assert webhook_secret(replace(settings, webhook_secret=SECRET)) == bytes(range(32))
    for wrong in ("secret", "whsec_", "whsec_!!!!", encoded(b"short")):
        with pytest.raises(ValueError, match="whsec_"):
            decoded(wrong)
