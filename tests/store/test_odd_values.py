"""Texts and numbers that a database does not take as they are."""

from __future__ import annotations

import pytest

from sd_cloud.access import Users
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Target
from sd_cloud.store.database import Database
from sd_cloud.store.sql import SqlStore
from sd_cloud.store.users import UserTable

ODD = "half a pair \ud800, a NUL \x00, a cat 猫"


async def test_any_text_of_a_request_is_kept(database: Database) -> None:
    store = SqlStore(database)
    asked = Job("txt2img", {"prompt": ODD}, labels={"uid": ODD}, target=Target("task"))
    await store.add(asked, limit=9)
    task = await store.get(asked.id)
    assert task is not None and task.job == asked


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800b"])
async def test_a_name_that_no_database_takes_is_nobodys(database: Database, name: str) -> None:
    for look_up in (
        SqlStore(database).get(name),
        SqlStore(database).find(owner=name),
        Users(UserTable(database)).by_password(name, "x" * 9),
    ):
        try:
            assert not await look_up
        except BadRequest:
            pass  # PostgreSQL's answer to NUL, and both databases' to half a pair
