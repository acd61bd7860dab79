from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sd_cloud.store.database import Database, open_database
from tests.store import postgres

Open = Callable[[], Database]
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def open_one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the test's database, each time as another process of the same service would."""
    url = None
    if request.param == "postgresql":
        url = postgres.fresh_database(request.getfixturevalue("postgres_url"), f"test{next(_numbers)}")
    opened: list[Database] = []

    def open_it() -> Database:
        opened.append(open_database(tmp_path / "state", url))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture
def database(open_one: Open) -> Database:
    return open_one()
