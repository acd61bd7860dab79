from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text

from sd_cloud import errors
from sd_cloud.job import Job, Outcome, Picture, Reply, Target
from sd_cloud.store import codec, mounts
from sd_cloud.store.base import OVERTAKES, Task
from sd_cloud.store.database import MIGRATIONS, Database, DatabaseRefused, in_memory, open_database
from sd_cloud.store.schema import metadata
from sd_cloud.store.sql import SqlStore
from tests.store.conftest import Open

TARGET = Target("task")


def job(prompt: str = "a cat", **changes: object) -> Job:
    return Job("txt2img", {"prompt": prompt}, **{"target": TARGET, **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(database: Database) -> SqlStore:
    return SqlStore(database)


async def queued(store: SqlStore, *jobs: Job) -> None:
    for one in jobs:
        await store.add(one, limit=1000)
        await store.ready(one.id)


async def taken(store: SqlStore, loaded: str | None = None) -> Task:
    task = await store.claim(loaded=loaded)
    assert task is not None
    return task


async def prompts(store: SqlStore, count: int, loaded: str | None = None) -> list[str]:
    return [(await taken(store, loaded)).job.payload["prompt"] for _ in range(count)]


async def test_a_job_comes_back_as_it_was(store: SqlStore) -> None:
    asked = Job(
        "img2img",
        {"prompt": "一只猫 🐈", "steps": 3, "override_settings": {"a": None}, "init_images": ["x" * 10]},
        owner="anna", dialect="eas", checkpoint="first", vae="v", target=Target("eas", "/out"),
        labels={"uid": "7"}, order_key="anna", priority=3, options={"CLIP_stop_at_last_layers": 2},
        family={"shift": 3.0}, callback_url="https://example.com/x",
    )  # fmt: skip
    await store.add(asked, limit=1)
    task = await store.get(asked.id)
    assert task is not None and task.job == asked and task.state == "pending"


async def test_what_came_of_it_comes_back_without_pixels(store: SqlStore) -> None:
    asked = job()
    await queued(store, asked)
    await taken(store)
    picture = Picture(
        Image.new("RGB", (4, 4)), seed=5, infotext="Seed: 5", path="/a.png", link="https://x/a.png"
    )
    reply = Reply(200, {"content-type": "application/json"}, b"\x00{}")
    await store.end(asked.id, "succeeded", outcome=Outcome((picture,), {"seed": 5}, False, 1.5, reply))
    task = await store.get(asked.id)
    assert task is not None and task.outcome is not None
    assert task.outcome == Outcome((replace(picture, image=None),), {"seed": 5}, False, 1.5, reply)
    assert task.ended is not None and task.scheduled is not None and task.ended >= task.scheduled


@pytest.mark.parametrize(
    "error",
    [errors.InputRefused("bad", field="image_link"), errors.Cancelled("no"), errors.OutOfMemory("big")],
)
async def test_an_error_comes_back_as_its_kind(store: SqlStore, error: errors.ServiceError) -> None:
    asked = job()
    await store.add(asked, limit=1)
    await store.end(asked.id, "failed", error=error)
    task = await store.get(asked.id)
    assert task is not None and task.error is not None
    assert (type(task.error), str(task.error), task.error.field) == (type(error), str(error), error.field)


async def test_every_error_has_a_code_of_its_own_that_names_it_again() -> None:
    for kind in codec._kinds().values():
        again = codec.error_from_text(codec.error_to_text(kind("why")))
        assert again.code == kind.code and again.http_status == kind.http_status


async def test_a_task_that_is_not_ready_is_not_claimed(store: SqlStore) -> None:
    asked = job()
    await store.add(asked, limit=1)
    assert await store.claim() is None
    await store.ready(asked.id)
    assert (await taken(store)).id == asked.id
    assert await store.claim() is None


async def test_the_highest_priority_goes_first_then_age(store: SqlStore) -> None:
    await queued(store, job("1"), job("2"), job("3", priority=5), job("4", priority=-1))
    assert await prompts(store, 4) == ["3", "1", "2", "4"]


async def test_owners_take_turns(store: SqlStore) -> None:
    await queued(
        store, *[job(f"a{i}", owner="anna") for i in range(3)], job("b0", owner="ben"), job("b1", owner="ben")
    )
    assert await prompts(store, 5) == ["a0", "b0", "a1", "b1", "a2"]


async def test_jobs_of_one_order_key_run_one_after_the_other(store: SqlStore) -> None:
    first, second, other = job("1", order_key="k"), job("2", order_key="k", priority=9), job("3")
    await queued(store, first, second, other)
    assert await prompts(store, 2) == ["1", "3"]
    assert await store.claim() is None
    await store.end(first.id, "succeeded", outcome=Outcome())
    assert await prompts(store, 1) == ["2"]


async def test_a_loaded_checkpoint_is_preferred_but_nobody_is_overtaken_for_long(store: SqlStore) -> None:
    await queued(
        store, job("cold", checkpoint="b"), *[job(f"{i}", checkpoint="a") for i in range(OVERTAKES + 2)]
    )
    order = await prompts(store, OVERTAKES + 3, loaded="a")
    assert order.index("cold") == OVERTAKES


async def test_a_full_queue_refuses(store: SqlStore) -> None:
    await store.add(job(), limit=1)
    with pytest.raises(errors.QueueFull):
        await store.add(job(), limit=1)


async def test_an_idempotency_key_names_one_task_per_owner(store: SqlStore) -> None:
    first = await store.add(job(), limit=9, idempotency=("key", "body"))
    again = await store.add(job(), limit=9, idempotency=("key", "body"))
    assert again.id == first.id
    with pytest.raises(errors.IdempotencyConflict):
        await store.add(job(), limit=9, idempotency=("key", "another body"))
    assert (await store.add(job(owner="ben"), limit=9, idempotency=("key", "body"))).id != first.id
    assert await store.waiting() == 2


async def test_the_same_key_at_the_same_moment_makes_one_task(store: SqlStore) -> None:
    made = await asyncio.gather(*(store.add(job(), limit=99, idempotency=("k", "b")) for _ in range(12)))
    assert len({task.id for task in made}) == 1


async def test_the_first_word_on_how_a_task_ended_stands(store: SqlStore) -> None:
    asked = job()
    await queued(store, asked)
    await taken(store)
    assert await store.end(asked.id, "cancelled", error=errors.Cancelled("no"))
    assert not await store.end(asked.id, "succeeded", outcome=Outcome())
    task = await store.get(asked.id)
    assert task is not None and task.state == "cancelled"


async def test_a_running_task_is_not_ended_as_a_waiting_one(store: SqlStore) -> None:
    asked = job()
    await queued(store, asked)
    await taken(store)
    assert not await store.end(asked.id, "cancelled", error=errors.Cancelled("no"), only_waiting=True)


async def test_two_processes_never_claim_the_same_task(open_one: Open) -> None:
    stores = [SqlStore(open_one()) for _ in range(3)]
    await queued(stores[0], *[job(f"{i}", owner=f"o{i % 4}") for i in range(40)])

    async def claim_all(store: SqlStore) -> list[str]:
        found = []
        while (task := await store.claim()) is not None:
            found.append(task.id)
        return found

    claimed = [one for found in await asyncio.gather(*(claim_all(s) for s in stores)) for one in found]
    left = await stores[0].waiting()
    assert len(claimed) == len(set(claimed)) and len(claimed) + left == 40
    while left:  # SKIP LOCKED may have shown one of them an empty queue for a moment
        claimed += await claim_all(stores[0])
        left = await stores[0].waiting()
    assert len(set(claimed)) == 40


async def test_two_processes_never_run_one_order_key_at_once(open_one: Open) -> None:
    stores = [SqlStore(open_one()) for _ in range(3)]
    await queued(stores[0], *[job(f"{i}", order_key="k") for i in range(9)])
    got = [task for task in await asyncio.gather(*(s.claim() for s in stores)) if task is not None]
    assert len(got) == 1


async def test_new_work_is_announced_to_other_processes(open_one: Open) -> None:
    here, there = SqlStore(open_one()), SqlStore(open_one())
    if here.database.sqlite:
        there = here  # one process serves a SQLite file
    await there.work()
    if not here.database.sqlite:
        await there.work()  # once more when its LISTEN is there: something may have been missed
    waiting = asyncio.create_task(there.work())
    await queued(here, job())
    await asyncio.wait_for(waiting, timeout=120)
    assert await there.claim() is not None


async def test_what_a_dead_process_ran_is_delivered_again_and_then_set_aside(open_one: Open) -> None:
    asked = job()
    for attempt in (1, 2):
        database = open_one()
        store = SqlStore(database)
        if attempt == 1:
            await queued(store, asked)
        else:
            await store.recover(max_delivery=2)
        assert (await taken(store)).attempts == attempt
        assert database.presence is not None
        database.presence.leave()  # what the kernel does for a process that was killed
    last = SqlStore(open_one())
    found = await last.recover(max_delivery=2)
    assert found.ended == (asked.id,)
    task = await last.get(asked.id)
    assert task is not None and task.state == "failed" and "delivered 2 times" in str(task.error)


async def test_a_live_process_keeps_what_it_runs(open_one: Open) -> None:
    here, there = SqlStore(open_one()), SqlStore(open_one())
    asked = job()
    await queued(here, asked)
    await taken(here)
    await there.recover(max_delivery=2)
    assert not await there.end(asked.id, "failed", error=errors.EngineFailed("no"))
    assert await here.end(asked.id, "succeeded", outcome=Outcome())


async def test_unfetched_inputs_come_back_and_a_task_that_kills_the_fetching_is_set_aside(
    open_one: Open,
) -> None:
    asked = job()
    database = open_one()
    await SqlStore(database).add(asked, limit=9)
    for _ in range(2):
        assert await SqlStore(database).preparing(asked.id, max_delivery=2)
        assert database.presence is not None
        database.presence.leave()
        database = open_one()
        found = await SqlStore(database).recover(max_delivery=2)
        assert [one.id for one in found.suspects] == [asked.id]
    store = SqlStore(database)
    assert not await store.preparing(asked.id, max_delivery=2)
    task = await store.get(asked.id)
    assert task is not None and task.state == "failed"


async def test_what_ran_beside_a_fetching_that_may_kill_is_held_back_until_that_is_over(
    open_one: Open,
) -> None:
    ran, asked = job(), job()
    database = open_one()
    await queued(SqlStore(database), ran)
    await taken(SqlStore(database))
    await SqlStore(database).add(asked, limit=9)
    assert await SqlStore(database).preparing(asked.id, max_delivery=3)
    for _ in range(2):  # also when the next process dies at the same thing
        assert database.presence is not None
        database.presence.leave()
        database = open_one()
        found = await SqlStore(database).recover(max_delivery=3)
        assert ([one.id for one in found.suspects], found.held) == ([asked.id], (ran.id,))
        assert await SqlStore(database).claim() is None
        assert await SqlStore(database).preparing(asked.id, max_delivery=3)
    store = SqlStore(database)
    await store.ready(ran.id)
    again = await taken(store)
    assert (again.id, again.attempts) == (ran.id, 2)


async def test_a_request_whose_caller_is_gone_is_not_run_again(open_one: Open) -> None:
    database = open_one()
    asked = job(target=None)
    store = SqlStore(database)
    await store.add(asked, limit=9, kept=False)
    await store.ready(asked.id)
    assert database.presence is not None
    database.presence.leave()
    other = SqlStore(open_one())
    assert await other.claim() is None  # not this process's to run
    await other.recover(max_delivery=2)
    task = await other.get(asked.id)
    assert task is not None and isinstance(task.error, errors.ShuttingDown)


async def test_a_task_that_is_over_keeps_no_input_pictures(store: SqlStore) -> None:
    asked = Job("img2img", {"init_images": ["A" * 100_000], "prompt": "p"}, target=TARGET)
    await store.add(asked, limit=9)
    await store.end(asked.id, "failed", error=errors.EngineFailed("no"))
    task = await store.get(asked.id)
    assert task is not None and task.job.payload == {
        "init_images": ["(100000 characters, not kept)"],
        "prompt": "p",
    }


async def test_tasks_expire_by_their_dialect(database: Database) -> None:
    store = SqlStore(database, retention=lambda dialect: -1.0 if dialect == "dashscope" else 1000.0)
    short, long = job(dialect="dashscope"), job()
    await queued(store, short, long)
    for one in (short, long):
        await store.end(one.id, "failed", error=errors.EngineFailed("no"))
    assert [task.id for task in await store.expired()] == [short.id]
    await store.forget([short.id])
    assert await store.get(short.id) is None and await store.get(long.id) is not None


async def test_the_migrations_make_the_tables_that_the_code_names(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: object) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": False})  # type: ignore[arg-type]
        return list(compare_metadata(context, metadata))

    assert await database.read(differences) == []


def test_each_migration_is_named_after_its_revision_and_the_last_is_the_newest() -> None:
    """By these names a start knows that it has nothing to migrate, without alembic."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    revisions = [one.revision for one in scripts.walk_revisions()]
    assert [Path(one.path).name.split("_")[0] for one in scripts.walk_revisions()] == revisions
    assert scripts.get_current_head() == max(revisions) and len(set(map(len, revisions))) == 1


def test_a_start_that_has_nothing_to_migrate_does_not_load_alembic(tmp_path: Path) -> None:
    text = (
        "import sys; from pathlib import Path; from sd_cloud.store.database import open_database; "
        "open_database(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", text, str(tmp_path)]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for _ in "12"]
    assert said == ["True", "False"]


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def work(connection: object) -> None:
        connection.execute(text("INSERT INTO owners VALUES ('anna', 1)"))  # type: ignore[attr-defined]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(work)
    assert await database.read(lambda c: c.execute(text("SELECT count(*) FROM owners")).scalar_one()) == 0


async def test_a_private_store_is_not_durable() -> None:
    store = SqlStore(in_memory())
    assert not store.durable
    await queued(store, job())
    assert (await taken(store)).attempts == 1
    store.database.close()


MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 0:5 / /mnt/nas rw - nfs4 10.0.0.1:/ rw
41 22 0:6 / /mnt/oss\\040disk rw - fuse.ossfs ossfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/x", "ext4"),
        ("/mnt/nas/a/b", "nfs4"),
        ("/mnt/oss disk/state", "fuse.ossfs"),
        ("/mnt/nassau", "ext4"),
    ],
)
def test_the_mount_of_a_folder_is_the_longest_that_holds_it(folder: str, kind: str) -> None:
    assert mounts.file_system_of(Path(folder), MOUNTS)[0] == kind


def test_a_state_dir_on_a_network_mount_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "file_system_of", lambda folder, info: ("fuse.ossfs", "/mnt"))
    with pytest.raises(DatabaseRefused, match=r"fuse\.ossfs.*--state-dir.*--database-url"):
        open_database(tmp_path)


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "postgresql+psycopg://nobody@127.0.0.1:1/x"])
def test_a_database_url_that_cannot_be_used_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseRefused, match="--database-url"):
        open_database(tmp_path, url)
