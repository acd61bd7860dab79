"""What several rooms' tests share: one PostgreSQL server for each process of tests, where there is one; and
how tests are dealt out to several processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples

# Pictures are compared to the byte, and the number of threads that compute one may change its last bit. It
# also lets several processes of tests keep out of each other's way.
os.environ["OMP_NUM_THREADS"] = "1"

# How long an example takes is the machine's affair, and what else it has to do.
examples.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("any machine")

#: Folders whose tests share a started server, a browser or a webui: in two processes there would be two.
SHARED = ("tests/browser/", "tests/webui/")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    from tests.store import postgres

    programs = postgres.binaries()
    if programs is None:
        pytest.skip(postgres.WHERE_FROM)
    with postgres.running(programs) as url:
        yield url


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes what takes seconds comes first: else one would be left over with it at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not is_slow(item))


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("engine") is not None and not item.get_closest_marker("skip")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, for what they share; those of some folders, too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = next((one for one in SHARED if nodeid.startswith(one)), None)
            return folder or nodeid.split("::", 1)[0]

    config.option.loadscopereorder = False  # not by the number of tests: a browser's are few
    return ByFile(config, log)
