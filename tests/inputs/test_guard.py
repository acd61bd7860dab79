"""Paths that a request names: every field that can hold one, and every way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_cloud.errors import InputRefused
from sd_cloud.inputs import Inputs
from sd_cloud.inputs.guard import check_pattern, names_a_place
from sd_cloud.job import OPERATOR, Job, Target
from sd_cloud.roots import Roots, owner_folder
from sd_cloud.settings import OssSettings, Settings, settings_below
from tests.inputs.pictures import as_text


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    extra = tmp_path / "nas"
    extra.mkdir()
    made = settings_below(
        tmp_path / "data", save_dir_roots=(extra,), oss=OssSettings(allow=("bucket/given",))
    )
    made.outputs_dir.mkdir(parents=True)
    for name in ("models/Lora", "embeddings", "extensions", "state"):
        (made.data_dir / name).mkdir(parents=True)
    return made


def check(settings: Settings, save_dir: str | None = None, owner: str = OPERATOR, **payload: Any) -> None:
    target = Target("eas", save_dir) if save_dir else None
    Inputs(settings).check_paths(Job("txt2img", payload, owner=owner, target=target))


def refused(settings: Settings, field: str, **asked: Any) -> str:
    with pytest.raises(InputRefused) as caught:
        check(settings, **asked)
    assert caught.value.field == field
    return str(caught.value)


OUTSIDE = [
    "/",
    "/etc",
    "..",
    "../..",
    "a/../../b",
    "../models",
    "../models/Lora",
    "../embeddings/x",
    "../extensions/x/scripts",
    "../state",
    "../../nas/../x",
    "x\0y",
]
INSIDE = ["a", "a/b/c", "./a", "a/../b", "not yet/there", "ünïcode", "..a", "a..b", "~"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_save_dir_outside_is_refused(settings: Settings, path: str) -> None:
    refused(settings, "save_dir", save_dir=path)


@pytest.mark.parametrize("path", INSIDE)
def test_a_save_dir_inside_is_taken(settings: Settings, path: str) -> None:
    check(settings, save_dir=path)


def test_absolute_places_below_the_roots_are_taken(settings: Settings) -> None:
    check(settings, save_dir=str(settings.outputs_dir))
    check(settings, save_dir=str(settings.outputs_dir / "x"))
    check(settings, save_dir=f"{settings.save_dir_roots[0]}/x/y")


def test_a_neighbour_whose_name_begins_alike_is_outside(settings: Settings) -> None:
    refused(settings, "save_dir", save_dir=f"{settings.outputs_dir}-of-others")
    refused(settings, "save_dir", save_dir=f"{settings.save_dir_roots[0]}2/x")


def test_links_are_followed_also_in_parts_that_do_not_exist_yet(settings: Settings, tmp_path: Path) -> None:
    (settings.outputs_dir / "out").symlink_to(tmp_path)
    (settings.outputs_dir / "in").symlink_to(settings.save_dir_roots[0])
    (settings.outputs_dir / "loop").symlink_to(settings.outputs_dir / "loop")
    (settings.outputs_dir / "models").symlink_to(settings.data_dir / "models")
    refused(settings, "save_dir", save_dir="out")
    refused(settings, "save_dir", save_dir="out/new/folder")
    refused(settings, "save_dir", save_dir="in/../../x")
    refused(settings, "save_dir", save_dir="models/new")
    check(settings, save_dir="in/new")


def test_a_root_that_is_itself_a_link_is_followed_too(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "outputs").mkdir(parents=True)
    (tmp_path / "data").symlink_to(real)
    settings = replace(settings_below(tmp_path / "x"), data_dir=tmp_path / "data")
    Inputs(settings).check_paths(Job("txt2img", {}, target=Target("eas", str(real / "outputs" / "a"))))
    Inputs(settings).check_paths(Job("txt2img", {}, target=Target("eas", str(tmp_path / "data/outputs/a"))))


def test_a_model_folder_elsewhere_is_closed_too(settings: Settings) -> None:
    loras = settings.save_dir_roots[0] / "loras"
    moved = replace(settings, folders=replace(settings.folders, loras=(loras,)))
    assert "no request may name it" in refused(moved, "save_dir", save_dir=str(loras / "x"))


def test_the_guides_save_dir_works_when_it_is_the_data_dirs_or_a_root(tmp_path: Path) -> None:
    guide = tmp_path / "code/stable-diffusion-webui/data"
    asked = Job("txt2img", {}, target=Target("eas", f"{guide}/outputs"))
    Inputs(settings_below(guide)).check_paths(asked)
    Inputs(settings_below(tmp_path / "data", save_dir_roots=(guide / "outputs",))).check_paths(asked)
    with pytest.raises(InputRefused, match="--save-dir-root"):
        Inputs(settings_below(tmp_path / "data")).check_paths(asked)


@pytest.mark.parametrize("save_dir", ["oss://bucket/given", "oss://bucket/given/x"])
def test_a_listed_oss_address_is_taken(settings: Settings, save_dir: str) -> None:
    check(settings, save_dir=save_dir)


@pytest.mark.parametrize("save_dir", ["oss://bucket/other", "oss://bucket/given/../x", "oss://b"])
def test_another_oss_address_is_refused(settings: Settings, save_dir: str) -> None:
    refused(settings, "save_dir", save_dir=save_dir)


OPTION_PATHS = [
    "outdir_samples",
    "outdir_txt2img_samples",
    "outdir_grids",
    "outdir_init_images",
    "outdir_save",
    "temp_dir",
    "control_net_detectedmap_dir",
    "control_net_models_path",
    "profiling_filename",
]


@pytest.mark.parametrize("name", OPTION_PATHS)
@pytest.mark.parametrize("path", ["/etc", "models/Lora", "../x", "outputs/../models", "x"])
def test_an_option_that_is_a_path_obeys_the_rule(settings: Settings, name: str, path: str) -> None:
    refused(settings, f"override_settings.{name}", override_settings={name: path})


@pytest.mark.parametrize("name", OPTION_PATHS)
def test_an_option_may_name_a_place_below_the_outputs(settings: Settings, name: str) -> None:
    check(settings, override_settings={name: "outputs/x"})
    check(settings, override_settings={name: str(settings.outputs_dir / "x")})
    check(settings, override_settings={name: ""})


CLIMBING = [
    "..",
    "../x",
    "[date]/../../x",
    "a/../../b",
    "a\\..\\b",
    "..\\x",
    " .. /x",
    ".[none]./x",
    "[none]..[none]/x",
    "[/.[none]./x]",
    "/etc/[seed]",
    "~/x",
    "C:\\x",
    "\\\\server\\x",
    "file:///x",
    "a\0b",
]


@pytest.mark.parametrize("pattern", CLIMBING)
@pytest.mark.parametrize(
    "name", ["samples_filename_pattern", "directories_filename_pattern", "grid_zip_filename_pattern"]
)
def test_a_pattern_that_climbs_or_is_absolute_is_refused(settings: Settings, name: str, pattern: str) -> None:
    refused(settings, f"override_settings.{name}", override_settings={name: pattern})


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "[date]",
        "[date]/[prompt_words]",
        "[seed]-[prompt_spaces]",
        "[datetime<%Y/%m>]",
        "a...b",
        "v1..2",
        "…/x",
    ],
)
def test_an_ordinary_pattern_is_taken(pattern: str) -> None:
    check_pattern(pattern, field="x")


@pytest.mark.parametrize("ending", ["png", "JPG", "webp"])
def test_a_format_is_an_ending(settings: Settings, ending: str) -> None:
    check(settings, override_settings={"samples_format": ending, "grid_format": ending})


@pytest.mark.parametrize("ending", ["/../x.png", "png/../../x", "..", "a b", "longer"])
def test_a_format_that_is_more_than_an_ending_is_refused(settings: Settings, ending: str) -> None:
    for name in ("samples_format", "grid_format"):
        refused(settings, f"override_settings.{name}", override_settings={name: ending})


def unit(**fields: Any) -> dict[str, Any]:
    return {"ControlNet": {"args": [{"enabled": False}, fields]}}


@pytest.mark.parametrize("name", ["output_dir", "batch_images", "batch_mask_dir", "input_dir"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_a_folder_of_a_controlnet_unit_obeys_the_rule(settings: Settings, name: str, path: str) -> None:
    field = f"alwayson_scripts.ControlNet.args[1].{name}"
    refused(settings, field, alwayson_scripts=unit(**{name: path}))


def test_the_guides_empty_controlnet_folders_are_taken(settings: Settings) -> None:
    check(settings, alwayson_scripts=unit(batch_images="", output_dir="", image=None))
    check(settings, alwayson_scripts=unit(batch_images="in", output_dir="out"))


def test_a_list_of_controlnet_files_obeys_the_rule(settings: Settings) -> None:
    field = "alwayson_scripts.ControlNet.args[1].batch_image_files[1]"
    refused(settings, field, alwayson_scripts=unit(batch_image_files=["a.png", "/etc/passwd"]))


SCRIPT_PATHS = [
    "/etc/passwd",
    "/",
    "../x",
    "a/../../x",
    "..",
    "..\\x",
    "~/x",
    "~",
    "file:///etc/passwd",
    "C:\\Windows",
    "\\\\server\\share",
    "models/Stable-diffusion/evil.safetensors",
    "Extensions/x/scripts/y.py",
    "embeddings\\x",
    "/9j/../etc/passwd",
]


@pytest.mark.parametrize("text", SCRIPT_PATHS)
def test_a_script_argument_that_is_a_path_obeys_the_rule(settings: Settings, text: str) -> None:
    assert names_a_place(text)
    refused(settings, "script_args[1]", script_args=[1, text])


@pytest.mark.parametrize("text", ["/etc/passwd", "../../x"])
def test_arguments_of_other_scripts_obey_the_rule_however_deep(settings: Settings, text: str) -> None:
    deep = {"ADetailer": {"args": [True, {"ad_model": [{"path": text}]}]}}
    refused(settings, "alwayson_scripts.ADetailer.args[1].ad_model[0].path", alwayson_scripts=deep)


@pytest.mark.parametrize(
    "text",
    [
        "a cat/dog, 1/2",
        "Outpainting",
        "left...right",
        "a prompt\n/etc/passwd\n../x",
        "face_yolov8n.pt",
        "http://example.com/a.png",
        "x: y",
        "",
    ],
)
def test_an_argument_that_is_no_path_is_left_alone(settings: Settings, text: str) -> None:
    check(settings, script_args=[text, 1, None, True, 0.5])


def test_pictures_in_arguments_are_no_paths(settings: Settings) -> None:
    jpeg = as_text("jpeg")
    assert jpeg.startswith("/9j/")
    check(settings, script_args=[jpeg, jpeg[:200]])


def test_a_path_inside_is_taken_as_an_argument(settings: Settings) -> None:
    check(settings, script_args=[str(settings.outputs_dir / "mine.txt")])


async def test_what_was_checked_is_what_the_engine_gets(settings: Settings) -> None:
    payload = {
        "override_settings": {"outdir_samples": "outputs/x", "jpeg_quality": 80},
        "alwayson_scripts": unit(output_dir="out", batch_images="in/../in", batch_image_files=["a.png"]),
    }
    before = str(payload)
    made = await Inputs(settings).resolve(Job("txt2img", payload))
    assert made.payload["override_settings"] == {
        "outdir_samples": str(settings.outputs_dir / "x"),
        "jpeg_quality": 80,
    }
    resolved = made.payload["alwayson_scripts"]["ControlNet"]["args"][1]
    assert resolved["output_dir"] == str(settings.outputs_dir / "out")
    assert resolved["batch_images"] == str(settings.outputs_dir / "in")
    assert resolved["batch_image_files"] == [str(settings.outputs_dir / "a.png")]
    assert str(payload) == before, "the caller's own payload is not changed"


def test_one_owners_task_pictures_are_closed_to_another(settings: Settings) -> None:
    check(settings, save_dir=f"images/{owner_folder('alice')}/x", owner="alice")
    for owner in ("bob", "alice2", "Alice", "../alice", ""):
        folder = f"{settings.outputs_dir}/images/{owner_folder('alice')}"
        with pytest.raises(InputRefused, match="belongs to another user"):
            check(settings, save_dir=folder, owner=owner)
    check(settings, save_dir="pictures")


def test_what_a_users_unit_or_script_reads_is_in_their_own_folder(settings: Settings) -> None:
    shared, own = str(settings.outputs_dir / "shared"), str(settings.outputs_dir / "images" / "bob")
    for name in ("batch_images", "batch_mask_dir", "input_dir"):
        check(settings, alwayson_scripts=unit(**{name: own}), owner="bob")
        with pytest.raises(InputRefused, match="not among your own pictures"):
            check(settings, alwayson_scripts=unit(**{name: shared}), owner="bob")
    with pytest.raises(InputRefused, match="not among your own pictures"):
        check(settings, script_args=[shared], owner="bob")
    check(settings, alwayson_scripts=unit(output_dir=shared), owner="bob")
    check(settings, alwayson_scripts=unit(batch_images=shared), script_args=[shared])


@given(st.text(), st.text())
def test_two_owners_never_share_a_folder(one: str, other: str) -> None:
    assert (owner_folder(one) == owner_folder(other)) == (one == other) or "_" in (one, other)
    assert "/" not in owner_folder(one) and owner_folder(one).strip(".")


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "models", "link", ""]), max_size=8).map("/".join))
def test_no_path_is_placed_outside(path: str) -> None:
    roots = Roots(outputs=Path("/r/out"), opened=(Path("/r/out"),), closed=(Path("/r/out/models"),))
    try:
        place = roots.place(path, field="x")
    except InputRefused:
        return
    assert place.is_relative_to("/r/out") and not place.is_relative_to("/r/out/models")
