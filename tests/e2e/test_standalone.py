"""The end-to-end cases against the standalone service: a real process, the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cases import CASES, Case
from tests.e2e.controlnet import write_controlnet
from tests.e2e.serving import golden_data_dir, standalone
from tests.e2e.world import GOLDEN, NO_GOLDEN, World, picture_server

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not GOLDEN.is_dir(), reason=NO_GOLDEN)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = golden_data_dir(tmp_path_factory.mktemp("data"))
    write_controlnet(data_dir / "models" / "ControlNet" / "control_v11p_sd15_canny.safetensors")
    with picture_server() as links, standalone(data_dir, "--image-link-allow", "127.0.0.1") as url:
        yield World(url, data_dir, links, controlnet="control_v11p_sd15_canny")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_case(case: Case, world: World) -> None:
    case(world)


def test_a_data_dir_of_a_webui_is_served_as_it_is(world: World) -> None:
    names = [c["model_name"] for c in world.get("/sdapi/v1/sd-models").json()]
    assert {"tiny-a", "tiny-b"} <= set(names)
    assert Path(world.data_dir / "config.json").is_file()
