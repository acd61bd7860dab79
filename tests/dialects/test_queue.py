"""The EAS queue, by the package its users have and by what it sends over HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import websockets
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError

from sd_cloud.access.users import digest
from sd_cloud.dialects import queue_watch
from sd_cloud.dialects.queue_frames import frames_of
from sd_cloud.store.pushing import Pushing
from sd_cloud.store.queues import Consumer, Message
from sd_cloud.store.schema import consumers, messages, tasks
from tests.dialects import eas_client
from tests.dialects.sdapi_world import Native, native
from tests.dialects.serving import Served, served
from tests.store import postgres

PATH = "/api/predict/sd_async"
SINK = f"{PATH}/sink"
PROTOBUF = {"Accept": "application/vnd.google.protobuf"}
SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "seed": 7}


#: What a queue promises holds on both.
DATABASES = ("sqlite", "postgresql")


def database_url(request: pytest.FixtureRequest, kind: str) -> str | None:
    """A fresh database of that kind."""
    if kind == "sqlite":
        return None
    return postgres.fresh_database(request.getfixturevalue("postgres_url"), f"queue_{uuid4().hex}")


# -- the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("database", DATABASES)
def test_the_queue_test_suite_of_the_clients_own_package(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    eas_client.installed()
    url = database_url(request, database)
    with served(tmp_path, async_service="test_group.qservice", nowebui=True, database_url=url) as server:
        done = eas_client.run("eas_suite.py", server.url.removeprefix("http://"), "test_group.qservice")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "OK" in done.stdout


def test_every_other_method_of_the_client(server: Served) -> None:
    done = eas_client.run("eas_methods.py", server.url.removeprefix("http://"), "sd_async")
    assert done.returncode == 0 and done.stdout.endswith("OK\n"), done.stdout[-3000:] + done.stderr[-3000:]


def test_the_guides_asynchronous_calls_put_watch_commit_and_search(tmp_path: Path) -> None:
    eas_client.installed()
    with served(tmp_path, nowebui=True) as server:
        done = eas_client.run(
            "eas_guide.py", server.url.removeprefix("http://"), "sd_async", "tmp/outputs", "5"
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        said = dict(
            line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("got", "attr", "sea"))
        )
        got = json.loads(said["got"])
        assert set(got) == {"by the client", *(f"txt2img_{i}" for i in range(5))}
        for one in got.values():
            assert one["images"] == [] and one["parameters"]["status"] == 0
            path = Path(one["parameters"]["image_url"])
            assert path.exists() and path.parts[-3] == "txt2img-images"
        assert json.loads(said["attributes"])["stream.length"] == "0"


# -- HTTP -----------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path, database_url=database_url(request, request.param)) as one:
        yield one


async def put(world: Native, data: bytes = b"abc", path: str = SINK, **query: Any) -> tuple[int, str]:
    answer = await world.client.post(path, content=data, params=query)
    assert answer.status_code == 200, answer.text
    return int(answer.text), answer.headers["X-Eas-Queueservice-Request-Id"]


async def got(world: Native, path: str = SINK, **query: Any) -> list[Message]:
    answer = await world.client.get(path, params=query, headers=PROTOBUF)
    assert answer.status_code == 200, answer.text
    return frames_of(answer.content)


async def test_a_message_to_a_route_becomes_a_task_and_its_answer_a_message(world: Native) -> None:
    body = {**SMALL, "alwayson_scripts": {"save_dir": "here"}}
    _, request_id = await put(world, json.dumps(body).encode(), f"{PATH}/sdapi/v1/txt2img", task_id="mine")
    [message] = await got(world, _timeout_="30s")
    assert message.tags == {"task_id": "mine", "requestId": request_id}
    parameters = json.loads(message.data)["parameters"]
    assert parameters["status"] == 0
    assert list(world.settings.outputs_dir.rglob(Path(parameters["image_url"]).name))
    # The request's id is the task's: visible in the other dialects, too.
    result = (await world.client.get(f"/tasks/{request_id}/result")).json()
    assert result["status"] == "succeeded"
    assert (await world.client.get(f"/api/v1/tasks/{request_id}")).json()["output"][
        "task_status"
    ] == "SUCCEEDED"
    assert (await world.client.get(PATH, params={"_attrs_": "true"})).json()["stream.length"] == "0"


async def test_a_request_just_put_is_never_without_its_task(
    world: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks for what a dead process left behind must not take it for that."""
    database = world.service.store.database
    requests = select(messages.c.task_id, tasks.c.id).outerjoin(tasks, tasks.c.id == messages.c.task_id)
    requests = requests.where(messages.c.task_id.is_not(None))
    seen: list[Any] = []
    write = database.write_now

    def looked(work: Any) -> Any:
        done = write(work)
        seen.append(database.read_now(lambda connection: connection.execute(requests).all()))
        return done

    monkeypatch.setattr(database, "write_now", looked)
    await put(world, json.dumps(SMALL).encode(), f"{PATH}/sdapi/v1/txt2img")
    assert any(seen) and all(task_id == its for some in seen for task_id, its in some)


