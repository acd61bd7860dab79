from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.requests import ClientDisconnect

from sd_cloud.engines.diffusion.scripts.xyz_axes import AXES
from sd_cloud.host.i18n import WORDS
from sd_cloud.host.tab_making_form import mask_of
from sd_cloud.host.tab_making_scripts import choices_of, with_scripts
from tests.dialects.sdapi_world import FULL, Native, native
from tests.host.page_world import Browser

SMALL = {
    "txt2img_prompt": "a cat",
    "txt2img_width": 64,
    "txt2img_height": 64,
    "txt2img_steps": 2,
    "txt2img_seed": 5,
}

PLOT = "txt2img_x_y_z_plot_"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path, nowebui=False) as world:
        yield world


async def test_the_page_is_at_the_root_and_the_api_beside_it(world: Native) -> None:
    page = await world.client.get("/")
    assert page.status_code == 200 and "gradio" in page.text
    assert (await world.client.get("/sdapi/v1/sd-models")).status_code == 200
    assert (await world.client.get("/healthz")).status_code == 200


async def test_without_the_page_the_root_is_not_there(tmp_path: Path) -> None:
    async with native(tmp_path) as world:
        assert (await world.client.get("/")).status_code == 404


async def test_generate_makes_the_form_a_job_of_the_session_and_shows_its_pictures(world: Native) -> None:
    browser = await Browser.opened(world, "anna")
    shown = await browser.result(
        "txt2img_generate", setting_sd_model_checkpoint="second.safetensors", txt2img_batch_count=2, **SMALL
    )
    job = world.job
    assert (job.kind, job.checkpoint, job.order_key) == ("txt2img", "second.safetensors", "page:anna")
    assert (job.payload["prompt"], job.payload["width"], job.payload["n_iter"]) == ("a cat", 64, 2)
    shown_at = Path(shown["txt2img_gallery"]["value"][1]["image"]["path"])
    assert shown_at.is_relative_to(world.settings.state_dir)
    with Image.open(shown_at) as picture:
        assert "Seed: 5" in picture.info["parameters"]
    saved = sorted(p.name for p in (world.settings.data_dir / "outputs").rglob("*.png"))
    assert len(saved) == 3


async def test_a_value_that_cannot_be_served_is_told_on_the_page(world: Native) -> None:
    browser = await Browser.opened(world)
    last = (await browser.fires("txt2img_generate", **{**SMALL, "txt2img_seed": -5}))[-1]
    assert not last["success"] and "seed: expected -1" in last["output"]["error"]
    assert world.engine.started == []


async def test_an_infotext_in_the_prompt_fills_in_the_form(world: Native) -> None:
    browser = await Browser.opened(world)
    infotext = "a dog\nNegative prompt: cat\nSteps: 7, Sampler: DDIM, CFG scale: 3, Seed: 9, Size: 72x80"
    filled = await browser.result("txt2img_paste", txt2img_prompt=infotext)
    assert filled["txt2img_prompt"] == "a dog" and filled["txt2img_neg_prompt"] == "cat"
    assert (filled["txt2img_width"], filled["txt2img_height"], filled["txt2img_seed"]) == (72, 80, 9)
    assert filled["txt2img_sampling"] == "DDIM"


async def test_a_chosen_script_takes_its_arguments_in_their_places(world: Native) -> None:
    browser = await Browser.opened(world)
    await browser.result("txt2img_generate", **SMALL)
    assert world.job.payload["script_name"] is None and world.job.payload["script_args"] == []
    axes = {f"{PLOT}x_type": "CFG Scale", f"{PLOT}x_values": "3, 7", f"{PLOT}include_lone_images": True}
    await browser.result("txt2img_generate", txt2img_script="X/Y/Z plot", **axes, **SMALL)
    payload = world.job.payload
    assert payload["script_name"] == "X/Y/Z plot"
    expected = [6, "3, 7", [], 0, "", [], 0, "", [], True, True, *[False] * 5, 0, False]
    assert payload["script_args"] == expected


