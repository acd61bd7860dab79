"""The webui's own folders and filename patterns."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from sd_cloud.errors import InputRefused, SavingFailed
from sd_cloud.job import Outcome, Picture, Target
from sd_cloud.outputs import Outputs
from sd_cloud.outputs.patterns import Facts, expand, safe_part
from sd_cloud.outputs.png import read_infotext
from sd_cloud.settings import Settings
from tests.outputs.pictures import MOMENT, files_below, is_file, job, outcome, picture, settings_in

INFO: dict[str, Any] = {
    "all_prompts": ["a cat, sitting: on/a mat.", "second prompt"],
    "all_negative_prompts": ["ugly", "ugly"],
    "all_seeds": [1003, 1004],
    "sampler_name": "DPM++ 2M",
    "cfg_scale": 7.0,
    "steps": 20,
    "batch_size": 2,
    "sd_model_name": "tiny/a",
    "sd_model_hash": "2ba3c7dd21",
    "sd_vae_name": "good.vae.pt",
    "denoising_strength": None,
    "clip_skip": 1,
    "job_timestamp": "20240626093546",
    "styles": ["oil", "None"],
    "extra_generation_params": {"Schedule type": "karras"},
}


HASH = hashlib.sha256(INFO["all_prompts"][0].encode()).hexdigest()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


async def names(settings: Settings, made: Outcome, kind: Any = "txt2img", **options: Any) -> list[str | None]:
    one = job(Target("webui"), kind, override_settings=options)
    saved = await Outputs(settings, now=lambda: MOMENT).save(one, made)
    assert all(is_file(p.path) for p in saved.pictures if p.path)
    return [p.path and Path(p.path).relative_to(settings.outputs_dir).as_posix() for p in saved.pictures]


def facts(index: int = 0, info: dict[str, Any] = INFO, **payload: Any) -> Facts:
    return Facts(job(**payload), info, Image.new("RGB", (64, 32)), MOMENT, 1003 + index, index)


async def test_the_defaults_number_the_files_of_a_day(settings: Settings) -> None:
    made = outcome(picture(role="grid", seed=None), picture(seed=7), picture(seed=8))
    day = "2024-06-26"
    assert await names(settings, made) == [
        f"txt2img-grids/{day}/grid-0000.png",
        f"txt2img-images/{day}/00000-7.png",
        f"txt2img-images/{day}/00001-8.png",
    ]
    assert (await names(settings, made))[1:] == [
        f"txt2img-images/{day}/00002-7.png",
        f"txt2img-images/{day}/00003-8.png",
    ]


async def test_numbering_goes_on_behind_the_highest_number_there(settings: Settings) -> None:
    folder = settings.outputs_dir / "txt2img-images" / "2024-06-26"
    folder.mkdir(parents=True)
    for name in ("00041-5.png", "notes.txt", "-1.png", "7-x.jpg", "x-99999.png"):
        (folder / name).write_text("")
    assert await names(settings, outcome()) == ["txt2img-images/2024-06-26/00042-1003.png"]


async def test_two_savers_at_once_never_take_the_same_number(settings: Settings) -> None:
    made = outcome(*[picture() for _ in range(5)])
    results = await asyncio.gather(*(names(settings, made) for _ in range(6)))
    taken = [name for result in results for name in result]
    assert len(set(taken)) == 30


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_to_dirs": False}, "txt2img-images/00000-1003-girls.png"),
        ({"directories_filename_pattern": "[prompt_words]"}, "txt2img-images/girls/00000-1003.png"),
        (
            {"directories_filename_pattern": "[date]/[steps]"},
            "txt2img-images/2024-06-26/[steps]/00000-1003.png",
        ),
        ({"samples_filename_pattern": "x-[width]x[height]"}, "txt2img-images/2024-06-26/00000-x-16x8.png"),
        ({"samples_filename_pattern": "[seed]/[width]"}, "txt2img-images/2024-06-26/1003/00000-16.png"),
        ({"samples_filename_pattern": "/[seed]"}, "txt2img-images/2024-06-26/00000-1003.png"),
        ({"samples_filename_pattern": "[none]"}, "txt2img-images/2024-06-26/00000.png"),
        ({"save_images_add_number": False}, "txt2img-images/2024-06-26/1003.png"),
        ({"samples_format": "jpg"}, "txt2img-images/2024-06-26/00000-1003.jpg"),
        ({"samples_format": "webp"}, "txt2img-images/2024-06-26/00000-1003.webp"),
        ({"outdir_samples": "outputs/all"}, "all/2024-06-26/00000-1003.png"),
        ({"outdir_txt2img_samples": "outputs/mine"}, "mine/2024-06-26/00000-1003.png"),
        ({"samples_save": False}, None),
    ],
)
async def test_the_options_say_the_name(
    settings: Settings, options: dict[str, Any], expected: str | None
) -> None:
    if expected and "[steps]" in expected:
        expected = expected.replace("[steps]", "20")
        assert await names(settings, outcome(steps=20), **options) == [expected]
    else:
        assert await names(settings, outcome(), **options) == [expected]


async def test_without_numbers_a_file_is_replaced_or_counted_as_the_option_says(settings: Settings) -> None:
    for _ in range(2):
        replaced = await names(settings, outcome(), save_images_add_number=False)
    assert replaced == ["txt2img-images/2024-06-26/1003.png"]
    added = await names(
        settings,
        outcome(),
        save_images_add_number=False,
        save_images_replace_action="Add number suffix",
    )
    assert added == ["txt2img-images/2024-06-26/1003-1.png"]


async def test_masks_are_saved_beside_the_picture_only_when_asked_for(settings: Settings) -> None:
    made = outcome(picture(), picture(role="mask"), picture(role="control_map"))
    assert (await names(settings, made))[1:] == [None, None]
    kept = await names(settings, made, save_mask=True)
    assert kept[1] == "txt2img-images/2024-06-26/00002-1003-mask.png"


async def test_a_grid_is_named_by_its_pattern_when_asked_for(settings: Settings) -> None:
    made = outcome(picture(role="grid", seed=None))
    assert await names(settings, made, grid_extended_filename=True, samples_filename_pattern="[width]") == [
        "txt2img-grids/2024-06-26/grid-0000-16.png"
    ]
    assert await names(settings, made, grid_save=False) == [None]


async def test_a_text_file_stands_beside_the_picture_when_asked_for(settings: Settings) -> None:
    await names(settings, outcome(picture(infotext="a cat\nSteps: 2")), save_txt=True)
    text = settings.outputs_dir / "txt2img-images" / "2024-06-26" / "00000-1003.txt"
    assert text.read_text() == "a cat\nSteps: 2\n"


async def test_a_large_picture_has_a_smaller_jpeg_beside_it(settings: Settings) -> None:
    folder = "txt2img-images/2024-06-26"
    wide = Picture(Image.new("RGB", (4001, 10)), seed=1, infotext="a cat\nSteps: 2")
    await names(settings, outcome(wide))
    with Image.open(settings.outputs_dir / folder / "00000-1.jpg") as copy:
        assert copy.size == (4000, 10) and read_infotext(copy)[0] == "a cat\nSteps: 2"
    heavy = Picture(Image.effect_noise((64, 64), 99).convert("RGB"), seed=2)
    await names(settings, outcome(heavy), img_downscale_threshold=0.001)
    with Image.open(settings.outputs_dir / folder / "00001-2.jpg") as copy:
        assert copy.size == (64, 64)
    await names(settings, outcome(heavy), img_downscale_threshold=0.001, export_for_4chan=False)
    await names(settings, outcome(heavy))
    with Image.open(
        settings.outputs_dir / str((await names(settings, outcome(wide), samples_format="jpg"))[0])
    ) as kept:
        assert kept.size == (4001, 10), "a picture that is a JPEG already is not replaced by its copy"
    assert [name for name in files_below(settings.outputs_dir) if name.endswith("jpg")] == [
        f"{folder}/00000-1.jpg",
        f"{folder}/00001-2.jpg",
        f"{folder}/00004-1.jpg",
    ]


async def test_a_picture_too_large_for_its_format_is_a_png(settings: Settings) -> None:
    wide = Picture(Image.new("RGB", (16384, 1)), seed=1)
    assert await names(settings, outcome(wide), samples_format="webp") == [
        "txt2img-images/2024-06-26/00000-1.png"
    ]
    assert await names(settings, outcome(wide), samples_format="jpg") == [
        "txt2img-images/2024-06-26/00001-1.jpg"
    ]


async def test_a_format_that_is_none_is_an_error_that_says_so(settings: Settings) -> None:
    with pytest.raises(SavingFailed, match=r"^samples_format: pictures are saved as"):
        await names(settings, outcome(), samples_format="../../x")


@pytest.mark.parametrize(
    "options",
    [
        {"outdir_samples": "/etc"},
        {"outdir_samples": "models/Lora"},
        {"outdir_txt2img_samples": "outputs/../../x"},
        {"directories_filename_pattern": "../../.."},
        {"directories_filename_pattern": ".[none]./.[none]./models"},
        {"directories_filename_pattern": "[/.[none]./.[none]./.[none]./.[none]./.[none]./]"},
        {"samples_filename_pattern": "../../../models/x"},
        {"samples_filename_pattern": "x/../../../../models/y", "save_images_add_number": False},
    ],
)
async def test_no_pattern_leads_out_of_the_output_folders(
    settings: Settings, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputRefused):
        await names(settings, outcome(), **options)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[seed]-[prompt_spaces]", "1003-a cat, sitting_ on_a mat"),
        ("[prompt]", "a_cat,_sitting__on_a_mat"),
        ("[prompt_words]", "a cat sitting on a mat"),
        ("[cfg] [steps] [sampler]", "7.0 20 DPM++ 2M"),
        ("[sampler_scheduler]|[scheduler]", "DPM++ 2M Karras|Karras"),
        ("[model_name]_[model_hash]", "tiny_a_2ba3c7dd21"),
        ("[date] [datetime] [datetime<%H.%M>]", "2024-06-26 20240626093546 09.35"),
        ("[datetime<%H:%M><Mars/Base>]", "09_35"),
        ("[job_timestamp]", "20240626093546"),
        ("[width]x[height]", "64x32"),
        ("[styles]", "oil"),
        ("[batch_number]/[batch_size]", "1/2"),
        ("[generation_number]", "1"),
        ("[seed_first]-[seed_last]", "1003-1004"),
        ("[vae_filename]", "good"),
        ("[clip_skip]", "1"),
        ("[user]", "alice"),
        ("a[denoising]b", "b"),
        ("[hasprompt<cat|dog><fish|none><bird>]", "catnone"),
        ("[prompt_hash] [prompt_hash<4>]", f"{HASH[:8]} {HASH[:4]}"),
        ("[unknown] [Seed] [] [[seed]]", "[unknown] 1003 [] [1003]"),
        ("", ""),
    ],
)
def test_each_token_says_what_the_webui_says(pattern: str, text: str) -> None:
    assert expand(pattern, facts()) == text


def test_tokens_of_a_second_picture_are_its_own() -> None:
    said = expand("[seed] [prompt_words] [batch_number] [generation_number]", facts(1))
    assert said == "1004 second prompt 2 2"


def test_tokens_of_a_single_picture_leave_out_its_numbers_and_the_text_before_them() -> None:
    single = facts(info={"batch_size": 1, "denoising_strength": 0.5})
    assert expand("x[batch_number]y[generation_number]z[seed_last]|[denoising]", single) == "|0.5"


def test_the_date_is_that_of_another_zone_when_asked_for() -> None:
    moment = datetime(2024, 6, 26, 23, 0).astimezone()
    there = Facts(job(), {}, Image.new("RGB", (1, 1)), moment)
    utc = expand("[datetime<%Y%m%d%H><UTC>]", there)
    assert (
        abs(datetime.strptime(utc, "%Y%m%d%H").timestamp() - moment.replace(tzinfo=None).timestamp()) <= 50400
    )


@given(st.text())
def test_a_part_of_a_name_never_separates_folders_or_climbs(text: str) -> None:
    part = safe_part(text)
    assert len(part) <= 128
    assert not set(part) & set('/\\\0\n\r\t<>:"|?*#')
    assert part not in (".", "..") and not part.endswith((".", " "))


PIECES = [*"./\\[]<>ab \0é界", "[none]", "[prompt]", "..", "[seed]", "../", "[width]"]


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.lists(st.sampled_from(PIECES), max_size=30).map("".join), prompt=st.text(max_size=300))
async def test_whatever_the_pattern_and_the_prompt_files_stay_below_the_outputs(
    settings: Settings, tmp_path: Path, pattern: str, prompt: str
) -> None:
    options = {
        "samples_filename_pattern": pattern,
        "directories_filename_pattern": pattern,
        "save_images_add_number": False,
    }
    one = job(Target("webui"), prompt=prompt, override_settings=options)
    try:
        await Outputs(settings, now=lambda: MOMENT).save(one, outcome())
    except InputRefused:
        pass
    for file in files_below(tmp_path):
        assert file.startswith("data/outputs/") or file == "data/state/link-secret"