async def test_an_answer_too_large_for_a_message_is_stored_and_linked(world: Native) -> None:
    body = json.dumps({**SMALL, "batch_size": 20, "width": 256}).encode()
    await put(world, body, f"{PATH}/sdapi/v1/txt2img")
    [message] = await got(world, _timeout_="30s")
    assert len(message.data) < 8192
    link = httpx.URL(json.loads(message.data)["parameters"]["result_link"])
    kept = (await world.client.get(link.raw_path.decode())).json()
    assert len(kept["images"]) == 20


async def test_a_request_that_fails_is_answered_in_the_sink(world: Native) -> None:
    for number, body in enumerate((b"not json", b'{"steps": "x"}', b"[1]", b"", b"\xff\xfe")):
        await put(world, body, f"{PATH}/sdapi/v1/txt2img", task_id=f"t{number}")
        [message] = await got(world, _timeout_="30s", _auto_delete_="true")
        assert (
            message.message == "422" and message.tags["task_id"] == f"t{number}" and json.loads(message.data)
        )


async def test_any_post_route_can_be_asked_and_no_other(world: Native) -> None:
    body = json.dumps({"image": ""}).encode()
    await put(world, body, f"{PATH}/sdapi/v1/png-info")
    assert len(await got(world, _timeout_="30s")) == 1
    for path in ("sdapi/v1/nothing", "sdapi/v1/samplers", "api/predict/sd_async/sdapi/v1/txt2img"):
        answer = await world.client.post(f"{PATH}/{path}", content=b"{}")
        assert answer.status_code == 404, path
    assert (await world.client.post("/api/predict/another", content=b"{}")).status_code == 404


async def test_a_message_above_the_limit_is_refused_with_the_way_out(world: Native) -> None:
    for headers in ({}, {"Transfer-Encoding": "chunked"}):
        answer = await world.client.post(f"{PATH}/sdapi/v1/txt2img", content=b"x" * 9000, headers=headers)
        assert answer.status_code == 413
        assert "image_link" in answer.json()["message"] and "save_dir" in answer.json()["message"]
    assert (await put(world, b"x" * 8192))[0] > 0


async def test_messages_are_read_by_index_request_id_and_tags(world: Native) -> None:
    first, request_id = await put(world, b"one", colour="red")
    second, _ = await put(world, b"two", colour="blue", size="8")
    assert [m.data for m in await got(world, _length_=10)] == [b"one", b"two"]
    assert [m.data for m in await got(world, _index_=second)] == [b"two"]
    assert [m.data for m in await got(world, _index_=-1)] == [b"two"]
    assert [m.data for m in await got(world, requestId=request_id)] == [b"one"]
    assert [m.index for m in await got(world, colour="blue", size="8")] == [second]
    assert await got(world, colour="blue", size="9") == []
    assert (await world.client.get(SINK, params={"_count_": "true"})).text == "2"
    assert (await world.client.get(SINK, params={"_count_": "true", "colour": "red"})).text == "1"
    assert [m.index for m in await got(world, _auto_delete_="true")] == [first]
    assert [m.index for m in await got(world, _length_=10)] == [second]