async def test_a_style_is_written_shown_and_taken_out_again(world: Native) -> None:
    browser = await Browser.opened(world)
    style = {"txt2img_style": "ink", "txt2img_style_prompt": "ink, {prompt}"}
    shown = await browser.result("txt2img_style_save", **style)
    assert shown["txt2img_styles"]["choices"] == [["ink", "ink"]] and shown["txt2img_styles"]["visible"]
    assert (await world.get("prompt-styles"))[0]["prompt"] == "ink, {prompt}"
    shown = await browser.result("txt2img_style", "input", txt2img_style="ink")
    assert shown["txt2img_style_prompt"] == "ink, {prompt}"
    shown = await browser.result("txt2img_style_delete", txt2img_style="ink")
    assert shown["txt2img_styles"]["choices"] == [] and await world.get("prompt-styles") == []


def test_every_axis_with_a_list_has_one() -> None:
    listed = {one.label: choices_of(one, FULL, lambda: ["ink"]) for one in AXES if one.listed}
    assert all(listed.values())
    assert listed["SGM noise multiplier"] == ["False", "True"] and listed["Styles"] == ["ink"]
    assert listed["[Hypertile] VAE Max Depth"] == ["0", "1", "2", "3"]
    assert [choices_of(one, FULL, list) for one in AXES if one.label in ("Steps", "Size")] == [None, None]


async def test_an_axis_with_names_is_chosen_from_a_list(world: Native) -> None:
    browser = await Browser.opened(world)
    chosen = {f"{PLOT}x_type": "Checkpoint name"}
    shown = await browser.result(f"{PLOT}x_type", "change", **chosen)
    assert not shown[f"{PLOT}x_values"]["visible"]
    names = [name for name, _ in shown[f"{PLOT}x_values_dropdown"]["choices"]]
    assert names == [one.title for one in world.service.catalogue().checkpoints]
    shown = await browser.result(f"{PLOT}x_type", "change", **chosen, **{f"{PLOT}csv_mode": True})
    assert shown[f"{PLOT}x_values"]["visible"] and not shown[f"{PLOT}x_values_dropdown"]["visible"]


def test_a_scripts_note_is_no_field_of_the_form_and_soft_inpainting_goes_beside_other_scripts() -> None:
    form = {"prompt": "a", "script.title": "Loopback", "script.Loopback.1": 8, "script.Other.1": 3}
    soft = {"soft_inpainting.0": True, "soft_inpainting.1": 1}
    units = {"controlnet": {"args": [{}]}}
    assert with_scripts({**form, **soft, "alwayson_scripts": units}) == {
        "prompt": "a",
        "script_name": "Loopback",
        "script_args": [None, 8],
        "alwayson_scripts": {**units, "soft inpainting": {"args": [True, 1]}},
    }


async def test_an_enabled_controlnet_unit_goes_where_the_extension_takes_it(world: Native) -> None:
    browser = await Browser.opened(world)
    await browser.result("txt2img_generate", **SMALL)
    assert world.job.payload["alwayson_scripts"] == {}
    await browser.result("txt2img_generate", txt2img_controlnet=True, **SMALL)
    [unit] = world.job.payload["alwayson_scripts"]["controlnet"]["args"]
    assert (unit["module"], unit["weight"], unit["control_mode"]) == ("none", 1, "Balanced")


async def test_a_lora_is_put_into_the_prompt(world: Native) -> None:
    browser = await Browser.opened(world)
    written = await browser.result("txt2img_lora", "input", txt2img_prompt="a cat", txt2img_lora="style")
    assert written == {"txt2img_prompt": "a cat, <lora:style:1>", "txt2img_lora": None}


def test_what_is_painted_over_is_white_in_the_mask() -> None:
    layer = Image.new("RGBA", (4, 2))
    layer.putpixel((3, 1), (0, 0, 0, 128))
    mask = mask_of({"background": Image.new("RGB", (4, 2)), "layers": [layer]})
    assert [mask.getpixel((x, 1)) for x in range(4)] == [0, 0, 0, 255]


