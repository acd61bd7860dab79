"""What changing checkpoints does in the webui beside giving weights: numbers drawn, LoRAs let go of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sd_cloud.engines.base import Control
from sd_cloud.job import Job
from tests.golden.golden import GOLDEN, install_models

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.noise import GlobalSource  # noqa: E402
from sd_cloud.engines.diffusion.upscale_models import RRDBNet, numbers_drawn  # noqa: E402
from sd_cloud.engines.diffusion.webui_loading import is_built_anew  # noqa: E402
from sd_cloud.engines.diffusion.webui_loading import numbers_drawn as drawn_by_model  # noqa: E402

needs_models = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"
)
SMALL = {"steps": 4, "width": 64, "height": 64, "seed": 7, "sampler_name": "Euler"}


def test_what_is_passed_over_counts_as_drawn() -> None:
    torch.manual_seed(5)
    torch.empty(100, 16).normal_()
    torch.empty(40, 33).normal_()  # no multiple of 16: the last 16 are drawn again
    torch.empty(7).uniform_()
    source = GlobalSource(5)
    source.pass_over(100 * 16 + 40 * 33 + 16 + 7)
    assert torch.equal(source.randn((3, 8)), torch.randn(3, 8))


def test_building_an_upscaler_draws_the_numbers_of_its_convolutions() -> None:
    torch.manual_seed(5)
    net = RRDBNet(features=8, growth=4, blocks=1, doublings=1)
    source = GlobalSource(5)
    source.pass_over(numbers_drawn(net))
    assert torch.equal(source.randn((3, 8)), torch.randn(3, 8))


def test_numbers_may_be_passed_over_in_parts() -> None:
    at_once, in_parts = GlobalSource(5), GlobalSource(5)
    at_once.pass_over((1 << 20) + 3)
    in_parts.pass_over(1 << 20)
    in_parts.pass_over(3)
    assert torch.equal(at_once.randn((20,)), in_parts.randn((20,)))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sd_cloud.engines.diffusion.engine import create

    data_dir = tmp_path_factory.mktemp("data")
    settings = install_models(data_dir)
    twins = data_dir / "models" / "Stable-diffusion" / "twins"
    twins.mkdir()
    (twins / "twin.safetensors").symlink_to(GOLDEN / "checkpoints" / "tiny-a.safetensors")
    (twins / "twin.yaml").symlink_to(GOLDEN / "checkpoints" / "tiny-a.yaml")
    from safetensors.torch import load_file

    torch.save(load_file(GOLDEN / "checkpoints" / "tiny-b.safetensors"), twins / "twin.ckpt")
    return create(settings)


def refined(worker: Any, checkpoint: str, refiner: str) -> Any:
    payload = {**SMALL, "prompt": "a cat <lora:tiny-style:1>", "refiner_switch_at": 0.5}
    job = Job("txt2img", {**payload, "refiner_checkpoint": refiner}, checkpoint=checkpoint)
    worker.run(job, lambda progress: None, Control())
    return {model.file.name: model for model in worker.workshop.residents._models.values()}


@pytest.mark.engine
@needs_models
def test_a_refiner_of_another_configuration_works_without_the_loras(worker: Any) -> None:
    models = refined(worker, "tiny-a", "tiny-b")
    first, second = models["tiny-a.safetensors"], models["tiny-b.safetensors"]
    assert is_built_anew(first, second)
    assert worker.workshop.loras.state_of(first) != ()
    assert worker.workshop.loras.state_of(second) == ()
    assert drawn_by_model(second) == (49408 + 77) * 64


@pytest.mark.engine
@needs_models
def test_a_refiner_of_the_same_configuration_keeps_them(worker: Any) -> None:
    models = refined(worker, "twins/twin.safetensors", "twins/twin.ckpt")
    first, second = models["twin.safetensors"], models["twin.ckpt"]
    assert not is_built_anew(first, second)
    assert worker.workshop.loras.state_of(second) != ()


@pytest.mark.engine
@needs_models
def test_checkpoints_without_a_yaml_have_the_configuration_of_their_kind(worker: Any, tmp_path: Path) -> None:
    models = refined(worker, "tiny-a", "tiny-b")
    first, second = models["tiny-a.safetensors"], models["tiny-b.safetensors"]
    before = first.file, second.file
    first.file, second.file = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    try:
        assert not is_built_anew(first, second)
    finally:
        first.file, second.file = before
