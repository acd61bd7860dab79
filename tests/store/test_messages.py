"""Queues of messages in SQL, on both databases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, event, func, select, text

from sd_cloud.job import Job, Target
from sd_cloud.store.database import Database
from sd_cloud.store.messages import MessageStore
from sd_cloud.store.pushing import Pushing
from sd_cloud.store.queues import Consumer, Message, NotWatching, Queue, QueueEnded
from sd_cloud.store.schema import consumers, deliveries, messages, tasks
from sd_cloud.store.sql import SqlStore
from tests.store.conftest import Open

SINK = Queue("sd_async/sink", "local")


@pytest.fixture
def store(database: Database) -> MessageStore:
    return MessageStore(database)


@pytest.fixture
def pushing(database: Database) -> Pushing:
    return Pushing(database)


async def put(store: MessageStore, *data: bytes, queue: Queue = SINK, **tags: str) -> list[int]:
    return [await store.put(queue, one, tags, request_id=uuid4().hex) for one in data]


def consumer(uid: str = "one", group: str = "eas", window: int = 5, **more: object) -> Consumer:
    return Consumer(uuid4().hex, SINK, group, uid, window, **more)  # type: ignore[arg-type]


async def got_by(pushing: Pushing, one: Consumer) -> list[Message]:
    """What a new consumer gets."""
    await pushing.arrive(one)
    return await pushing.next_for(one)


async def all_of(store: MessageStore, queue: Queue = SINK) -> list[Message]:
    return await store.read(queue, first_index=0, length=1000, tags={})


# -- in and out -----------------------------------------------------------------------------------


async def test_indexes_grow_and_a_message_comes_back_as_it_was(store: MessageStore) -> None:
    indexes = await put(store, b"\x00\xff", b"", kind="猫", empty="")
    assert indexes == sorted(indexes)
    found = await all_of(store)
    assert [(one.index, one.data, one.tags) for one in found] == [
        (indexes[0], b"\x00\xff", {"kind": "猫", "empty": ""}),
        (indexes[1], b"", {"kind": "猫", "empty": ""}),
    ]


async def test_messages_put_at_the_same_moment_share_transactions_and_keep_their_order(
    store: MessageStore, database: Database
) -> None:
    begun = []
    event.listen(database.engine, "begin", begun.append)
    data = [b"%d" % n for n in range(200)]
    indexes = await asyncio.gather(*(store.put(SINK, one, {}, request_id="r") for one in data))
    assert len(begun) < 20
    assert indexes == sorted(set(indexes)) and [one.data for one in await all_of(store)] == data


async def test_one_that_is_refused_or_hangs_up_takes_no_other_of_its_transaction_with_it(
    store: MessageStore,
) -> None:
    over = Queue("over", "local")
    await store.end(over, forced=False)
    waiting = [asyncio.ensure_future(store.put(SINK, b"%d" % n, {}, request_id="r")) for n in range(10)]
    refused = asyncio.ensure_future(store.put(over, b"", {}, request_id="r"))
    await asyncio.sleep(0)
    waiting[3].cancel()
    results = await asyncio.gather(*waiting, refused, return_exceptions=True)
    assert isinstance(results.pop(), QueueEnded)
    there = {one.index for one in await all_of(store)}
    assert {one for one in results if isinstance(one, int)} <= there and len(there) == 10


async def test_a_transaction_that_fails_is_told_to_all_who_share_it_and_the_next_one_works(
    store: MessageStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = database.write

    async def fails(work: Any) -> Any:
        monkeypatch.setattr(database, "write", write)
        raise OSError("the disk is full")

    monkeypatch.setattr(database, "write", fails)
    results = await asyncio.gather(
        *(store.put(SINK, b"", {}, request_id="r") for _ in range(3)), return_exceptions=True
    )
    assert [str(one) for one in results] == ["the disk is full"] * 3
    assert await put(store, b"x")


async def test_a_request_is_recorded_with_its_message_or_not_at_all(
    store: MessageStore, database: Database
) -> None:
    sql = SqlStore(database)
    queue, alone = Queue("sd_async", "local"), 0
    orphans = (
        select(func.count())
        .select_from(messages.outerjoin(tasks, tasks.c.id == messages.c.task_id))
        .where(messages.c.task_id.is_not(None), tasks.c.id.is_(None))
    )

    async def request(limit: int) -> Job:
        job = Job("txt2img", {"prompt": "a"}, dialect="queue", target=Target("task"))

        def beside(connection: Connection) -> None:
            nonlocal alone
            index = store.put_within(connection, queue, b"x", {}, request_id=job.id, task_id=job.id)
            alone += connection.execute(orphans).scalar_one()
            assert index > 0

        await sql.add(job, limit=limit, beside=beside)
        return job

    job = await request(limit=1)
    assert alone == 0 and [one.task_id for one in await all_of(store, queue)] == [job.id]
    with pytest.raises(Exception, match="waiting"):
        await request(limit=1)
    await store.end(queue, forced=False)
    with pytest.raises(QueueEnded):
        await request(limit=9)
    assert len(await all_of(store, queue)) == 1 and await sql.waiting() == 1


async def test_two_readers_that_take_never_get_the_same_message(store: MessageStore) -> None:
    indexes = await put(store, *(b"%d" % n for n in range(40)))
    taken = await asyncio.gather(
        *(store.read(SINK, first_index=0, length=5, tags={}, take=True) for _ in range(8))
    )
    got = [one.index for some in taken for one in some]
    assert sorted(got + [one.index for one in await all_of(store)]) == indexes
    assert len(got) == len(set(got)) > 5


async def test_truncating_a_long_queue_is_one_statement(store: MessageStore, database: Database) -> None:
    def fill(connection: Connection) -> None:
        connection.execute(
            messages.insert(),
            [
                {"queue": SINK.name, "owner": SINK.owner, "request_id": str(n), "priority": 0, "tags": "{}",
                 "data": b"", "submitted": 0.0, "message": "",
                 "task_id": None if n % 20_000 else f"t{n}"}
                for n in range(40_000)
            ],
        )  # fmt: skip

    await database.write(fill)
    [kept] = await put(store, b"kept")
    said: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: said.append(told[2]))
    assert sorted(await store.truncate(SINK, kept)) == ["t0", "t20000"]
    assert [one.data for one in await all_of(store)] == [b"kept"]
    assert len([one for one in said if one.startswith("DELETE FROM messages")]) == 1


async def test_transactions_that_wait_for_each_other_are_both_done(
    store: MessageStore, database: Database
) -> None:
    if database.sqlite:
        pytest.skip("it has one writer")
    indexes = await put(store, b"1", b"2")
    both, begun = threading.Barrier(2), []

    def crossing(order: list[int]) -> Callable[[Connection], list[int]]:
        def work(connection: Connection) -> list[int]:
            connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
            begun.append(order)
            for index in order:
                connection.execute(select(messages).where(messages.c.number == index).with_for_update())
                if index == order[0] and begun.count(order) == 1:
                    both.wait()
            return order

        return work

    orders = [indexes, indexes[::-1]]
    assert await asyncio.gather(*(database.write(crossing(one)) for one in orders)) == orders
    assert len(begun) > 2


# -- pushing --------------------------------------------------------------------------------------


async def test_a_window_counts_what_is_not_committed(store: MessageStore, pushing: Pushing) -> None:
    indexes = await put(store, b"1", b"2", b"3", b"4")
    one = consumer(window=2)
    await pushing.arrive(one)
    assert [m.data for m in await pushing.next_for(one)] == [b"1", b"2"]
    assert await pushing.next_for(one) == []
    await pushing.commit(SINK, "eas", indexes[:1])
    assert [m.data for m in await pushing.next_for(one)] == [b"3"]
    [told] = await pushing.watching(SINK)
    assert (told.uncommitted, told.last, told.window) == (2, indexes[2], 2)


async def test_each_message_goes_to_one_consumer_of_a_group_whatever_the_processes(
    open_one: Open,
) -> None:
    """Many consumers in several processes ask at the same moment; each has a connection of its own."""
    databases = [open_one() for _ in range(3)]
    stores = [Pushing(one) for one in databases]
    indexes = await put(MessageStore(databases[0]), *(b"x" for _ in range(120)))
    start = threading.Barrier(len(stores))

    async def drain(pushing: Pushing) -> list[int]:
        got: list[int] = []
        while found := await got_by(pushing, consumer(uuid4().hex, window=1)):
            got.append(found[0].index)
        return got

    def run(pushing: Pushing) -> list[int]:
        start.wait()
        return asyncio.run(drain(pushing))

    got = await asyncio.gather(*(asyncio.to_thread(run, one) for one in stores))
    assert sorted(index for some in got for index in some) == indexes


async def test_groups_that_ask_at_the_same_moment_all_get_the_message(
    store: MessageStore, pushing: Pushing
) -> None:
    for number in range(20):
        [index] = await put(store, b"%d" % number)
        got = await asyncio.gather(*(got_by(pushing, consumer(group=f"{n}")) for n in range(6)))
        assert [one[0].index for one in got] == [index] * 6
        await store.remove(SINK, [index])


async def test_a_message_is_gone_when_two_groups_commit_it_at_the_same_moment(
    store: MessageStore, pushing: Pushing
) -> None:
    groups = [consumer(group=name, window=50) for name in ("a", "b")]
    for one in groups:
        await pushing.arrive(one)
    indexes = await put(store, *(b"x" for _ in range(30)))
    for one in groups:
        assert len(await pushing.next_for(one)) == 30
    await asyncio.gather(*(pushing.commit(SINK, one.group, [index]) for index in indexes for one in groups))
    assert await all_of(store) == []


async def test_a_consumer_that_leaves_while_it_is_given_a_message_holds_none_afterwards(
    store: MessageStore, pushing: Pushing, database: Database
) -> None:
    """Its look at the queue goes on in its thread when nobody waits for it any more."""
    if database.sqlite:
        pytest.skip("it has one writer: a consumer leaves after its look")
    [index] = await put(store, b"1")
    gone, looking, left = consumer("gone"), threading.Event(), threading.Event()
    await pushing.arrive(gone)
    waits = text(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def holds_on(*told: Any) -> None:
        """Between the look at its window and the one at the messages: until it has left, or can't yet."""
        if "count" in told[2] and not looking.is_set():
            looking.set()
            while not left.is_set() and not database.read_now(lambda c: c.execute(waits).all()):
                left.wait(0.01)

    event.listen(database.engine, "after_cursor_execute", holds_on)
    look = asyncio.ensure_future(pushing.next_for(gone))
    await asyncio.to_thread(looking.wait)
    await pushing.leave(gone)
    left.set()
    await look
    assert [m.index for m in await got_by(pushing, consumer())] == [index]


