"""The end-to-end cases inside the real webui, with its page and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.cases import CASES, Case
from tests.e2e.world import World, picture_server
from tests.webui.real import (
    CONTROLNET,
    CONTROLNET_MODEL,
    NO_CONTROLNET,
    Running,
    add_controlnet,
    data_dir,
    webui,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["api only", "with its page"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = data_dir(tmp_path_factory.mktemp("data"))
    if CONTROLNET.is_dir():
        add_controlnet(root)
    ui = request.param == "with its page"
    with webui(root, "--image-link-allow", "127.0.0.1", ui=ui) as started:
        yield started


@pytest.fixture(scope="module")
def world(running: Running) -> Iterator[World]:
    with picture_server() as links:
        yield World(
            running.url,
            running.data_dir,
            links,
            controlnet=CONTROLNET_MODEL if CONTROLNET.is_dir() else None,
            why_no_controlnet=NO_CONTROLNET,
        )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_case(case: Case, world: World) -> None:
    case(world)


def test_nothing_of_ours_went_wrong_unseen(running: Running) -> None:
    assert "sd-cloud-api could not" not in running.said
