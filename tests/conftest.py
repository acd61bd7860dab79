"""What several rooms' tests share: one PostgreSQL server for the whole run, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    from tests.store import postgres

    programs = postgres.binaries()
    if programs is None:
        pytest.skip(postgres.WHERE_FROM)
    with postgres.running(programs) as url:
        yield url
