from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sd_cloud.job import Target
from tests.dialects.sdapi_world import Native, base64_png, native, picture_in

SMALL: dict[str, Any] = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 1}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as world:
        yield world


async def test_a_txt2img_request_comes_back_as_pictures_parameters_and_info(world: Native) -> None:
    answer = (await world.post("txt2img", {**SMALL, "n_iter": 2})).json()
    assert list(answer) == ["images", "parameters", "info"]
    pictures = [picture_in(one) for one in answer["images"]]
    assert [p.size for p in pictures] == [(64, 64)] * 2
    assert pictures[1].info["parameters"] == "Seed: 2"
    assert json.loads(answer["info"])["all_seeds"] == [1, 2]


async def test_the_engine_gets_the_webuis_defaults_and_its_own_names(world: Native) -> None:
    await world.post(
        "txt2img", {"prompt": "a cat", "steps": 1, "cfg_scale": None, "sampler_name": "k_euler_a"}
    )
    payload = world.job.payload
    assert (payload["width"], payload["cfg_scale"], payload["seed"]) == (512, 7.0, -1)
    assert (payload["sampler_name"], payload["scheduler"]) == ("Euler a", "Automatic")
    assert payload["do_not_save_samples"] is True and payload["do_not_save_grid"] is True
    assert world.job.target is None and world.job.owner == "local"


async def test_without_a_sampler_the_sampler_index_counts_and_is_euler(world: Native) -> None:
    await world.post("txt2img", SMALL)
    assert world.job.payload["sampler_name"] == "Euler"
    await world.post("txt2img", {**SMALL, "sampler_index": "DDIM"})
    assert world.job.payload["sampler_name"] == "DDIM"


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "Automatic")),
        ("DPM++ 2M", "karras", ("DPM++ 2M", "Automatic")),
        ("Euler a Karras", None, ("Euler a", "Karras")),
        ("euler A", "SGMUniform", ("Euler a", "SGM Uniform")),
        ("DPM++ 2M SDE Exponential", "Karras", ("DPM++ 2M SDE", "Automatic")),
        ("DDIM", "", ("DDIM", "Automatic")),
    ],
)
async def test_samplers_and_schedulers_are_read_as_the_webui_reads_them(
    world: Native, sampler: str, scheduler: str | None, expected: tuple[str, str]
) -> None:
    answer = await world.post("txt2img", {**SMALL, "sampler_name": sampler, "scheduler": scheduler})
    assert answer.status_code == 200, answer.text
    assert (world.job.payload["sampler_name"], world.job.payload["scheduler"]) == expected
    assert answer.json()["parameters"]["sampler_name"] == sampler


async def test_numbers_are_read_as_leniently_as_the_webui_reads_them(world: Native) -> None:
    body = {**SMALL, "steps": 2.7, "width": "64", "cfg_scale": "7", "prompt": 5, "batch_size": True}
    answer = await world.post("txt2img", body)
    assert answer.status_code == 200, answer.text
    payload = world.job.payload
    assert (payload["steps"], payload["width"], payload["cfg_scale"], payload["prompt"]) == (2, 64, 7.0, "5")