async def test_a_picture_is_made_larger_on_the_extras_tab(world: Native) -> None:
    browser = await Browser.opened(world)
    source = world.settings.state_dir / "page" / "source.png"
    Image.new("RGB", (8, 8)).save(source)
    sent = {"path": str(source), "meta": {"_type": "gradio.FileData"}}
    made = await browser.result("extras_generate", extras_image=sent, extras_upscaler_1="Lanczos")
    with Image.open(made["extras_result"]["path"]) as picture:
        assert picture.format == "PNG"
    assert world.job.kind == "extras" and world.job.payload["upscaler_1"] == "Lanczos"


async def test_img2img_without_a_picture_is_told_so(world: Native) -> None:
    browser = await Browser.opened(world)
    last = (await browser.fires("img2img_generate", img2img_prompt="a cat"))[-1]
    assert "Init image not found" in last["output"]["error"]


async def test_tabs_can_be_hidden_by_flag(tmp_path: Path) -> None:
    async with native(tmp_path, nowebui=False, always_hide_tabs=("Settings", "PNG Info")) as world:
        browser = await Browser.opened(world)
        assert browser.has("tab_jobs") and not browser.has("tab_files")
        visible = {
            tab: browser.component(f"tab_{tab}")["props"]["visible"]
            for tab in ("txt2img", "settings", "png_info")
        }
        assert visible == {"txt2img": True, "settings": False, "png_info": False}


async def test_a_page_behind_a_token_asks_the_browser_for_it(tmp_path: Path) -> None:
    async with native(tmp_path, nowebui=False, tokens=("secret",)) as world:
        for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
            answer = await world.client.get(path)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Basic", path
        assert (await world.client.get("/", auth=("anna", "secret"))).status_code == 200


async def test_with_gradio_auth_the_page_has_its_own_log_in_and_the_api_keeps_its_own_rule(
    tmp_path: Path,
) -> None:
    pair = (("anna", "pass"),)
    async with native(tmp_path, nowebui=False, gradio_auth=pair, tokens=("secret",)) as world:
        assert "auth_required" in (await world.client.get("/")).text
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
            assert (await world.client.get(path)).status_code == 401, path
        for path in ("/sdapi/v1/sd-models", "/controlnet/version", "/docs", "/sdapi/v1/../config/x"):
            assert (await world.client.get(path)).status_code == 401, path
        wrong = await world.client.post("/login", data={"username": "anna", "password": "x"})
        assert wrong.status_code == 400
        right = await world.client.post("/login", data={"username": "anna", "password": "pass"})
        assert right.status_code == 200
        # The cookie itself is for https or for browsers; httpx keeps the plain one.
        assert (await world.client.get("/config")).status_code == 200
        assert (await world.client.get("/sdapi/v1/sd-models")).status_code == 401


async def test_a_browser_that_leaves_during_an_upload_is_no_error_of_the_service(world: Native) -> None:
    async def leaving() -> AsyncIterator[bytes]:
        yield b"--x\r\n"
        raise ClientDisconnect

    headers = {"content-type": "multipart/form-data; boundary=x"}
    # Whatever is answered is read by nobody; what the app raised would be logged as a failure.
    await world.client.post("/gradio_api/upload", content=leaving(), headers=headers)


async def test_an_open_page_lets_go_when_the_service_stops(world: Native) -> None:
    standing = asyncio.create_task(world.client.get("/gradio_api/heartbeat/anna"))
    await asyncio.sleep(0)
    await world.service.stop()
    answer = await asyncio.wait_for(standing, 120)
    assert answer.status_code == 200 and "ALIVE" in answer.text


@pytest.mark.parametrize("language", [0, 1])
def test_every_word_has_both_languages(language: int) -> None:
    assert all(words[language].strip() for words in WORDS.values())
    assert all("." not in key and " " not in key for key in WORDS)  # the browser reads a dot as a step