async def test_one_that_has_left_is_given_nothing(store: MessageStore, pushing: Pushing) -> None:
    await put(store, b"1")
    one = consumer()
    await pushing.arrive(one)
    await pushing.leave(one)
    with pytest.raises(NotWatching):
        await pushing.next_for(one)


async def test_what_a_dead_process_held_goes_to_another_consumer_which_is_told(open_one: Open) -> None:
    here, there = open_one(), open_one()
    store, pushing = MessageStore(here), Pushing(here)
    await put(store, b"1")
    gone = consumer("gone")
    await Pushing(there).arrive(gone)
    assert len(await Pushing(there).next_for(gone)) == 1
    one = consumer()
    await pushing.arrive(one)
    assert await pushing.next_for(one) == []
    there.close()
    told = asyncio.Event()
    stop = store.listen(SINK, told.set)
    await pushing.forget_dead()
    await asyncio.wait_for(told.wait(), 120)
    stop()
    assert [m.data for m in await pushing.next_for(one)] == [b"1"]
    assert [watching.uid for watching in await pushing.watching(SINK)] == ["one"]


async def test_a_group_is_done_when_it_has_committed_what_it_may_get(
    store: MessageStore, pushing: Pushing
) -> None:
    a, b = consumer(group="a", tags={"kind": "x"}), consumer(group="b")
    for one in (a, b):
        await pushing.arrive(one)
    [index] = await put(store, b"1", kind="x")
    await put(store, b"2", kind="y")
    await pushing.next_for(a)
    assert not await pushing.is_done(a)
    await pushing.commit(SINK, "a", [index])
    assert await pushing.is_done(a) and not await pushing.is_done(b)


async def test_deleting_a_message_takes_its_deliveries_with_it(
    store: MessageStore, pushing: Pushing, database: Database
) -> None:
    indexes = await put(store, b"1", b"2")
    one = consumer()
    await pushing.arrive(one)
    await pushing.next_for(one)
    await store.remove(SINK, indexes)
    left = await database.read(lambda c: c.execute(select(func.count()).select_from(deliveries)).scalar_one())
    assert left == 0
    await pushing.leave(one)
    assert not await database.read(lambda c: c.execute(select(consumers)).all())
