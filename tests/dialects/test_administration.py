from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dialects.test_pages import ADMIN, BOB, Site, site_of

USERS = "/sd-cloud/v1/users"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path) as made:
        yield made


async def test_users_are_added_changed_and_removed_over_http(site: Site) -> None:
    asked = {"name": "anna", "role": "admin", "password": "long enough", "daily_pictures": 3}
    added = await site.ask("POST", USERS, json=asked)
    assert added.status_code == 201 and "long enough" not in added.text
    assert (await site.ask("POST", USERS, json={"name": "ben"})).status_code == 201
    changed = await site.ask("PATCH", f"{USERS}/ben", json={"role": "admin", "waiting_limit": 2})
    assert changed.json()["waiting_limit"] == 2
    assert (await site.ask("PATCH", f"{USERS}/ben", json={})).status_code == 422
    assert (await site.ask("DELETE", f"{USERS}/anna")).status_code == 200
    assert [one["name"] for one in (await site.ask("GET", USERS)).json()["users"]] == ["ben"]
    assert (await site.ask("PATCH", f"{USERS}/anna", json={"role": "user"})).status_code == 404


async def test_a_token_made_over_http_lets_its_user_in_until_it_is_revoked(site: Site) -> None:
    for body in ({"name": "anna", "role": "admin"}, {"name": "ben"}):
        await site.ask("POST", USERS, json=body)
    made = await site.ask("POST", f"{USERS}/ben/tokens", json={"label": "laptop", "days": 1})
    token = made.json()["token"]
    headers = {"Authorization": token}
    assert (await site.ask("GET", "/sd-cloud/v1/tasks", None, headers=headers)).status_code == 200
    assert (await site.ask("GET", USERS, None, headers=headers)).status_code == 403
    [listed] = (await site.ask("GET", f"{USERS}/ben/tokens")).json()["tokens"]
    assert listed["label"] == "laptop" and token not in str(listed)
    assert (await site.ask("DELETE", f"{USERS}/ben/tokens/{listed['id']}")).status_code == 200
    assert (await site.ask("GET", "/sd-cloud/v1/tasks", None, headers=headers)).status_code == 401


async def test_log_in_gives_a_token_for_the_right_password_only(site: Site) -> None:
    await site.ask("POST", USERS, json={"name": "anna", "role": "admin", "password": "long enough"})
    wrong = await site.ask("POST", "/login", None, json={"userName": "anna", "password": "long enougH"})
    assert wrong.status_code == 401
    right = await site.ask("POST", "/login", None, json={"userName": "anna", "password": "long enough"})
    headers = {"Token": right.json()["token"]}
    assert (await site.ask("GET", USERS, None, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", USERS), ("POST", USERS), ("PATCH", f"{USERS}/bob"), ("DELETE", f"{USERS}/bob"),
        ("GET", f"{USERS}/bob/tokens"), ("POST", f"{USERS}/bob/tokens"), ("DELETE", f"{USERS}/bob/tokens/x"),
    ],
)  # fmt: skip
async def test_a_plain_user_manages_nobody_not_even_themselves(site: Site, method: str, path: str) -> None:
    await site.ask("POST", USERS, json={"name": "bob"}, caller=ADMIN)
    assert (await site.ask(method, path, BOB, json={"role": "admin"})).status_code == 403