async def test_accept_decides_between_protobuf_json_and_raw(world: Native) -> None:
    index, request_id = await put(world, b"\x00\xff", a="b")
    as_json = (await world.client.get(SINK, headers={"Accept": "application/json"})).json()
    data = base64.b64encode(b"\x00\xff").decode()
    assert as_json == [
        {"index": index, "tags": {"a": "b", "requestId": request_id}, "data": data, "message": ""}
    ]
    assert (await world.client.get(SINK, params={"_raw_": "true"})).content == b"\x00\xff"
    assert (await world.client.get(SINK, params={"_raw_": "true", "x": "y"})).status_code == 204


async def test_priority_counts_by_query_and_by_the_header_that_the_attributes_name(world: Native) -> None:
    name = (await world.client.get(SINK, params={"_attrs_": "true"})).json()["meta.header.priority"]
    await put(world, b"last")
    await put(world, b"first", _priority_=2)
    await world.client.post(SINK, content=b"second", headers={name: "1"})
    assert [m.data for m in await got(world, _length_=3)] == [b"first", b"second", b"last"]
    assert (await world.client.get(SINK, params={"_count_": "true", "_priority_": "1"})).text == "1"


async def test_a_read_waits_for_messages_as_long_as_it_says(world: Native) -> None:
    waiting = asyncio.create_task(got(world, _timeout_="30s"))
    await asyncio.sleep(0)
    await put(world, b"here it is")
    assert [m.data for m in await waiting] == [b"here it is"]
    assert await got(world, tag="none", _timeout_="10ms") == []


async def test_truncate_and_delete(world: Native) -> None:
    indexes = [(await put(world))[0] for _ in range(4)]
    gone = await world.client.delete(SINK, params={"_indexes_": f"{indexes[1]},{indexes[3]}"})
    assert gone.text == "OK"
    assert [m.index for m in await got(world, _length_=9)] == [indexes[0], indexes[2]]
    await world.client.delete(SINK, params={"_trunc_": "true", "_index_": indexes[2]})
    assert [m.index for m in await got(world, _length_=9)] == [indexes[2]]


async def test_search_says_how_many_are_before_and_truncating_the_input_takes_requests_back(
    world: Native,
) -> None:
    world.engine.step_seconds = 0.05
    body = json.dumps({**SMALL, "steps": 1000}).encode()
    puts = [await put(world, body, f"{PATH}/sdapi/v1/txt2img")]

    async def place(index: int) -> dict[str, Any]:
        return dict((await world.client.get(PATH, params={"_search_": "true", "_index_": index})).json())

    while not (await place(puts[0][0]))["IsPending"]:
        await asyncio.sleep(0.01)
    puts += [await put(world, body, f"{PATH}/sdapi/v1/txt2img") for _ in range(2)]
    assert await place(puts[0][0]) == {"ConsumerId": "service", "IsPending": True, "WaitCount": 0}
    assert await place(puts[2][0]) == {"ConsumerId": "", "IsPending": False, "WaitCount": 2}
    await world.client.delete(PATH, params={"_trunc_": "true", "_index_": puts[2][0] + 1})
    for _, request_id in puts:
        states = [task.state async for task in world.service.changes(request_id)]
        assert states[-1] == "cancelled"
    assert (
        await world.client.get(PATH, params={"_search_": "true", "_index_": puts[0][0]})
    ).status_code == 404
    assert await got(world) == []


async def test_a_parameter_that_makes_no_sense_is_named(world: Native) -> None:
    for method, query in (
        ("GET", "_index_=x"), ("GET", "_length_=0"), ("GET", "_timeout_=soon"), ("GET", "_raw_=perhaps"),
        ("GET", "_index_=99999999999999999999"), ("PUT", "_indexes_="), ("PUT", "_indexes_=1,x"),
        ("DELETE", "_indexes_=-1"), ("POST", "_priority_=x"), ("GET", "_watch_=true"),
    ):  # fmt: skip
        answer = await world.client.request(method, f"{SINK}?{query}")
        assert answer.status_code == 400 and query.split("=")[0] in answer.json()["message"], answer.text


