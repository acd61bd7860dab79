from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sd_cloud.errors import BadRequest, NotAllowed, NotFound, SavingFailed
from sd_cloud.host.folders import make_folders
from sd_cloud.host.options import DEFAULTS, SECTIONS, Options, OptionsUnreadable, frozen_options
from sd_cloud.settings import settings_below


def test_without_a_file_every_option_has_the_webuis_default(tmp_path: Path) -> None:
    options = Options(tmp_path)
    assert options["samples_format"] == "png" and options["CLIP_stop_at_last_layers"] == 1
    assert options["outdir_txt2img_samples"] == f"{tmp_path}/outputs/txt2img-images"
    assert len(options.snapshot()) == 329


def test_a_change_is_in_the_next_snapshot_and_in_the_file_and_not_in_an_earlier_snapshot(
    tmp_path: Path,
) -> None:
    options = Options(tmp_path)
    before = options.snapshot()
    options.change({"jpeg_quality": 60})
    assert options.snapshot()["jpeg_quality"] == 60 and before["jpeg_quality"] == 80
    assert Options(tmp_path)["jpeg_quality"] == 60
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_the_file_holds_of_others_stays_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"ad_max_models": 4, "jpeg_quality": 70}))
    options = Options(tmp_path)
    assert options.snapshot()["ad_max_models"] == 4
    options.change({"jpeg_quality": None, "tiling": True})
    assert json.loads((tmp_path / "config.json").read_text()) == {"ad_max_models": 4, "tiling": True}


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("jpeg_quality", "80", "expected a number"),
        ("jpeg_quality", True, "expected a number"),
        ("jpeg_quality", 0, "1 to 100"),
        ("jpeg_quality", float("nan"), "finite"),
        ("samples_save", 1, "true or false"),
        ("samples_format", "exe", "png"),
        ("sd_model_checkpoint", 3, "a text"),
        ("quicksettings_list", "x", "a list"),
    ],
)
def test_a_value_an_option_cannot_have_is_refused_by_name_and_changes_nothing(
    tmp_path: Path, name: str, value: Any, fact: str
) -> None:
    options = Options(tmp_path)
    with pytest.raises(BadRequest, match=fact) as caught:
        options.change({"tiling": True, name: value})
    assert caught.value.field == name
    assert options["tiling"] is False and not (tmp_path / "config.json").exists()


def test_an_unknown_option_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean 'jpeg_quality'"):
        Options(tmp_path).check({"jpg_quality": 3}, "override_settings")


def test_a_file_that_is_no_json_is_named_at_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionsUnreadable, match=r"config\.json"):
        Options(tmp_path)


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    options = Options(tmp_path / "gone")
    with pytest.raises(SavingFailed, match=r"config\.json"):
        options.change({"tiling": True})
    assert options["tiling"] is False


def test_the_first_start_makes_the_webuis_folders_and_the_second_touches_nothing(tmp_path: Path) -> None:
    settings = settings_below(tmp_path)
    make_folders(settings)
    for name in (
        "models/Stable-diffusion",
        "models/VAE",
        "embeddings",
        "extensions",
        "outputs/txt2img-grids",
    ):
        assert (tmp_path / name).is_dir()
    (tmp_path / "config.json").write_text('{"tiling": true}')
    (tmp_path / "styles.csv").write_text("mine")
    make_folders(settings)
    assert (tmp_path / "config.json").read_text() == '{"tiling": true}'
    assert (tmp_path / "styles.csv").read_text() == "mine"


def test_options_may_be_read_from_another_file(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"jpeg_quality": 41}')
    options = Options(tmp_path, other)
    options.change({"jpeg_quality": 42})
    assert Options(tmp_path, other)["jpeg_quality"] == 42
    assert not (tmp_path / "config.json").exists()


def test_a_frozen_section_freezes_its_options_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    frozen = frozen_options(settings_below(tmp_path, frozen_sections=("saving-images", "interrogate")))
    assert {"jpeg_quality", "interrogate_clip_max_length"} <= frozen
    assert "CLIP_stop_at_last_layers" not in frozen
    with pytest.raises(OptionsUnreadable, match="no section 'saving'; there are API"):
        frozen_options(settings_below(tmp_path, frozen_sections=("saving",)))


def test_every_option_stands_in_one_section_but_for_what_the_page_alone_keeps() -> None:
    sections = json.loads(SECTIONS.read_text())
    named = [name for names in sections.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= set(json.loads(DEFAULTS.read_text()))
    left = set(json.loads(DEFAULTS.read_text())) - set(named)
    assert left == {
        "disabled_extensions",
        "disable_all_extensions",
        "restore_config_state_file",
        "sd_checkpoint_hash",
    }


def test_where_pictures_go_can_be_frozen_as_a_whole(tmp_path: Path) -> None:
    frozen = frozen_options(settings_below(tmp_path, paths_frozen=True, frozen_options=("tiling",)))
    assert "outdir_samples" in frozen
    assert "tiling" in frozen
    assert "samples_format" not in frozen


def test_what_a_flag_sets_at_the_start_counts_over_the_file(tmp_path: Path) -> None:
    Options(tmp_path).change({"sd_model_checkpoint": "old"})
    options = Options(tmp_path, set_at_start={"sd_model_checkpoint": "new"})
    assert options["sd_model_checkpoint"] == "new"
    assert Options(tmp_path)["sd_model_checkpoint"] == "old"


def test_what_is_frozen_cannot_be_changed_and_the_rest_can(tmp_path: Path) -> None:
    options = Options(tmp_path, frozen=("jpeg_quality",))
    with pytest.raises(NotAllowed, match="jpeg_quality"):
        options.change({"jpeg_quality": 42})
    options.change({"CLIP_stop_at_last_layers": 2})
    everything = Options(tmp_path, frozen=("*",))
    with pytest.raises(NotAllowed, match="frozen"):
        everything.change({"CLIP_stop_at_last_layers": 3})
    assert everything["CLIP_stop_at_last_layers"] == 2
