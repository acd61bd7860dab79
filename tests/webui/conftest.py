"""A real webui for the tests of what runs inside one; skipped where there is none."""

from __future__ import annotations

import pytest
from tests.e2e.world import GOLDEN, NO_GOLDEN
from tests.webui.real import NO_WEBUI, WEBUI


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/webui/" not in item.nodeid:
            continue
        if not WEBUI.is_dir():
            item.add_marker(pytest.mark.skip(reason=NO_WEBUI))
        elif not GOLDEN.is_dir():
            item.add_marker(pytest.mark.skip(reason=NO_GOLDEN))