async def test_an_ended_queue_takes_no_more_until_it_is_truncated(world: Native) -> None:
    assert (await world.client.post(SINK, params={"_eos_": "true"})).status_code == 200
    assert (await world.client.post(SINK, content=b"x")).status_code == 409
    assert (await world.client.get(SINK, params={"_attrs_": "true"})).json()["meta.state"] == "End"
    await world.client.delete(SINK, params={"_trunc_": "true", "_index_": 1})
    await put(world)


async def test_another_user_sees_none_of_it(world: Native) -> None:
    users = world.app.state.sd_cloud_access.users
    for name in ("anna", "ben"):
        await users.table.add(name, role="user")
        await users.table.add_token(name, digest(name), "test", None)
    users._nobody_until = 0.0
    anna, ben = {"Authorization": "anna"}, {"Authorization": "ben"}
    index = int((await world.client.post(SINK, content=b"hers", headers=anna)).text)
    assert (await world.client.get(SINK, headers={**ben, **PROTOBUF})).content == b""
    search = {"_search_": "true", "_index_": index}
    assert (await world.client.get(SINK, params=search, headers=ben)).status_code == 404
    for method in ("PUT", "DELETE"):
        await world.client.request(method, SINK, params={"_indexes_": index}, headers=ben)
    await world.client.delete(SINK, params={"_trunc_": "true", "_index_": index + 1}, headers=ben)
    assert len(frames_of((await world.client.get(SINK, headers={**anna, **PROTOBUF})).content)) == 1
    assert (await world.client.get(SINK)).status_code == 401


# -- watching -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DATABASES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    url = database_url(request, request.param)
    with served(tmp_path_factory.mktemp("data"), nowebui=True, database_url=url) as one:
        yield one


def watch(server: Served, *, uid: str = "one", group: str = "eas", **query: Any) -> Any:
    values = {"_watch_": "true", "_index_": 0, "_window_": 2, **query}
    url = httpx.URL(server.url.replace("http", "ws") + SINK, params=values)
    headers = {"X-EAS-QueueService-Redis-Uid": uid, "X-EAS-QueueService-Redis-Gid": group}
    return websockets.connect(str(url), additional_headers={**headers, "Accept": "application/json"})


async def received(socket: Any, seconds: float = 120) -> bytes:
    return base64.b64decode(json.loads(await asyncio.wait_for(socket.recv(), seconds))["data"])


async def nothing_more(socket: Any) -> bool:
    try:
        await asyncio.wait_for(socket.recv(), 0.3)
    except asyncio.TimeoutError:
        return True
    return False


class Sender:
    def __init__(self, server: Served) -> None:
        self.client = httpx.AsyncClient(base_url=server.url)
        self.indexes: dict[bytes, int] = {}

    async def put(self, *data: bytes, **tags: str) -> None:
        for one in data:
            self.indexes[one] = int((await self.client.post(SINK, content=one, params=tags)).text)

    async def commit(self, *data: bytes, group: str = "eas", **query: Any) -> None:
        indexes = ",".join(str(self.indexes[one]) for one in data)
        headers = {"X-EAS-QueueService-Redis-Uid": "one", "X-EAS-QueueService-Redis-Gid": group}
        answer = await self.client.put(SINK, params={"_indexes_": indexes, **query}, headers=headers)
        assert answer.status_code == 200, answer.text

    async def attributes(self) -> dict[str, str]:
        return dict((await self.client.get(SINK, params={"_attrs_": "true"})).json())

    async def length(self) -> int:
        return int((await self.attributes())["stream.length"])


@pytest.fixture
async def sender(server: Served) -> AsyncIterator[Sender]:
    one = Sender(server)
    yield one
    while (await one.attributes())["consumers.status.total"] != "0":
        await asyncio.sleep(0.01)
    await one.client.delete(SINK, params={"_trunc_": "true", "_index_": 2**62})
    await one.client.aclose()


