"""Requests as checked values, options and infotexts; no model and no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.engines.diffusion.infotext import Names, Texts, infotext, quoted
from sd_cloud.engines.diffusion.options import DEFAULTS, Options
from sd_cloud.engines.diffusion.request import Request, parse_request
from sd_cloud.engines.diffusion.styles import Style, apply_styles, read_styles, save_style
from sd_cloud.errors import BadRequest, ServiceError
from sd_cloud.job import Job

PICTURE = "iVBORw0KGgo="


def parsed(kind: str = "txt2img", options: dict[str, Any] | None = None, **payload: Any) -> Request:
    job = Job(kind=kind, payload=payload, options=options or {})  # type: ignore[arg-type]
    return parse_request(job, Options(job))


def test_what_is_not_sent_has_the_webuis_defaults() -> None:
    request = parsed()
    assert (request.steps, request.width, request.height, request.cfg_scale) == (50, 512, 512, 7.0)
    assert request.sampler.name == "Euler"
    assert request.scheduler.label == "Automatic"
    assert request.denoising_strength is None
    assert request.seeds.first >= 0
    assert request.hires is None and request.source is None and request.refiner is None


def test_null_means_not_sent() -> None:
    assert parsed(steps=None, sampler_name=None, width=None).steps == 50


def test_img2img_has_a_strength_and_the_masks_blur_may_be_one_number_or_two() -> None:
    request = parsed("img2img", init_images=[PICTURE], mask_blur=7)
    assert request.denoising_strength == 0.75
    assert request.source is not None
    assert (request.source.mask_blur_x, request.source.mask_blur_y) == (7, 7)
    request = parsed("img2img", init_images=[PICTURE], mask_blur_x=1, mask_blur_y=9)
    assert request.source is not None
    assert (request.source.mask_blur_x, request.source.mask_blur_y) == (1, 9)


@pytest.mark.parametrize(
    ("name", "sampler", "scheduler"),
    [
        ("Euler a", "Euler a", "Automatic"),
        ("euler A", "Euler a", "Automatic"),
        ("k_dpmpp_2m", "DPM++ 2M", "Automatic"),
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "Exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "Karras"),
        ("DDIM", "DDIM", "Automatic"),
        ("Euler DDIM", "Euler", "DDIM"),
    ],
)
def test_a_samplers_name_may_carry_its_scheduler(name: str, sampler: str, scheduler: str) -> None:
    request = parsed(sampler_name=name)
    assert (request.sampler.name, request.scheduler.label) == (sampler, scheduler)


@pytest.mark.parametrize("name", ["karras", "Karras", "KARRAS"])
def test_a_scheduler_is_known_by_name_and_label(name: str) -> None:
    assert parsed(scheduler=name).scheduler.name == "karras"


def test_the_older_sampler_index_counts_where_there_is_no_name() -> None:
    assert parsed(sampler_index="Heun").sampler.name == "Heun"
    assert parsed(sampler_index="Heun", sampler_name="LMS").sampler.name == "LMS"


def test_the_second_pass_is_there_only_when_it_is_enabled() -> None:
    assert parsed(hr_scale=3, denoising_strength=0.5).hires is None
    hires = parsed(enable_hr=True, hr_scale=3, hr_sampler_name="Use same sampler").hires
    assert hires is not None
    assert (hires.scale, hires.sampler, hires.checkpoint) == (3.0, None, None)


def test_the_older_first_phase_size_makes_width_and_height_the_target() -> None:
    request = parsed(enable_hr=True, width=768, height=512, firstphase_width=384, firstphase_height=256)
    assert (request.width, request.height) == (384, 256)
    assert request.hires is not None
    assert (request.hires.resize_x, request.hires.resize_y) == (768, 512)


def test_the_refiner_may_come_as_a_script() -> None:
    scripts = {"refiner": {"args": [True, "other", 0.6]}}
    refiner = parsed(alwayson_scripts=scripts).refiner
    assert refiner is not None and (refiner.checkpoint, refiner.switch_at) == ("other", 0.6)
    assert parsed(alwayson_scripts={"refiner": {"args": [False, "other", 0.6]}}).refiner is None


def test_sampler_numbers_come_from_the_options_and_zero_means_no_upper_limit() -> None:
    knobs = parsed(options={"s_churn": 2.5}, s_noise=1.1).knobs
    assert (knobs.s_churn, knobs.s_noise, knobs.s_tmax) == (2.5, 1.1, math.inf)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"n_iter": 1.5}, "n_iter"),
        ({"height": 99999}, "height"),
        ({"subseed_strength": 2}, "subseed_strength"),
        ({"styles": "warm"}, "styles"),
        ({"tiling": "yes"}, "tiling"),
        ({"prompt": 7}, "prompt"),
        ({"enable_hr": True, "hr_scheduler": "Linear"}, "hr_scheduler"),
        ({"seed": "abc"}, "seed"),
        (
            {"alwayson_scripts": {"refiner": {"args": [True, "other", "x"]}}},
            "alwayson_scripts.refiner.args[2]",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed(**payload)
    assert refused.value.field == field


def test_a_requests_own_setting_wins_over_the_options() -> None:
    payload = {"override_settings": {"CLIP_stop_at_last_layers": 2, "emphasis": None}}
    options = Options(Job(kind="txt2img", payload=payload, options={"CLIP_stop_at_last_layers": 3}))
    assert options.whole("CLIP_stop_at_last_layers") == 2
    assert options.text("emphasis") == DEFAULTS["emphasis"]


# --- infotext -------------------------------------------------------------------------------------

NAMES = Names("model", "0123456789", None, None)
TEXTS = Texts(["a cat"], [""], [5], [6])


def written(
    options: dict[str, Any] | None = None, marks: dict[str, Any] | None = None, **payload: Any
) -> str:
    job = Job(kind="txt2img", payload={"steps": 3, **payload}, options=options or {})
    found = Options(job)
    return infotext(parse_request(job, found), found, NAMES, TEXTS, marks or {}, 0)


def test_the_facts_come_in_the_webuis_order() -> None:
    assert written(subseed_strength=0.5, override_settings={"CLIP_stop_at_last_layers": 2}, tiling=True) == (
        "a cat\nSteps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.0, Seed: 5, Size: 512x512, "
        "Model hash: 0123456789, Model: model, Variation seed: 6, Variation seed strength: 0.5, "
        "Clip skip: 2, Tiling: True, Version: 1.10.1"
    )


def test_what_a_pass_found_out_replaces_what_was_asked_for_in_its_place() -> None:
    text = written(marks={"Schedule type": "Karras", "Lora hashes": "a: 1"})
    assert "Sampler: Euler, Schedule type: Karras, CFG scale" in text
    assert text.endswith('Lora hashes: "a: 1", Version: 1.10.1')


def test_the_seed_delta_is_told_only_where_noise_is_drawn_while_sampling() -> None:
    delta = {"eta_noise_seed_delta": 31337}
    assert "ENSD: 31337" in written(delta, sampler_name="Euler a")
    assert "ENSD" not in written(delta, sampler_name="Euler")
    assert "ENSD" not in written(delta, sampler_name="Euler a", eta=0)


def test_hashes_and_version_can_be_left_out() -> None:
    settings = {"add_model_hash_to_info": False, "add_version_to_infotext": False}
    assert written(settings).endswith("Size: 512x512, Model: model")


@pytest.mark.parametrize(
    ("value", "text"), [("a, b", '"a, b"'), ("a: b", '"a: b"'), ("plain", "plain"), (0.5, 0.5)]
)
def test_what_holds_a_separator_is_quoted(value: Any, text: Any) -> None:
    assert quoted(value) == text


# --- styles ---------------------------------------------------------------------------------------


def test_styles_of_several_files_stand_under_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("name,prompt,negative_prompt\nink,black ink,\n# no,x,y\n")
    (tmp_path / "a.csv").write_text("name,text\nink,old ink\noil,oil\n")
    found = read_styles([str(tmp_path / "*.csv"), str(tmp_path / "b.csv"), str(tmp_path / "none.csv")])
    assert list(found) == [
        "------------------ A -------------------",
        "ink",
        "oil",
        "------------------ B -------------------",
        "----------------- NONE -----------------",
    ]
    assert found["ink"] == Style("black ink", "")
    assert list(read_styles([str(tmp_path / "a.csv")])) == ["ink", "oil"]


def test_a_line_between_styles_is_none(tmp_path: Path) -> None:
    assert apply_styles("cat", "", ["-- A --"], {"-- A --": Style(None, None)}) == ("cat", "", ["-- A --"])


def test_a_style_stands_around_the_prompt_or_after_it() -> None:
    styles = {"frame": Style("old {prompt} photo", ""), "end": Style("warm", "cold")}
    assert apply_styles("cat", "blurry", ["frame", "end"], styles) == (
        "old cat photo, warm",
        "blurry, cold",
        [],
    )
    assert apply_styles("", "", ["end", "none there"], styles) == ("warm", "cold", ["none there"])


def test_a_style_is_written_where_it_is_and_a_new_one_into_the_first_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text('name,text\n# a note,\nink,"ink, {prompt}"\n', "utf-8")
    two.write_text("name,prompt,negative_prompt\noil,oil paint,blur\n", "utf-8-sig")
    files = [str(one), str(two)]
    before = two.read_bytes()
    save_style(files, "oil", Style("oil on canvas", ""))
    save_style(files, "  tusche ", Style('"black", 墨', "colour"))
    save_style(files, "ink", None)
    found = {name: style for name, style in read_styles(files).items() if style.prompt is not None}
    assert found == {"oil": Style("oil on canvas", ""), "tusche": Style('"black", 墨', "colour")}
    assert "# a note" in one.read_text("utf-8-sig") and "oil on canvas" in two.read_text("utf-8-sig")
    assert (tmp_path / "two.csv.bak").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.csv",
        "one.csv.bak",
        "two.csv",
        "two.csv.bak",
    ]


@pytest.mark.parametrize(
    ("name", "style", "told"),
    [
        ("", Style("a", ""), "can't be the name"),
        ("# note", Style("a", ""), "can't be the name"),
        ("None", Style("a", ""), "can't be the name"),
        ("ink", None, "there is no style 'ink'"),
    ],
)
def test_a_style_that_cannot_be_written_is_told_and_no_file_made(
    tmp_path: Path, name: str, style: Style | None, told: str
) -> None:
    with pytest.raises(ServiceError, match=told):
        save_style([str(tmp_path / "*.csv")], name, style)
    assert list(tmp_path.iterdir()) == []
