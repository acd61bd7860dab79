from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dialects.sdapi_world import Native, native
from tests.fakes import MEMORY


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as world:
        yield world


async def test_all_options_can_be_sent_back_as_they_came(world: Native) -> None:
    options = await world.get("options")
    answer = await world.post("options", options)
    assert answer.status_code == 200 and answer.json() is None
    assert await world.get("options") == options
    stored = json.loads((world.settings.data_dir / "config.json").read_text())
    assert set(stored) <= {"sd_model_checkpoint", "sd_checkpoint_hash"}


async def test_the_checkpoint_among_the_options_is_the_first_by_name_until_one_is_set(world: Native) -> None:
    assert (await world.get("options"))["sd_model_checkpoint"] == "first.safetensors"
    assert (await world.post("options", {"sd_model_checkpoint": "second"})).status_code == 200
    assert (await world.get("options"))["sd_model_checkpoint"] == "second.safetensors"
    await world.post("txt2img", {"steps": 1, "width": 64, "height": 64})
    assert world.job.options["sd_model_checkpoint"] == "second.safetensors"


async def test_a_change_of_options_does_not_reach_a_job_that_was_taken_before(world: Native) -> None:
    await world.post("txt2img", {"steps": 1, "width": 64, "height": 64})
    before = world.job
    await world.post("options", {"CLIP_stop_at_last_layers": 3})
    assert before.options["CLIP_stop_at_last_layers"] == 1


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"no_such": 1}, 404, "no_such: there is no such option"),
        ({"jpeg_quality": "high"}, 422, "jpeg_quality: expected a number"),
        (
            {"sd_model_checkpoint": "third"},
            404,
            "model 'third' not found; installed: first.safetensors, second",
        ),
        ({"sd_vae": "hard.pt"}, 404, "sd_vae: no VAE 'hard.pt'"),
        ({"outdir_samples": "/etc", "tiling": True}, 422, "outdir_samples: "),
    ],
)
async def test_an_option_that_cannot_be_set_changes_none(
    world: Native, change: dict[str, object], status: int, said: str
) -> None:
    before = await world.get("options")
    answer = await world.post("options", change)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert await world.get("options") == before


async def test_flags_tell_how_the_service_was_started(world: Native) -> None:
    flags = await world.get("cmd-flags")
    assert flags["data_dir"] == str(world.settings.data_dir)
    assert flags["lora_dir"] == f"{world.settings.data_dir}/models/Lora"


async def test_memory_is_told_in_bytes(world: Native) -> None:
    told = await world.get("memory")
    ram = told["ram"]
    assert told["cuda"] == MEMORY, "the engine knows its device; this process does not"
    assert ram["total"] == pytest.approx(ram["free"] + ram["used"]) and ram["total"] > 1 << 28


@pytest.mark.parametrize(
    "path", ["refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings", "interrupt", "skip"]
)
async def test_asking_for_nothing_in_particular_is_fine_at_any_time(world: Native, path: str) -> None:
    assert (await world.post(path)).status_code == 200


async def test_lists_are_the_catalogues(world: Native) -> None:
    assert [one["title"] for one in await world.get("sd-models")] == [
        "first.safetensors",
        "second.safetensors",
    ]
    assert [one["model_name"] for one in await world.get("sd-vae")] == ["soft.pt"]
    assert [one["path"] for one in await world.get("loras")] == ["/models/style.safetensors"]
    assert (await world.get("embeddings"))["loaded"]["word"]["vectors"] == 2
    assert [one["name"] for one in await world.get("realesrgan-models")] == ["R-ESRGAN 4x+"]
    scripts = await world.get("scripts")
    assert "loopback" in scripts["img2img"] and "loopback" not in scripts["txt2img"]
    assert {"seed", "refiner", "sampler", "controlnet", "Hypertile"} <= set(scripts["txt2img"])


async def test_prompt_styles_are_read_from_the_file_as_it_is_now(world: Native) -> None:
    assert await world.get("prompt-styles") == []
    (world.settings.data_dir / "styles.csv").write_text("name,prompt,negative_prompt\nink,ink,\n")
    assert await world.get("prompt-styles") == [{"name": "ink", "prompt": "ink", "negative_prompt": ""}]


async def test_unloading_is_the_engines_and_the_next_request_is_served(world: Native) -> None:
    assert (await world.post("unload-checkpoint")).json() == {}
    assert world.engine.unloaded == 1
    assert (await world.post("reload-checkpoint")).json() == {}
    assert (await world.post("txt2img", {"steps": 1, "width": 64, "height": 64})).status_code == 200


async def test_the_service_is_stopped_over_the_api_only_where_the_flag_allows_it(tmp_path: Path) -> None:
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        async with native(tmp_path / "without") as world:
            assert (await world.post("server-stop")).status_code == 404
        async with native(tmp_path / "with", api_server_stop=True) as world:
            assert (await world.post("server-restart")).status_code == 501
            assert stopped == []
            assert (await world.post("server-stop")).status_code == 200
        assert stopped == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
