"""ControlNet units: what requests may write, and what each form means."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from sd_cloud.engines.base import ModelFile
from sd_cloud.engines.diffusion.controlnet.api import control_types, model_list, version
from sd_cloud.engines.diffusion.controlnet.request import control_units, unit_remarks
from sd_cloud.engines.diffusion.controlnet.units import ControlUnit, find_control_model, unit_infotext
from sd_cloud.errors import BadRequest, CheckpointNotFound, NotImplementedHere

MODELS = tuple(
    ModelFile(f"{stem} [12345678]", f"/x/{stem}.pth", {"stem": stem})
    for stem in ("control_v11p_sd15_canny", "control_v11f1e_sd15_tile", "my_canny_long_name")
)


def encoded(width: int = 16, height: int = 8, mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 200 if mode == "L" else "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def units(*sent: Any) -> tuple[ControlUnit, ...]:
    return control_units({"alwayson_scripts": {"controlnet": {"args": list(sent)}}})


def unit(**fields: Any) -> ControlUnit:
    return units({"model": "canny", **fields})[0]


def test_a_request_without_controlnet_has_no_units() -> None:
    assert control_units({}) == control_units({"alwayson_scripts": {"other": {"args": []}}}) == ()


def test_the_guides_own_unit_is_understood() -> None:
    found = unit(
        image="data:image/png;base64," + encoded(),
        enabled=True,
        module="canny",
        model="control_v11p_sd15_canny",
        weight=1,
        resize_mode="Crop and Resize",
        low_vram=False,
        processor_res=512,
        threshold_a=100,
        threshold_b=200,
        guidance_start=0,
        guidance_end=1,
        pixel_perfect=True,
        control_mode="Balanced",
        input_mode="simple",
        batch_images="",
        output_dir="",
        loopback=False,
    )
    assert found.image is not None and found.image.size == (16, 8)
    assert found.described() == (
        "Module: canny, Model: control_v11p_sd15_canny, Weight: 1.0, Resize Mode: Crop and Resize, "
        "Processor Res: 512, Threshold A: 100.0, Threshold B: 200.0, Guidance Start: 0.0, "
        "Guidance End: 1.0, Pixel Perfect: True, Control Mode: Balanced"
    )
    second = unit(module="depth_midas", weight=0.5)
    texts = unit_infotext((found, replace(second, number=1)))
    assert list(texts) == ["ControlNet 0", "ControlNet 1"] and texts["ControlNet 0"] == found.described()
    assert texts["ControlNet 1"].startswith("Module: depth_midas, Model: canny, Weight: 0.5")


def test_numbers_and_old_words_mean_the_same_as_todays() -> None:
    for value in (2, "ControlNet is more important", "controlnet is more important"):
        assert unit(control_mode=value).only_on_prompt
    for value in (2, "Resize and Fill", "Envelope (Outer Fit)"):
        assert unit(resize_mode=value).resize_mode == "Resize and Fill"
    assert unit(resize_mode=3).resize_mode == "Just Resize"
    assert unit(guidance=0.5).guidance_end == 0.5
    assert unit(input_image=encoded()).image is not None


def test_out_of_range_sliders_mean_the_preprocessors_defaults() -> None:
    found = unit(module="canny", processor_res=-1, threshold_a=-1, threshold_b=9999)
    assert (found.resolution, found.threshold_a, found.threshold_b) == (512, 100, 200)
    assert unit(module="tile_resample").threshold_a == 1.0


def test_disabled_units_are_left_out_and_the_rest_are_numbered() -> None:
    found = units({"enabled": False, "model": "a"}, {"model": "b"}, True, {"enabled": True, "model": "c"})
    assert [(one.number, one.model) for one in found] == [(0, "b"), (1, "c")]
    assert found[1].field == "alwayson_scripts.controlnet.args[3]"


def test_every_form_of_image_and_mask() -> None:
    image, mask = encoded(), encoded(mode="L")
    for sent in (
        {"image": image, "mask": mask},
        {"image": {"image": image, "mask": mask}},
        {"image": [image, mask]},
        {"image": [{"image": image, "mask": mask}]},
        {"image": image, "mask_image": mask},
    ):
        found = unit(**sent)
        assert found.image is not None and found.mask is not None and found.mask.mode == "L", sent


def test_a_region_is_the_pictures_red() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (90, 200, 10, 0)).save(buffer, "PNG")
    region = unit(effective_region_mask=base64.b64encode(buffer.getvalue()).decode()).region
    assert region is not None and region.mode == "L" and region.getpixel((0, 0)) == 90


def test_merging_images_shares_the_weight() -> None:
    found = units({"model": "a", "weight": 1.0, "input_mode": "merge", "image": [encoded(), encoded(8, 8)]})
    assert [(one.number, one.weight) for one in found] == [(0, 0.5), (1, 0.5)]


@pytest.mark.parametrize("mode", ["simple", "merge"])
def test_an_ip_adapter_takes_several_images_as_one(mode: str) -> None:
    several = [{"image": encoded()}, {"image": encoded(8, 8), "mask": encoded(8, 8, "L")}]
    (found,) = units({"module": "ip-adapter-auto", "weight": 0.8, "input_mode": mode, "image": several})
    assert found.weight == 0.8 and found.image is not None and found.mask is None
    ((image, mask),) = found.more_images
    assert image.size == (8, 8) and mask is not None
    # Two texts are an image and its mask there, whatever the mode.
    (pair,) = units({"module": "ip-adapter-auto", "input_mode": mode, "image": [encoded(), encoded()]})
    assert pair.mask is not None and not pair.more_images


@pytest.mark.parametrize(
    ("fields", "field", "fact"),
    [
        ({"module": "cany"}, "module", "canny"),
        ({"weight": 3}, "weight", "0 to 2"),
        ({"weight": "much"}, "weight", "number"),
        ({"pixel_perfect": "x"}, "pixel_perfect", "not true or false"),
        ({"low_vram": 7}, "low_vram", "not true or false"),
        ({"enabled": "no"}, "enabled", "not true or false"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_start", "0.2"),
        ({"control_mode": 3}, "control_mode", "Balanced"),
        ({"resize_mode": "Stretch"}, "resize_mode", "Just Resize"),
        ({"image": "no picture"}, "image", "base64"),
        ({"image": encoded(), "mask": encoded(4, 4)}, "mask", "(4, 4)"),
        ({"image": [encoded(), encoded(), encoded()]}, "image", "{image, mask}"),
        ({"guidance": 0.4, "guidance_end": 0.6}, "guidance", "old name"),
        ({"advanced_weighting": "all"}, "advanced_weighting", "list"),
        ({"model": 5}, "model", "text"),
    ],
)
def test_a_wrong_field_is_named_with_its_unit(fields: dict[str, Any], field: str, fact: str) -> None:
    with pytest.raises(BadRequest) as caught:
        unit(**fields)
    assert str(caught.value).startswith(f"alwayson_scripts.controlnet.args[0].{field}: ")
    assert fact in str(caught.value)


@pytest.mark.parametrize("sent", [{"args": "x"}, 5, {"args": [3]}])
def test_what_is_no_list_of_units_is_refused(sent: Any) -> None:
    with pytest.raises(BadRequest, match=r"^alwayson_scripts\.controlnet"):
        control_units({"alwayson_scripts": {"ControlNet": sent}})


def test_what_is_not_served_is_named() -> None:
    with pytest.raises(NotImplementedHere, match="input_mode: "):
        unit(input_mode="batch")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("control_v11p_sd15_canny [12345678]", 0),
        ("control_v11p_sd15_canny", 0),
        ("CONTROL_V11F1E_SD15_TILE", 1),
        ("canny", 2),  # the shortest name that holds it
        ("sd15_canny", 0),
    ],
)
def test_models_are_found_as_the_extension_finds_them(wanted: str, found: int) -> None:
    assert find_control_model(wanted, MODELS, field="f") is MODELS[found]


def test_an_unknown_model_lists_those_there_and_none_is_refused() -> None:
    with pytest.raises(CheckpointNotFound, match=r"^f: .*control_v11p_sd15_canny \[12345678\]"):
        find_control_model("openpose", MODELS, field="f")
    with pytest.raises(BadRequest, match="needs a model"):
        find_control_model("None", MODELS, field="f")
    with pytest.raises(CheckpointNotFound, match="installed: none"):
        find_control_model("openpose", (), field="f")


def test_the_extensions_own_routes() -> None:
    assert version() == {"version": 3}
    assert model_list(MODELS[:1]) == {"model_list": ["control_v11p_sd15_canny [12345678]"]}
    types = control_types(MODELS)["control_types"]
    assert types["Canny"]["default_option"] == "canny"
    assert types["Canny"]["default_model"] == "control_v11p_sd15_canny [12345678]"
    assert types["Tile"]["model_list"] == ["None", "control_v11f1e_sd15_tile [12345678]"]
    assert types["All"]["default_model"] == "None"


def test_what_a_unit_says_and_nothing_is_done_with_is_named() -> None:
    units = [
        {"enabled": True, "image": "…", "wieght": 0.5, "loopback": True, "output_dir": ""},
        {"enabled": False, "anything": 1},
        {"enabled": True, "guidance": 0.5, "pulid_mode": "Extremely style"},
    ]
    (said,) = unit_remarks({"alwayson_scripts": {"ControlNet": {"args": units}}})
    assert said == "alwayson_scripts.controlnet.args[0]: not used: wieght, loopback"
    assert unit_remarks({}) == []
    (said,) = unit_remarks({"alwayson_scripts": {"controlnet": {"args": [False, "canny"]}}})
    assert said == "alwayson_scripts.controlnet.args[1]: not used: 'canny' is no unit"


def test_a_union_model_is_listed_under_each_type_it_is_for() -> None:
    union = ModelFile(
        "controlnet-union-promax [12345678]", "/x/u.safetensors", {"stem": "controlnet-union-promax"}
    )
    types = control_types((union,))["control_types"]
    assert union.name in types["Canny"]["model_list"] and union.name in types["OpenPose"]["model_list"]
    assert union.name not in types["Shuffle"]["model_list"]
