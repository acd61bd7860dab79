"""The end-to-end cases: one list, run against the standalone service and inside the real webui.

The requests are the EAS guide's own examples, word for word but for host and file names, and but
for width, height, steps and prompt where the guide's would take minutes on a CPU.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.world import World, base64_of, pictures_of, png_of

Case = Callable[[World], None]
CASES: list[Case] = []

SMALL = {"width": 64, "height": 64, "steps": 2}
DATE = r"\d{4}-\d{2}-\d{2}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def case(function: Case) -> Case:
    CASES.append(function)
    return function


def eas(world: World, kind: str, body: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = world.post(f"/sdapi/v1/{kind}{query}", body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    assert content["images"] == [] and content["parameters"]["status"] == 0, content
    assert isinstance(content["info"], str)
    return content


def seeds_of(answer: dict[str, Any]) -> list[int]:
    return [int(seed) for seed in answer["parameters"]["seed"].split(",")]


@case
def the_plain_curl_example_answers_with_base64(world: World) -> None:
    answer = world.post("/sdapi/v1/txt2img", {"prompt": "cut dog ", **SMALL}).json()
    assert len(answer["images"]) == 1 and set(answer) == {"images", "parameters", "info"}


@case
def the_second_python_example_reads_the_parameters_back_from_its_pictures(world: World) -> None:
    answer = world.post("/sdapi/v1/txt2img", {"prompt": "puppy dog", "n_iter": 2, **SMALL}).json()
    assert len(answer["images"]) == 2
    for text in answer["images"]:
        Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[0]))).load()
        told = world.post("/sdapi/v1/png-info", {"image": "data:image/png;base64," + text})
        assert told.status_code == 200 and told.json()["info"].startswith("puppy dog\nSteps: 2")


@case
def the_lora_example_changes_the_picture_and_saves_it(world: World) -> None:
    def made(prompt: str) -> str:
        body = {"prompt": prompt, "save_images": True, "seed": 8, **SMALL}
        [text] = world.post("/sdapi/v1/txt2img", body).json()["images"]
        return str(text)

    before = saved_below(world.outputs)
    assert made("girls <lora:tiny-style:1>") != made("girls")
    assert saved_below(world.outputs) == before + 2


@case
def the_recommended_example_saves_a_grid_and_two_pictures_below_save_dir(world: World) -> None:
    answer = eas(
        world,
        "txt2img",
        {
            "alwayson_scripts": {
                "sd_model_checkpoint": "tiny-b.safetensors",
                "save_dir": str(world.outputs),
            },
            "prompt": "girls",
            "batch_size": 1,
            "n_iter": 2,
            "negative_prompt": "ugly, out of frame",
            **SMALL,
        },
    )
    grid, *pictures = answer["parameters"]["image_url"].split(",")
    root = re.escape(str(world.outputs))
    assert re.fullmatch(rf"{root}/txt2img-grids/{DATE}/grid-\d{{6}}-{UUID}\.png", grid)
    seeds = seeds_of(answer)
    assert len(pictures) == 2 and seeds[1] == seeds[0] + 1
    for path, seed in zip(pictures, seeds, strict=True):
        assert re.fullmatch(rf"{root}/txt2img-images/{DATE}/\d{{6}}-{UUID}-{seed}\.png", path)
        with Image.open(path) as image:
            assert image.size == (64, 64) and "Model: tiny-b" in image.info["parameters"]
    pictures_of(answer)
    assert json.loads(answer["info"])["hostname"] and answer["parameters"]["total_time"] > 0


@case
def the_sync_example_with_a_vae_comes_out_other_than_without(world: World) -> None:
    def made(vae: str) -> Image.Image:
        answer = eas(
            world,
            "txt2img",
            {
                "alwayson_scripts": {
                    "sd_model_checkpoint": "tiny-a.safetensors",
                    "save_dir": str(world.outputs),
                    "sd_vae": vae,
                },
                "prompt": "girls",
                "batch_size": 1,
                "n_iter": 1,
                "seed": 5,
                "negative_prompt": "ugly, out of frame",
                **SMALL,
            },
        )
        with Image.open(pictures_of(answer)[0]) as image:
            return image.convert("RGB")

    assert made("Automatic").tobytes() != made("tiny-vae.safetensors").tobytes()


@case
def the_labels_come_back_and_a_relative_save_dir_is_below_outputs(world: World) -> None:
    for _ in range(2):  # labels may repeat
        answer = eas(
            world,
            "txt2img",
            {
                "alwayson_scripts": {
                    "sd_model_checkpoint": "tiny-a.safetensors",
                    "id_task": "14837",
                    "uid": "123",
                    "save_dir": "tmp/outputs",
                },
                "prompt": "girls",
                "batch_size": 1,
                "n_iter": 1,
                "negative_prompt": "ugly, out of frame",
                **SMALL,
            },
        )
        assert answer["parameters"]["id_task"] == "14837" and answer["parameters"]["uid"] == "123"
        [path] = pictures_of(answer)
        assert path.is_relative_to(world.outputs / "tmp/outputs/txt2img-images")


@case
def the_async_examples_of_txt2img_answer_with_a_null_id_task(world: World) -> None:
    body = {
        "prompt": "cute dog",
        "alwayson_scripts": {"save_dir": str(world.outputs / "txt2img")},
        **SMALL,
    }
    answer = eas(world, "txt2img", body, "?task_id=txt2img_0")
    assert answer["parameters"]["id_task"] is None and answer["parameters"]["error_msg"] == ""
    assert pictures_of(answer)[0].is_relative_to(world.outputs / "txt2img/txt2img-images")


@case
def the_async_example_of_img2img_takes_its_picture_from_a_link(world: World) -> None:
    body = {
        "prompt": "cute cat",
        "alwayson_scripts": {
            "save_dir": str(world.outputs / "img2img"),
            "image_link": f"{world.links}/boy.png",
        },
        **SMALL,
    }
    answer = eas(world, "img2img", body, "?task_id=img2img_0")
    assert pictures_of(answer)[0].is_relative_to(world.outputs / "img2img/img2img-images")


@case
def the_full_img2img_example_works(world: World) -> None:
    text = """{
    "alwayson_scripts": {
        "image_link":"LINKS/boy.png",
        "sd_model_checkpoint": "tiny-a.safetensors",
        "sd_vae": "Automatic",
        "save_dir": "OUTPUTS"
    },
    "prompt": "girl",
    "batch_size": 1,
    "n_iter": 2,
    "width": 64,
    "height": 64,
    "negative_prompt": "ugly, out of frame",
    "steps": 4, # Sampling steps
    "seed": 111,
    "subseed": 111, # Variation seed
    "subseed_strength": 0, # Variation strength
    "seed_resize_from_h": 0, # Resize seed from height
    "seed_resize_from_w": 0, # Resize seed from width
    "seed_enable_extras": false, # Extra
    "sampler_name": "DDIM", # Sampling method
    "cfg_scale": 7.5, # CFG Scale
    "restore_faces": true, # Restore faces
    "tiling": false, # Tiling
    "init_images": [], # image base64 str, default None
    "mask_blur": 4, # Mask blur
    "resize_mode": 1, # 0 just resize, 1 crop and resize, 2 resize and fill, 3 just resize
    "denoising_strength": 0.75, # Denoising strength
    "inpainting_mask_invert": 0, #int, index of ['Inpaint masked', 'Inpaint not masked'], Mask mode
    "inpainting_fill": 0, #index of ['fill', 'original', 'latent noise', 'latent nothing'], Masked content
    "inpaint_full_res": 0, # index of ["Whole picture", "Only masked"], Inpaint area
    "inpaint_full_res_padding": 32 #minimum=0, maximum=256, step=4, value=32, Only masked padding, pixels
    #"image_cfg_scale": 1, # resized by scale
    }"""
    text = re.sub(r"\s#.*", "", text).replace("LINKS", world.links).replace("OUTPUTS", str(world.outputs))
    answer = eas(world, "img2img", json.loads(text))
    assert seeds_of(answer) == [111, 112]
    paths = pictures_of(answer)
    assert len(paths) == 3 and paths[0].parent.parent.name == "img2img-grids"


@case
def the_controlnet_example_takes_its_picture_from_a_link_and_saves_the_map(world: World) -> None:
    if world.controlnet is None:
        pytest.skip(world.why_no_controlnet)
    text = """{
    "alwayson_scripts": {
        "sd_model_checkpoint": "tiny-a.safetensors", #模型名称,需要带着
        "save_dir": "OUTPUTS",
        "controlnet":{
            "args":[
                {
                    "image_link": "LINKS/pixabay.jpg",
                    "enabled": true,
                    "module": "canny",
                    "model": "control_v11p_sd15_canny",
                    "weight": 1,
                    "resize_mode": "Crop and Resize",
                    "low_vram": false,
                    "processor_res": 512,
                    "threshold_a": 100,
                    "threshold_b": 200,
                    "guidance_start": 0,
                    "guidance_end": 1,
                    "pixel_perfect": true,
                    "control_mode": "Balanced",
                    "input_mode": "simple",
                    "batch_images": "",
                    "output_dir": "",
                    "loopback": false
                }
            ]
        }
    },
    # 主要参数
    "prompt": "girls",
    "batch_size": 1,
    "n_iter": 2,
    "width": 64,
    "height": 64,
    "steps": 2,
    "negative_prompt": "ugly, out of frame"
    }"""
    text = re.sub(r"#.*", "", text).replace("LINKS", world.links).replace("OUTPUTS", str(world.outputs))
    body = json.loads(text)
    body["alwayson_scripts"]["controlnet"]["args"][0]["model"] = world.controlnet
    answer = eas(world, "txt2img", {**body, "seed": 9})
    assert len(pictures_of(answer)) == 3
    maps = [Path(one) for one in answer["parameters"]["image_mask_url"].split(",")]
    root = re.escape(str(world.outputs))
    for one in maps:
        assert re.fullmatch(rf"{root}/controlnet_mask/{DATE}/[\w-]+\.png", str(one))
        with Image.open(one) as image:
            assert set(image.convert("L").tobytes()) == {0, 255}, "Canny edges are black and white"
    with Image.open(pictures_of(answer)[1]) as image:
        assert "ControlNet 0" in image.info["parameters"]


def controlled(world: World, **unit: Any) -> dict[str, Any]:
    """A request with one ControlNet unit, its answer."""
    if world.controlnet is None:
        pytest.skip(world.why_no_controlnet)
    scripts = {"controlnet": {"args": [{"model": world.controlnet, "enabled": True, **unit}]}}
    body = {"prompt": "girls", "seed": 9, "alwayson_scripts": {"save_dir": "controlled", **scripts}, **SMALL}
    return eas(world, "txt2img", body)


@case
def the_picture_behind_a_controlnet_link_changes_what_is_made(world: World) -> None:
    def made(**unit: Any) -> bytes:
        [path] = pictures_of(controlled(world, module="canny", **unit))
        with Image.open(path) as image:
            return image.convert("RGB").tobytes()

    without = made(image_link=f"{world.links}/boy.png", weight=0)
    assert made(image_link=f"{world.links}/boy.png") != without
    assert made(image_link=f"{world.links}/boy.png", enabled=False) == without


@case
def a_controlnet_unit_takes_its_mask_from_a_link(world: World) -> None:
    """With no preprocessor, what is drawn on a picture is the map: the mask, not the picture."""
    links = {"image_link": f"{world.links}/boy.png", "mask_link": f"{world.links}/mask.png"}
    answer = controlled(world, module="none", **links)
    with Image.open(answer["parameters"]["image_mask_url"]) as image:
        assert image.getpixel((4, 4)) == (0, 0, 0) and image.getpixel((40, 40)) == (255, 255, 255)


@case
def an_unknown_controlnet_model_is_an_error_that_names_it(world: World) -> None:
    if world.controlnet is None:
        pytest.skip(world.why_no_controlnet)
    unit = {"image_link": f"{world.links}/boy.png", "module": "canny", "model": "control_v99_nope"}
    scripts = {"save_dir": "controlled", "controlnet": {"args": [{"enabled": True, **unit}]}}
    answer = world.post("/sdapi/v1/txt2img", {"prompt": "x", "alwayson_scripts": scripts, **SMALL})
    assert answer.status_code in (404, 422), answer.text
    assert "control_v99_nope" in answer.json()["parameters"]["error_msg"]


@case
def two_checkpoints_asked_at_once_each_get_their_own_picture(world: World) -> None:
    """Forty interleaved requests, with and without a checkpoint of their own."""

    def ask(number: int) -> str:
        scripts: dict[str, Any] = {"save_dir": "interleaved"}
        if number % 3:
            scripts["sd_model_checkpoint"] = ("tiny-a", "tiny-b")[number % 2]
        answer = eas(
            world,
            "txt2img",
            {"alwayson_scripts": scripts, "prompt": "a cat", "seed": 1, **SMALL, "steps": 1},
        )
        with Image.open(pictures_of(answer)[0]) as image:
            wanted = ("tiny-a", "tiny-b")[number % 2] if number % 3 else world.default_checkpoint
            assert f"Model: {wanted}" in image.info["parameters"], (number, image.info["parameters"])
            return wanted + ":" + image.convert("RGB").tobytes().hex()[:4000]

    before = world.get("/sdapi/v1/options").json()
    with ThreadPoolExecutor(10) as pool:
        seen = set(pool.map(ask, range(40)))
        during = world.get("/sdapi/v1/options").json()
    after = world.get("/sdapi/v1/options").json()
    assert len(seen) == 2, "one picture for each checkpoint"
    assert before["sd_model_checkpoint"] == during["sd_model_checkpoint"] == after["sd_model_checkpoint"]
    assert before == after


@case
def an_unknown_checkpoint_is_an_error_that_names_it(world: World) -> None:
    body = {"alwayson_scripts": {"sd_model_checkpoint": "nope.safetensors"}, "prompt": "x", **SMALL}
    answer = world.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 404
    assert answer.json()["images"] == [] and answer.json()["parameters"]["status"] == 3
    assert "nope.safetensors" in answer.json()["parameters"]["error_msg"]


@case
def an_unknown_sampler_is_an_error_that_names_it(world: World) -> None:
    body = {"alwayson_scripts": {"save_dir": "x"}, "prompt": "x", "sampler_name": "Eular", **SMALL}
    answer = world.post("/sdapi/v1/txt2img", body)
    assert answer.status_code in (404, 422), answer.text
    assert "Eular" in answer.json()["parameters"]["error_msg"]


@case
def a_save_dir_outside_the_output_roots_is_refused(world: World) -> None:
    for where in ("/etc", "../../etc", str(world.data_dir / "models"), str(world.data_dir.parent)):
        answer = world.post(
            "/sdapi/v1/txt2img", {"alwayson_scripts": {"save_dir": where}, "prompt": "x", **SMALL}
        )
        assert answer.status_code == 422, (where, answer.text)
        assert answer.json()["parameters"]["status"] == 1
        assert "save_dir" in answer.json()["parameters"]["error_msg"]


@case
def links_to_forbidden_places_are_refused(world: World) -> None:
    for link in (
        "http://169.254.169.254/latest/meta-data/",
        "http://100.100.100.200/latest/meta-data/",
        "http://10.0.0.1/a.png",
        "http://[::ffff:10.0.0.1]/a.png",
        "file:///etc/passwd",
        f"{world.links}/to-metadata",
    ):
        body = {"alwayson_scripts": {"image_link": link}, "prompt": "x", **SMALL}
        answer = world.post("/sdapi/v1/img2img", body)
        assert answer.status_code == 422, (link, answer.text)
        assert answer.json()["parameters"]["status"] == 1


@case
def a_link_that_does_not_answer_says_so(world: World) -> None:
    body = {"alwayson_scripts": {"image_link": f"{world.links}/missing.png"}, "prompt": "x", **SMALL}
    answer = world.post("/sdapi/v1/img2img", body)
    assert answer.status_code == 424 and answer.json()["parameters"]["status"] == 2, answer.text


@case
def a_picture_as_base64_works_beside_our_parameters(world: World) -> None:
    body = {
        "alwayson_scripts": {"save_dir": "base64"},
        "prompt": "x",
        "init_images": [base64_of(png_of())],
        **SMALL,
    }
    pictures_of(eas(world, "img2img", body))


@case
def options_are_the_same_after_a_failed_request(world: World) -> None:
    before = world.get("/sdapi/v1/options").json()
    body = {
        "alwayson_scripts": {"sd_model_checkpoint": "tiny-b", "sd_vae": "nope.safetensors"},
        "override_settings": {"CLIP_stop_at_last_layers": 2},
        "prompt": "x",
        **SMALL,
    }
    answer = world.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 404 and "nope.safetensors" in answer.json()["parameters"]["error_msg"]
    assert world.get("/sdapi/v1/options").json() == before


@case
def each_picture_has_a_signed_link_that_needs_no_key(world: World) -> None:
    answer = eas(world, "txt2img", {"alwayson_scripts": {"save_dir": "linked"}, "prompt": "x", **SMALL})
    [link] = answer["parameters"]["image_links"]
    [path] = pictures_of(answer)
    assert link.endswith(path.name)
    from_link = world.get(link[link.index("/sd-cloud/") :])
    assert from_link.status_code == 200 and from_link.content == path.read_bytes()
    token = link.split("/")[-2]
    forged = token[:-2] + ("AA" if not token.endswith("AA") else "BB")
    assert world.get(f"/sd-cloud/v1/files/{forged}/{path.name}").status_code in (403, 404)


@case
def health_and_readiness_answer(world: World) -> None:
    assert world.get("/healthz").status_code == 200
    assert world.get("/readyz").status_code == 200


def saved_below(root: Path) -> int:
    return sum(1 for _ in root.rglob("*.png"))
