from __future__ import annotations

import time

import pytest

from sd_cloud.access import Administration, Users
from sd_cloud.access.users import digest
from sd_cloud.errors import BadRequest, NotFound
from sd_cloud.store.database import Database
from sd_cloud.store.schema import tokens, users
from sd_cloud.store.users import UserTable


@pytest.fixture
def table(database: Database) -> UserTable:
    return UserTable(database)


@pytest.fixture
def admin(table: UserTable) -> Administration:
    return Administration(table)


async def test_a_user_comes_in_by_password_and_by_token_and_both_are_kept_as_hashes(
    admin: Administration, table: UserTable, database: Database
) -> None:
    await admin.add("anna", {"password": "long enough", "role": "admin"})
    token = await admin.make_token("anna", "laptop", None)
    known = Users(table)
    by_password, by_token = await known.by_password("anna", "long enough"), await known.by_token(token)
    assert by_password == by_token and by_token is not None and by_token.admin
    assert await known.by_password("anna", "long enougH") is None
    assert await known.by_token(token + "x") is None

    kept = await database.read(lambda c: [*c.execute(users.select()), *c.execute(tokens.select())])
    assert "long enough" not in str(kept) and token not in str(kept) and "$argon2id$" in str(kept)


async def test_a_disabled_user_is_nobody_until_enabled(admin: Administration, table: UserTable) -> None:
    await admin.add("ben", {"password": "long enough"})
    token = await admin.make_token("ben", "x", None)
    known = Users(table)
    await admin.change("ben", {"disabled": True})
    assert await known.by_password("ben", "long enough") is None and await known.by_token(token) is None
    await admin.change("ben", {"disabled": False})
    assert await known.by_token(token) is not None


async def test_a_new_password_ends_the_log_ins_and_leaves_made_tokens(
    admin: Administration, table: UserTable
) -> None:
    await admin.add("ben", {"password": "long enough"})
    known = Users(table)
    log_in, made = await known.log_in("ben", "long enough"), await admin.make_token("ben", "script", None)
    await admin.change("ben", {"password": "another one"})
    assert await known.by_token(log_in) is None and await known.by_token(made) is not None


async def test_tokens_are_listed_by_an_id_and_end_when_revoked_or_expired(
    admin: Administration, table: UserTable
) -> None:
    await admin.add("ben", {})
    kept, gone = await admin.make_token("ben", "kept", 1), await admin.make_token("ben", "gone", None)
    await table.add_token("ben", digest("old"), "old", time.time() - 1)
    listed = {one["label"]: one for one in await admin.tokens("ben")}
    assert listed.keys() == {"kept", "gone"} and listed["kept"]["expires"] and not listed["gone"]["expires"]
    await admin.revoke_token("ben", listed["gone"]["id"])
    known = Users(table)
    assert await known.by_token(gone) is None and await known.by_token("old") is None
    assert await known.by_token(kept) is not None
    with pytest.raises(NotFound):
        await admin.revoke_token("ben", listed["gone"]["id"])


async def test_the_only_admin_among_several_users_stays_one(admin: Administration) -> None:
    await admin.add("anna", {"role": "admin"})
    await admin.add("ben", {})
    for change in (
        admin.remove("anna"),
        admin.change("anna", {"role": "user"}),
        admin.change("anna", {"disabled": True}),
    ):
        with pytest.raises(BadRequest, match="only admin"):
            await change
    await admin.change("ben", {"role": "admin"})
    await admin.remove("anna")
    await admin.remove("ben")  # the last of all
    assert await admin.all() == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"role": "king"}, "role"),
        ({"role": ["admin"]}, "role"),
        ({"password": "short"}, "password"),
        ({"password": 12345678}, "password"),
        ({"disabled": "yes"}, "disabled"),
        ({"waiting_limit": -1}, "waiting_limit"),
        ({"daily_pictures": True}, "daily_pictures"),
        ({"daily_pictures": 1.5}, "daily_pictures"),
        ({"daily_pictures": 10**12}, "daily_pictures"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_a_user_cannot_have_is_refused_by_its_name(
    admin: Administration, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        await admin.add("ben", fields)
    assert refused.value.field == field
    assert await admin.all() == []


@pytest.mark.parametrize("name", ["", "local", "../etc", "a b", "x" * 65, "安娜", None, 7])
async def test_odd_names_are_refused(admin: Administration, name: object) -> None:
    with pytest.raises(BadRequest, match="name"):
        await admin.add(name, {})


async def test_the_first_and_the_last_user_are_noticed_whoever_adds_and_removes_them(
    admin: Administration, table: UserTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sd_cloud.access.users.NOBODY_SECONDS", -1.0)
    known = Users(table)
    assert not await known.any()
    await admin.add("ben", {})
    assert await known.any()
    await admin.remove("ben")
    assert not await known.any()


async def test_a_name_is_taken_once(admin: Administration) -> None:
    await admin.add("ben", {})
    with pytest.raises(BadRequest, match="already"):
        await admin.add("ben", {})
