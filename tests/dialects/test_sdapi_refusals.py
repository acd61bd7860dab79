"""Wrong input: the webui's codes and shapes, with a sentence that names the field and the way out."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialects.sdapi_world import Native, base64_png, native

SMALL: dict[str, Any] = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 1}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as world:
        yield world


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"sampler_name": "Eular"}, 404, "Sampler not found: 'Eular'; there are DPM++ 2M, "),
        ({"sampler_index": "Eular"}, 404, "Sampler not found"),
        ({"scheduler": "linear"}, 404, "Scheduler not found: 'linear'; there are Automatic, "),
        ({"enable_hr": True, "hr_upscaler": "Big"}, 404, "Upscaler not found: 'Big'; there are Latent, "),
        ({"hr_sampler_name": "Eular"}, 404, "hr_sampler_name: Sampler not found"),
        ({"hr_scheduler": "linear"}, 404, "hr_scheduler: Scheduler not found"),
        ({"script_name": "my script"}, 422, "Script 'my script' not found; there are prompt matrix, prompts"),
        ({"script_name": "custom code"}, 501, "script_name"),
        ({"alwayson_scripts": {"adetailer": {"args": []}}}, 422, "Always on script adetailer not found"),
        (
            {"alwayson_scripts": {"refiner": {"args": "x"}}},
            422,
            "alwayson_scripts.refiner.args: expected a list",
        ),
        (
            {"alwayson_scripts": {"seed": []}},
            422,
            'alwayson_scripts.seed: expected an object such as {"args"',
        ),
        (
            {"override_settings": {"sd_model_checkpoint": "third"}},
            404,
            "first.safetensors, second.safetensors",
        ),
        ({"override_settings": {"sd_vae": "hard.pt"}}, 404, "there are Automatic, None, soft.pt"),
        (
            {"override_settings": {"CLIP_stop_at_last_layer": 2}},
            404,
            "did you mean 'CLIP_stop_at_last_layers'",
        ),
        ({"override_settings": {"CLIP_stop_at_last_layers": "x"}}, 422, "expected a number"),
        ({"override_settings": {"outdir_samples": "/etc"}}, 422, "outdir_samples: "),
        ({"refiner_checkpoint": "third"}, 404, "refiner_checkpoint: no checkpoint 'third'"),
        ({"enable_hr": True, "hr_checkpoint_name": "third"}, 404, "hr_checkpoint_name"),
        ({"steps": 0}, 422, "steps: expected 1 to 1000, got 0"),
        ({"width": 0}, 422, "width: expected 8 to 16384, got 0"),
        ({"width": 16384, "height": 16384}, 422, "width, height: a picture of"),
        ({"width": 2048, "height": 2048, "enable_hr": True, "hr_scale": 8}, 422, "hr_scale"),
        (
            {"width": 64, "height": 64, "enable_hr": True, "hr_resize_x": 8, "hr_resize_y": 16384},
            422,
            "hr_resi",
        ),
        ({"batch_size": 0}, 422, "batch_size"),
        ({"eta": 1e30}, 422, "eta: expected 0 to 1000, got 1e+30"),
        ({"s_noise": 1e30}, 422, "s_noise: expected -1000 to 1000"),
        ({"n_iter": -1}, 422, "n_iter"),
        ({"batch_size": 60, "n_iter": 60}, 422, "3600 pictures"),
        ({"seed": 2**64}, 422, "seed"),
        ({"seed": -2}, 422, "seed"),
        ({"denoising_strength": 1.5}, 422, "denoising_strength: expected 0 to 1, got 1.5"),
        ({"prompt": "\ud800"}, 422, "prompt: the text holds half a surrogate pair"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    world: Native, change: dict[str, Any], status: int, said: str
) -> None:
    answer = await world.client.post(
        "/sdapi/v1/txt2img",
        content=json.dumps({**SMALL, **change}),
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    assert world.engine.started == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
async def test_numbers_that_json_does_not_have_are_refused(world: Native, value: str) -> None:
    for body in (f'{{"cfg_scale": {value}}}', f'{{"override_settings": {{"eta_ddim": {value}}}}}'):
        answer = await world.client.post(
            "/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422 and "finite" in answer.text


async def test_a_body_that_does_not_fit_the_model_gets_the_validation_errors_of_the_webui(
    world: Native,
) -> None:
    answer = await world.post("txt2img", {"steps": "many", "width": [1]})
    assert answer.status_code == 422
    problems = answer.json()["detail"]
    assert [problem["loc"] for problem in problems] == [["body", "steps"], ["body", "width"]]
    assert all(set(problem) == {"loc", "msg", "type"} for problem in problems)


@pytest.mark.parametrize("body", ["{", "[]", "", "null", '"x"', "[" * 5000])
async def test_a_body_that_is_no_object_is_refused(world: Native, body: str) -> None:
    for path in ("txt2img", "img2img", "options", "png-info", "extra-single-image"):
        answer = await world.client.post(
            f"/sdapi/v1/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (400, 422), (path, answer.text)
        assert "detail" in answer.json()


async def test_img2img_without_a_picture_is_told_so_in_the_webuis_words(world: Native) -> None:
    for body in (SMALL, {**SMALL, "init_images": []}):
        answer = await world.post("img2img", body)
        assert answer.status_code == 404 and answer.json()["detail"] == "Init image not found"
    answer = await world.post("img2img", {**SMALL, "init_images": [5]})
    assert answer.status_code == 422 and "init_images[0]: Invalid encoded image" in answer.json()["detail"]


@pytest.mark.parametrize(
    "image",
    ["", "x", "%%%", base64.b64encode(b"no picture").decode(), "data:image/png;base64,"],
)
async def test_png_info_of_what_is_no_picture_is_refused(world: Native, image: str) -> None:
    answer = await world.post("png-info", {"image": image})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("image: ")


async def test_extras_need_a_picture_and_an_upscaler_that_is_there(world: Native) -> None:
    answer = await world.post("extra-single-image", {"image": base64_png(), "upscaler_1": "Big"})
    assert answer.status_code == 404 and "there are None, Lanczos, R-ESRGAN 4x+" in answer.json()["detail"]
    answer = await world.post("extra-single-image", {})
    assert answer.status_code == 422 and "image: Invalid encoded image" in answer.json()["detail"]
    assert (await world.post("extra-batch-images", {"imageList": []})).status_code == 422
    assert (await world.post("extra-single-image", {"upscaling_resize": 0})).status_code == 422


async def test_interrogate_says_what_is_missing(world: Native) -> None:
    assert (await world.post("interrogate", {})).json()["detail"] == "Image not found"
    answer = await world.post("interrogate", {"image": base64_png(), "model": "blip9"})
    assert (answer.status_code, answer.json()["detail"]) == (404, "Model not found")
    for model, file in (
        ("clip", "model_base_caption_capfilt_large.pth"),
        ("deepdanbooru", "model-resnet_custom_v3.pt"),
    ):
        answer = await world.post("interrogate", {"image": base64_png(), "model": model})
        assert answer.status_code == 501
        assert file in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork"]
)
async def test_training_is_refused_with_a_sentence(world: Native, path: str) -> None:
    answer = await world.post(path, {})
    assert answer.status_code == 501 and "training" in answer.json()["detail"]


async def test_an_engine_that_fails_answers_in_the_webuis_shape_and_serves_the_next(world: Native) -> None:
    answer = await world.post("txt2img", {**SMALL, "prompt": "fail"})
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "engine_failed",
        "detail": "asked to fail",
        "body": "",
        "errors": "asked to fail",
    }
    assert (await world.post("txt2img", SMALL)).status_code == 200


async def test_a_full_queue_says_when_to_come_again(world: Native) -> None:
    world.service.queue_limit = 0
    answer = await world.post("txt2img", SMALL)
    assert answer.status_code == 429 and answer.headers["Retry-After"] == "5"


ODD: tuple[Any, ...] = (None, "", "\x00图", -1, 1e308, 2**70, [[1]], {"a": [None]})


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
async def test_no_odd_value_in_any_field_is_a_failure_of_the_service(world: Native, kind: str) -> None:
    models = world.app.openapi()["components"]["schemas"]
    fields = models[f"StableDiffusionProcessing{kind.replace('img', 'Img').replace('txt', 'Txt')}"][
        "properties"
    ]
    body = {**SMALL, "init_images": [base64_png()]}
    for field in fields:
        for value in ODD:
            answer = await world.post(kind, {**body, field: value})
            assert answer.status_code < 500 or answer.status_code == 501, (field, value, answer.text)
            answer.json()


async def test_no_odd_value_of_any_option_is_a_failure_of_the_service(world: Native) -> None:
    options = {type(value): name for name, value in (await world.get("options")).items()}
    for option in (*options.values(), "outdir_samples", "samples_format", "sd_model_checkpoint", "sd_vae"):
        for value in ODD:
            answer = await world.post("options", {option: value})
            assert answer.status_code < 500, (option, value, answer.text)
