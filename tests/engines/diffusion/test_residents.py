"""What stays in memory between jobs, and what is reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.engines.base import Checkpoint, Control
from sd_cloud.errors import CheckpointNotFound, NotImplementedHere
from sd_cloud.job import Job
from sd_cloud.settings import Precision
from sd_cloud.settings_from_flags import settings_from
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"),
]


def checkpoint(name: str) -> Checkpoint:
    return Checkpoint(name, name, str(GOLDEN / "checkpoints" / f"{name}.safetensors"))


def residents(reserved_gib: float) -> tuple[Any, list[str]]:
    from sd_cloud.engines.diffusion.model import Placement
    from sd_cloud.engines.diffusion.residency import Residents

    left: list[str] = []
    return Residents(Placement(), reserved_gib, lambda model: left.append(model.file.stem)), left


def test_checkpoints_that_fit_stay_and_are_not_loaded_again() -> None:
    there, left = residents(0.1)
    first = there.model(checkpoint("tiny-a"))
    there.model(checkpoint("tiny-b"))
    assert there.model(checkpoint("tiny-a")) is first
    assert len(there) == 2 and not left


def test_when_memory_is_short_the_least_recently_used_goes_first() -> None:
    there, left = residents(0.1)
    for name in ("tiny-a", "tiny-b", "tiny-a"):
        there.model(checkpoint(name))
    there._reserved_bytes = 10**15
    there.model(checkpoint("tiny-sd2v"))
    assert left == ["tiny-b", "tiny-a"]
    assert len(there) == 1


def test_a_file_that_changed_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "changing.safetensors"
    path.write_bytes((GOLDEN / "checkpoints" / "tiny-a.safetensors").read_bytes())
    (tmp_path / "changing.yaml").write_text(
        (GOLDEN / "checkpoints" / "tiny-a.yaml").read_text("utf-8"), "utf-8"
    )
    there, left = residents(0.1)
    one = Checkpoint("changing", "changing", str(path))
    first = there.model(one)
    path.write_bytes((GOLDEN / "checkpoints" / "tiny-b.safetensors").read_bytes())
    assert there.model(one) is not first
    assert left == ["changing"]


def test_a_file_that_is_gone_is_named() -> None:
    with pytest.raises(CheckpointNotFound, match="nowhere"):
        residents(0.1)[0].model(checkpoint("nowhere"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sd_cloud.engines.diffusion.engine import create

    return create(install_models(tmp_path_factory.mktemp("data")))


def job(**changes: Any) -> Job:
    payload = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 7, **changes}
    return Job(kind="txt2img", payload=payload, options={"sd_model_checkpoint": "tiny-a"})


def made(worker: Any, one: Job) -> Any:
    return worker.run(one, lambda progress: None, Control())


def test_a_prompt_is_encoded_once_for_equal_requests(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion.text_encoders import TextEncoder

    made(worker, job())
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "hidden", None)
        made(worker, job(seed=8))
    made(worker, job(prompt="a dog"))


def test_a_lora_is_merged_once_for_equal_requests(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion import lora

    made(worker, job(prompt="a cat <lora:tiny-style:1>"))
    with monkeypatch.context() as patch:
        patch.setattr(lora, "delta", None)
        made(worker, job(prompt="a dog <lora:tiny-style:1>"))


def test_switching_thirty_times_leaves_memory_where_it_was(worker: Any) -> None:
    import psutil

    process = psutil.Process()
    names = ("tiny-a", "tiny-b")
    for turn in range(4):
        made(worker, replace(job(), checkpoint=names[turn % 2]))
    before = process.memory_info().rss
    for turn in range(30):
        made(worker, replace(job(), checkpoint=names[turn % 2]))
    assert process.memory_info().rss < before * 1.05


@pytest.mark.parametrize("saving", ["medvram", "lowvram"])
def test_saving_memory_makes_the_same_picture(worker: Any, saving: str) -> None:
    from sd_cloud.engines.diffusion.model import Placement

    wanted = made(worker, job(prompt="a cat <lora:tiny-style:1>")).pictures[0].image
    worker.workshop.residents.clear()
    worker.workshop.residents.placement = Placement(saving=saving)
    saved = made(worker, job(prompt="a cat <lora:tiny-style:1>")).pictures[0].image
    assert decibels(saved, wanted) > 60
    worker.workshop.residents.clear()
    worker.workshop.residents.placement = Placement()


@pytest.mark.parametrize(
    ("option", "value"),
    [("sd_vae_decode_method", "TAESD"), ("sd_vae_encode_method", "TAESD"), ("show_progress_type", "TAESD")],
)
def test_an_option_whose_weights_are_missing_is_refused_in_a_request_and_told_elsewhere(
    worker: Any, option: str, value: Any
) -> None:
    with pytest.raises(NotImplementedHere, match=rf"{option}: .*taesd_..coder.pth in .*VAE-taesd"):
        made(worker, job(override_settings={option: value}))
    outcome = made(worker, replace(job(), options={"sd_model_checkpoint": "tiny-a", option: value}))
    assert f"The option {option} has no effect" in outcome.info["comments"]


def test_an_option_that_is_not_there_is_refused_in_a_request_and_told_elsewhere(worker: Any) -> None:
    with pytest.raises(NotImplementedHere, match="sd_unet"):
        made(worker, job(override_settings={"sd_unet": "[TRT] fast"}))
    hosts = {"sd_model_checkpoint": "tiny-a", "sd_unet": "[TRT] fast"}
    assert "The option sd_unet has no effect" in made(worker, replace(job(), options=hosts)).info["comments"]
    assert "comments" not in made(worker, job(override_settings={"sd_unet": "None"})).info


def test_one_vae_for_everything_wins_over_what_is_asked_for(worker: Any) -> None:
    own = made(worker, job()).pictures[0].image
    other = made(worker, job(override_settings={"sd_vae": "tiny-vae.safetensors"})).pictures[0]
    shop = worker.workshop
    plain = shop.settings
    shop.settings = replace(plain, vae_path=GOLDEN / "checkpoints" / "tiny-vae.safetensors")
    try:
        forced = made(worker, job(override_settings={"sd_vae": "None"})).pictures[0]
    finally:
        shop.settings = plain
    assert decibels(forced.image, other.image) > 60
    assert decibels(forced.image, own) < 50
    assert "VAE: tiny-vae.safetensors" in forced.infotext


def test_a_machine_with_a_gpu_can_be_kept_off_it_by_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    from sd_cloud.engines.diffusion.placement import placement_for

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for command in (["--use-cpu", "all"], ["--use-cpu", "SD", "--device-id", "1"]):
        found = placement_for(settings_from(command, {}).precision)
        assert (found.device.type, found.dtype) == ("cpu", torch.float32)
    others = placement_for(settings_from(["--use-cpu", "interrogate", "--device-id", "1"], {}).precision)
    assert others.device == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("flags", "saving", "saving_sdxl"),
    [
        ({}, "none", "none"),
        ({"medvram_sdxl": True}, "none", "medvram"),
        ({"medvram": True}, "medvram", "medvram"),
        ({"medvram_sdxl": True, "lowvram": True}, "lowvram", "lowvram"),
    ],
)
def test_memory_is_saved_where_the_flags_say(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], saving: str, saving_sdxl: str
) -> None:
    from sd_cloud.engines.diffusion.placement import placement_for

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = placement_for(Precision(**flags, no_half_vae=True))
    assert (found.saving, found.saving_sdxl) == (saving, saving_sdxl)
    assert (found.dtype, found.vae_dtype) == (torch.float16, torch.float32)