async def test_a_window_holds_back_until_a_commit(server: Served, sender: Sender) -> None:
    await sender.put(b"1", b"2", b"3")
    async with watch(server) as socket:
        assert [await received(socket), await received(socket)] == [b"1", b"2"]
        assert await nothing_more(socket)
        attributes = (await sender.client.get(SINK, params={"_attrs_": "true"})).json()
        assert attributes["consumers.status.total"] == "1"
        assert "Pending: 2" in attributes["consumers.list.[0]"]
        await sender.commit(b"1")
        assert await received(socket) == b"3"
    assert await sender.length() == 2


async def test_a_dead_consumers_messages_go_to_another_of_its_group(server: Served, sender: Sender) -> None:
    await sender.put(b"1", b"2")
    async with watch(server, uid="first") as first:
        assert [await received(first), await received(first)] == [b"1", b"2"]
        async with watch(server, uid="second") as second:
            assert await nothing_more(second)
            first.transport.abort()
            assert [await received(second), await received(second)] == [b"1", b"2"]


async def test_a_consumer_that_comes_back_gets_what_it_had_not_committed(
    server: Served, sender: Sender
) -> None:
    await sender.put(b"1", b"2")
    async with watch(server) as socket:
        await received(socket)
        await received(socket)
        await sender.commit(b"1")
    async with watch(server) as socket:
        assert await received(socket) == b"2"


async def test_what_a_consumer_held_is_given_back_also_when_the_database_was_away_as_it_left(
    server: Served, sender: Sender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue_watch, "RETRY_SECONDS", 0.01)
    leave = Pushing.leave

    async def at_last(pushing: Pushing, consumer: Consumer) -> None:
        if "trying again" not in caplog.text:
            raise OperationalError("", {}, OSError("nobody answers"))
        await leave(pushing, consumer)

    monkeypatch.setattr(Pushing, "leave", at_last)
    await sender.put(b"1")
    async with watch(server, uid="one") as one:
        assert await received(one) == b"1"
    async with watch(server, uid="two") as two:
        assert await received(two) == b"1"


async def test_a_consumer_that_was_taken_for_dead_is_served_again(server: Served, sender: Sender) -> None:
    async with watch(server) as socket:
        await sender.put(b"1")
        assert await received(socket) == b"1"
        # What another process does that could not see this one for a moment.
        server.service.store.database.write_now(lambda c: c.execute(delete(consumers)))
        await sender.put(b"2")
        assert await received(socket) == b"2"
        assert (await sender.attributes())["consumers.status.total"] == "1"


async def test_each_group_gets_every_message(server: Served, sender: Sender) -> None:
    async with watch(server, group="a") as a, watch(server, group="b") as b:
        await sender.put(b"1")
        assert [await received(a), await received(b)] == [b"1", b"1"]
        await sender.commit(b"1", group="a")
        assert await sender.length() == 1
        await sender.commit(b"1", group="b")
        assert await sender.length() == 0


async def test_tags_and_the_first_index_filter(server: Served, sender: Sender) -> None:
    await sender.put(b"old", kind="x")
    await sender.put(b"other", kind="y")
    await sender.put(b"new", kind="x")
    async with watch(server, kind="x", _index_=sender.indexes[b"other"]) as socket:
        assert await received(socket) == b"new"
        assert await nothing_more(socket)


async def test_auto_commit_takes_messages_away_as_they_are_pushed(server: Served, sender: Sender) -> None:
    async with watch(server, _auto_commit_="true", _index_only_="true") as socket:
        await sender.put(b"1", b"2", b"3", b"4")
        assert [await received(socket) for _ in range(4)] == [b""] * 4
    while await sender.length():
        await asyncio.sleep(0.02)


async def test_a_returned_message_goes_to_another_consumer(server: Served, sender: Sender) -> None:
    await sender.put(b"1")
    async with watch(server, uid="one") as one:
        assert await received(one) == b"1"
        await sender.commit(b"1", _negative_="true")
        assert await nothing_more(one)
        async with watch(server, uid="two") as two:
            assert await received(two) == b"1"


