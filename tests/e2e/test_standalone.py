"""The end-to-end cases against the standalone service: a real process, the real engine."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sd_cloud.settings import settings_below
from tests.e2e.cases import CASES, Case
from tests.e2e.controlnet import write_controlnet
from tests.e2e.serving import golden_data_dir, standalone
from tests.e2e.world import GOLDEN, NO_GOLDEN, World, base64_of, picture_server, png_of
from tests.engines.diffusion.test_preprocess_networks import write

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


def test_a_control_map_is_detected_by_a_network_in_the_engines_process(world: World) -> None:
    write("lineart/sk_model.pth", settings_below(world.data_dir))
    asked = {"controlnet_module": "lineart_realistic", "controlnet_processor_res": 64}
    sent = [base64_of(png_of()), world.links + "/boy.png"]
    answer = world.post("/controlnet/detect", {**asked, "controlnet_input_images": sent})
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["images"]
    assert first == second and answer.json()["info"] == "Success"
    with Image.open(io.BytesIO(base64.b64decode(first))) as shown:
        assert shown.size == (64, 64) and len(shown.convert("L").getcolors()) > 1