async def test_the_checkpoint_and_vae_of_a_request_are_the_jobs_and_no_change_of_options(
    world: Native,
) -> None:
    override = {"sd_model_checkpoint": "second", "sd_vae": "soft.pt", "CLIP_stop_at_last_layers": 2}
    answer = await world.post("txt2img", {**SMALL, "override_settings": override})
    assert answer.status_code == 200, answer.text
    assert (world.job.checkpoint, world.job.vae) == ("second.safetensors", "soft.pt")
    assert world.job.payload["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert answer.json()["parameters"]["override_settings"] == override
    assert (await world.get("options"))["sd_model_checkpoint"] == "first.safetensors"


async def test_save_images_gives_the_job_a_target_and_send_images_false_sends_none(world: Native) -> None:
    answer = await world.post("txt2img", {**SMALL, "n_iter": 2, "save_images": True, "send_images": False})
    assert answer.json()["images"] == []
    assert world.job.target == Target("webui")
    answer = await world.post("txt2img", {**SMALL, "n_iter": 2, "save_images": True})
    assert len(answer.json()["images"]) == 3  # the grid first


@pytest.mark.parametrize(("kind", "pillow"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
async def test_pictures_come_in_the_format_asked_for_with_their_infotext(
    world: Native, kind: str, pillow: str
) -> None:
    body = {**SMALL, "override_settings": {"samples_format": kind}}
    encoded = (await world.post("txt2img", body)).json()["images"][0]
    assert picture_in(encoded).format == pillow
    assert (await world.post("png-info", {"image": encoded})).json()["info"] == "Seed: 1"


async def test_without_enable_pnginfo_a_picture_tells_nothing(world: Native) -> None:
    await world.post("options", {"enable_pnginfo": False})
    encoded = (await world.post("txt2img", SMALL)).json()["images"][0]
    assert "parameters" not in picture_in(encoded).info


async def test_img2img_leaves_the_init_images_out_of_its_answer_unless_asked(world: Native) -> None:
    body = {**SMALL, "init_images": [base64_png()], "mask": base64_png()}
    parameters = (await world.post("img2img", body)).json()["parameters"]
    assert parameters["init_images"] is None and parameters["mask"] is None
    assert parameters["denoising_strength"] == 0.75
    assert world.job.payload["init_images"] == body["init_images"]
    parameters = (await world.post("img2img", {**body, "include_init_images": True})).json()["parameters"]
    assert parameters["init_images"] == body["init_images"]


async def test_one_init_image_may_stand_for_a_list_of_one(world: Native) -> None:
    answer = await world.post("img2img", {**SMALL, "init_images": base64_png()})
    assert answer.status_code == 200 and world.job.payload["init_images"] == [base64_png()]


async def test_styles_reach_the_engine_by_name(world: Native) -> None:
    await world.post("txt2img", {**SMALL, "styles": ["ink"]})
    assert world.job.payload["styles"] == ["ink"] and world.job.payload["prompt"] == "a cat"


async def test_an_infotext_fills_in_what_the_request_does_not_say(world: Native) -> None:
    infotext = (
        "a dog\nNegative prompt: cat\nSteps: 7, Sampler: DDIM, CFG scale: 3.5, Seed: 9, Size: 72x80, "
        "Clip skip: 2, Version: 1.10.1"
    )
    answer = await world.post("txt2img", {"infotext": infotext, "steps": 1})
    payload = world.job.payload
    assert (payload["prompt"], payload["negative_prompt"], payload["seed"]) == ("a dog", "cat", 9)
    assert (payload["width"], payload["height"], payload["steps"]) == (72, 80, 1)
    assert payload["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert answer.json()["parameters"]["cfg_scale"] == 3.5


async def test_options_that_an_infotext_tells_count_where_they_differ_from_the_hosts(world: Native) -> None:
    await world.post("options", {"CLIP_stop_at_last_layers": 2, "infotext_skip_pasting": ["CFG scale"]})
    infotext = (
        "a dog\nSteps: 7, Sampler: DDIM, CFG scale: 3.5, Model hash: 1234567890, Denoising strength: 0.5, "
        "Hypertile VAE: True, Tiling: False, Token merging ratio: 0.3"
    )
    await world.post("txt2img", {"infotext": infotext})
    payload = world.job.payload
    assert payload["override_settings"] == {
        "CLIP_stop_at_last_layers": 1,  # an infotext without one was made with 1
        "hypertile_enable_vae": True,
        "token_merging_ratio": 0.3,
    }
    assert world.job.checkpoint is None  # disable_weights_auto_swap is on
    assert payload["cfg_scale"] == 7.0 and payload["enable_hr"] is False
    await world.post("options", {"disable_weights_auto_swap": False})
    refused = await world.post("txt2img", {"infotext": infotext})
    assert refused.status_code == 404 and "1234567890" in refused.json()["detail"]


async def test_the_script_extra_options_sets_those_that_the_host_lists(world: Native) -> None:
    listed = ["CLIP_stop_at_last_layers", "randn_source"]
    await world.post("options", {"extra_options_txt2img": listed})
    scripts = {"alwayson_scripts": {"Extra options": {"args": [2, "CPU"]}}}
    await world.post("txt2img", {**SMALL, **scripts, "override_settings": {"randn_source": "NV"}})
    options = {"CLIP_stop_at_last_layers": 2, "randn_source": "NV"}
    assert world.job.payload["override_settings"] == options
    await world.post("img2img", {**SMALL, **scripts, "init_images": [base64_png()]})
    assert world.job.payload["override_settings"] == {}


async def test_img2img_takes_seeds_sampler_and_options_from_an_infotext_and_no_more(world: Native) -> None:
    infotext = (
        "a dog\nSteps: 7, Seed: 9, Size: 72x80, Seed resize from: 64x96, RNG: CPU, "
        "Soft inpainting enabled: True, Soft inpainting schedule bias: 2, "
        "Soft inpainting preservation strength: 0.5, "
        "Soft inpainting transition contrast boost: 4, Soft inpainting mask influence: 0, "
        "Soft inpainting difference threshold: 0.5, Soft inpainting difference contrast: 2"
    )
    sent = {"steps": 2, "width": 64, "height": 64, "init_images": [base64_png()], "infotext": infotext}
    await world.post("img2img", sent)
    payload = world.job.payload
    assert (payload["prompt"], payload["seed"], payload["steps"]) == ("", 9, 2)
    assert (payload["seed_resize_from_w"], payload["seed_resize_from_h"]) == (96, 64)  # as the webui has them
    assert payload["sampler_name"] == "DPM++ 2M"  # what it takes where no sampler is named
    assert payload["override_settings"] == {"randn_source": "CPU"}
    assert payload["alwayson_scripts"]["soft inpainting"]["args"] == [True, 2, 0.5, 4, 0, 0.5, 2]


async def test_progress_tells_of_the_running_job_and_interrupt_stops_it(world: Native) -> None:
    idle = await world.get("progress")
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0 and idle["current_image"] is None

    world.engine.step_seconds = 0.05
    made = asyncio.create_task(world.post("txt2img", {**SMALL, "steps": 200}))
    while (await world.get("progress"))["state"]["sampling_step"] < 2:
        assert not made.done(), made.result().text
        await asyncio.sleep(0.01)
    running = await world.get("progress?skip_current_image=true")
    assert 0 < running["progress"] < 1 and running["eta_relative"] > 0
    assert running["state"]["sampling_steps"] == 200 and running["state"]["job"] == "scripts_txt2img"
    assert (await world.post("interrupt")).json() == {}
    assert len((await made).json()["images"]) == 1
    assert (await world.get("progress"))["state"]["job_count"] == 0


async def test_png_info_reads_an_infotext_field_by_field(world: Native) -> None:
    infotext = (
        'a cat,\nsitting\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, Size: 64x32, Note: "a, b: c"'
    )
    answer = (
        await world.post(
            "png-info", {"image": "data:image/png;base64," + base64_png(parameters=infotext, more="x")}
        )
    ).json()
    assert answer["info"] == infotext and answer["items"] == {"more": "x"}
    parameters = answer["parameters"]
    assert parameters["Prompt"] == "a cat,\nsitting" and parameters["Negative prompt"] == "dog"
    assert (parameters["Size-1"], parameters["Size-2"], parameters["Note"]) == ("64", "32", "a, b: c")


async def test_png_info_of_a_picture_without_an_infotext_has_the_webuis_defaults(world: Native) -> None:
    answer = (await world.post("png-info", {"image": base64_png()})).json()
    assert (answer["info"], answer["items"]) == ("", {})
    assert answer["parameters"]["Prompt"] == "" and answer["parameters"]["Clip skip"] == "1"


async def test_extras_hand_the_pictures_to_the_engine(world: Native) -> None:
    answer = (await world.post("extra-single-image", {"image": base64_png(), "upscaler_1": "Lanczos"})).json()
    assert set(answer) == {"html_info", "image"} and picture_in(answer["image"])
    assert world.job.kind == "extras" and world.job.payload["upscaling_resize"] == 2
    batch = {"imageList": [{"data": base64_png(), "name": "a.png"}]}
    answer = (await world.post("extra-batch-images", batch)).json()
    assert set(answer) == {"html_info", "images"} and len(answer["images"]) == 1
    single = {"image": base64_png(), "show_extras_results": False}
    assert (await world.post("extra-single-image", single)).json()["image"] is None


async def test_a_request_sent_again_with_its_key_is_answered_with_the_same_pictures_where_they_were_saved(
    world: Native,
) -> None:
    async def ask(key: str, **changes: Any) -> httpx.Response:
        return await world.client.post(
            "/sdapi/v1/txt2img", json={"prompt": "x", **changes}, headers={"Idempotency-Key": key}
        )

    first, again = await ask("1", save_images=True), await ask("1", save_images=True)
    assert again.status_code == 200 and len(world.engine.started) == 1
    same = [picture_in(one.json()["images"][0]).tobytes() for one in (first, again)]
    assert same[0] == same[1] and json.loads(first.json()["info"]) == json.loads(again.json()["info"])
    assert (await ask("1", save_images=True, steps=3)).status_code == 409

    await ask("2")
    refused = await ask("2")
    assert refused.status_code == 410 and "save_images" in refused.json()["detail"]
    assert len(world.engine.started) == 2