async def test_a_returned_message_may_say_why_in_a_form(
    server: Served, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sd_cloud.dialects.queue")
    await sender.put(b"1")
    why = {"_code_": "507", "_reason_": "no room & no time"}
    headers = {"X-EAS-QueueService-Redis-Uid": "one", "X-EAS-QueueService-Redis-Gid": "eas"}
    query = {"_index_": str(sender.indexes[b"1"]), "_negative_": "true"}
    async with watch(server, uid="one") as one:
        assert await received(one) == b"1"
        async with watch(server, uid="two") as two:
            answer = await sender.client.put(SINK, params=query, data=why, headers=headers)
            assert answer.text == "OK"
            assert await received(two) == b"1"
    assert "eas.one returns messages" in caplog.text and "507 no room & no time" in caplog.text


async def test_a_queue_that_is_ended_by_force_lets_its_consumers_go_at_once(
    server: Served, sender: Sender
) -> None:
    await sender.put(b"1", b"2")
    async with watch(server, _window_=1) as socket:
        assert await received(socket) == b"1"
        await sender.client.post(SINK, params={"_eos_": "true", "_force_": "true"})
        await sender.commit(b"1")  # also when it still had something to do
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            while await asyncio.wait_for(socket.recv(), 120):
                pass
    refused = await sender.client.post(SINK, content=b"3")
    assert refused.status_code == 409 and refused.json()["code"] == "queue_ended"


async def test_an_ended_queue_lets_its_consumers_go_when_they_have_had_all(
    server: Served, sender: Sender
) -> None:
    await sender.put(b"1")
    async with watch(server) as socket:
        assert await received(socket) == b"1"
        await sender.client.post(SINK, params={"_eos_": "true"})
        await sender.commit(b"1")
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            await asyncio.wait_for(socket.recv(), 120)


async def test_watching_the_input_is_refused(server: Served) -> None:
    url = server.url.replace("http", "ws") + PATH + "?_watch_=true"
    with pytest.raises(websockets.exceptions.InvalidStatus):
        await websockets.connect(url)


async def test_results_reach_the_sink_after_a_restart(tmp_path: Path) -> None:
    """A request that was waiting when the service stopped, and one that ended before its message."""
    with served(tmp_path, nowebui=True) as server:
        server.engine.step_seconds = 1.0
        async with httpx.AsyncClient(base_url=server.url) as client:
            body = {**SMALL, "alwayson_scripts": {"save_dir": "x"}}
            for n in range(3):
                answer = await client.post(f"{PATH}/sdapi/v1/txt2img", json=body, params={"n": n})
                assert answer.status_code == 200
    with served(tmp_path, nowebui=True) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            query = {"_length_": 3, "_timeout_": "60s"}
            frames = frames_of((await client.get(SINK, params=query, headers=PROTOBUF, timeout=90)).content)
            assert sorted(one.tags["n"] for one in frames) == ["0", "1", "2"]
            assert [json.loads(f.data)["parameters"]["status"] for f in frames if f.tags["n"] != "0"] == [
                0,
                0,
            ]


def test_the_frames_are_those_of_the_clients_protobuf_3_20_too(tmp_path: Path) -> None:
    """The same module under the protobuf that the webui pins."""
    package = Path(eas_client.ROOT) / "extensions" / "sd-cloud-api"
    code = (
        "import google.protobuf as p, sys; assert p.__version__.startswith('3.20'), p.__version__\n"
        f"sys.path.insert(0, {str(package)!r})\n"
        "from sd_cloud.dialects.queue_frames import frames_bytes, frames_of\n"
        "from sd_cloud.store.queues import Message\n"
        "from eas_prediction.queue_client import DataFrameListCodec\n"
        "sent = [Message(2**40, {'a': 'ü'}, b'\\0x', 'm')]\n"
        "[got] = DataFrameListCodec.decode(frames_bytes(sent)).get_list()\n"
        "assert (got.index, dict(got.tags), got.data, got.message) == (2**40, {'a': 'ü'}, b'\\0x', 'm')\n"
        "assert frames_of(frames_bytes(sent)) == sent\n"
    )
    script = tmp_path / "frames.py"
    script.write_text(code)
    done = eas_client.run(str(script))
    assert done.returncode == 0, done.stderr
