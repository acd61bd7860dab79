"""Saving on the local disk: the guide's names, whole files, and nowhere else than allowed."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_cloud.errors import InputRefused, SavingFailed
from sd_cloud.job import Picture, Target
from sd_cloud.outputs import Outputs
from sd_cloud.settings import OssSettings, Settings
from tests.outputs.pictures import INFOTEXT, MOMENT, files_below, is_file, job, outcome, picture, settings_in

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def outputs(settings: Settings) -> Outputs:
    return Outputs(settings, now=lambda: MOMENT)


async def test_the_guides_names_grid_first_maps_apart(settings: Settings) -> None:
    made = outcome(
        picture(role="grid", seed=None),
        picture(seed=1146644551),
        picture(seed=1146644552),
        picture(role="control_map", seed=None),
    )
    root = settings.outputs_dir
    saved = await outputs(settings).save(job(Target("eas", str(root))), made)
    grid, first, second, control = (p.path for p in saved.pictures)
    assert re.fullmatch(rf"{root}/txt2img-grids/2024-06-26/grid-093546-{UUID}\.png", str(grid))
    assert re.fullmatch(rf"{root}/txt2img-images/2024-06-26/093546-{UUID}-1146644551\.png", str(first))
    assert re.fullmatch(rf"{root}/txt2img-images/2024-06-26/093546-{UUID}-1146644552\.png", str(second))
    assert re.fullmatch(rf"{root}/controlnet_mask/2024-06-26/093546-{UUID}\.png", str(control))
    for one in saved.pictures:
        assert one.path and one.link
        with Image.open(one.path) as image:
            assert image.size == (16, 8) and image.text["parameters"] == INFOTEXT


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "extras"])
async def test_the_kind_of_job_names_its_folder(settings: Settings, kind: Any) -> None:
    await outputs(settings).save(job(kind=kind), outcome())
    assert files_below(settings.outputs_dir)[0].startswith(f"{kind}-images/2024-06-26/093546-")


@pytest.mark.parametrize(
    ("save_dir", "place"),
    [(None, ""), ("tmp/outputs", "tmp/outputs/"), ("./a/../b", "b/"), ("outputs", "outputs/")],
)
async def test_a_relative_save_dir_is_below_the_outputs_of_the_data_dir(
    settings: Settings, save_dir: str | None, place: str
) -> None:
    saved = await outputs(settings).save(job(Target("eas", save_dir)), outcome())
    path = saved.pictures[0].path
    assert path is not None and is_file(path)
    assert path.startswith(f"{settings.outputs_dir}/{place}txt2img-images/")


async def test_a_target_of_none_saves_nothing(settings: Settings) -> None:
    made = outcome()
    assert await outputs(settings).save(replace(job(), target=None), made) is made
    assert not settings.outputs_dir.exists()


async def test_the_caller_is_told_the_path_they_asked_for_though_it_is_a_link(tmp_path: Path) -> None:
    real = tmp_path / "nas"
    real.mkdir()
    (tmp_path / "mount").symlink_to(real)
    settings = settings_in(tmp_path, save_dir_roots=(tmp_path / "mount",))
    saved = await outputs(settings).save(job(Target("eas", str(tmp_path / "mount" / "x"))), outcome())
    path = saved.pictures[0].path
    assert path is not None and path.startswith(f"{tmp_path}/mount/x/txt2img-images/")
    assert len(files_below(real)) == 1


@pytest.mark.parametrize(
    "save_dir",
    [
        "/etc",
        "..",
        "../models/Stable-diffusion",
        "a/../../..",
        "../embeddings",
        "../extensions/evil",
        "../state",
        "a\0b",
    ],
)
async def test_a_save_dir_outside_the_output_folders_is_refused_and_nothing_is_made(
    tmp_path: Path, save_dir: str
) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(InputRefused) as caught:
        await outputs(settings).save(job(Target("eas", save_dir)), outcome())
    assert caught.value.field == "save_dir"
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("folder", ["models", "models/Lora/x", "embeddings", "extensions", "state"])
async def test_the_folders_of_models_and_state_stay_closed_though_the_data_dir_is_a_root(
    tmp_path: Path, folder: str
) -> None:
    settings = settings_in(tmp_path, save_dir_roots=(tmp_path / "data",))
    with pytest.raises(InputRefused, match="no request may name it"):
        await outputs(settings).save(job(Target("eas", str(tmp_path / "data" / folder))), outcome())
    saved = await outputs(settings).save(job(Target("eas", str(tmp_path / "data" / "mine"))), outcome())
    assert saved.pictures[0].path


async def test_a_link_within_the_save_dir_does_not_lead_out_of_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    settings.outputs_dir.mkdir(parents=True)
    (settings.outputs_dir / "txt2img-images").symlink_to(outside)
    with pytest.raises(InputRefused, match="outside the output folders"):
        await outputs(settings).save(job(), outcome())
    assert list(outside.iterdir()) == []


@contextmanager
def small_files() -> Iterator[None]:
    """The kernel refuses any file above 20 kB: the test run's own log too, so not for long."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_file_that_cannot_be_finished_leaves_nothing_and_names_what_stays(settings: Settings) -> None:
    noise = Picture(Image.frombytes("RGB", (128, 128), os.urandom(128 * 128 * 3)), seed=2)
    with pytest.raises(SavingFailed) as caught, small_files():
        await outputs(settings).save(job(), outcome(picture(), noise, picture()))
    (kept,) = files_below(settings.outputs_dir)
    assert f"saved before it: {settings.outputs_dir}/{kept}" in str(caught.value)
    assert "could not be written to: File too large" in str(caught.value)
    with Image.open(settings.outputs_dir / kept) as image:
        image.load()


async def test_a_folder_that_cannot_be_made_is_saving_failed(settings: Settings) -> None:
    settings.outputs_dir.mkdir(parents=True)
    (settings.outputs_dir / "txt2img-images").write_text("a file in the way")
    with pytest.raises(SavingFailed, match="could not be written to"):
        await outputs(settings).save(job(), outcome())


async def test_a_full_disk_is_told_under_save_dir_only_to_who_sent_one(settings: Settings) -> None:
    for target, field in ((Target("webui"), None), (Target("eas", "mine"), "save_dir")):
        with pytest.raises(SavingFailed, match="could not be written to") as caught, small_files():
            noise = Picture(Image.frombytes("RGB", (128, 128), os.urandom(128 * 128 * 3)), seed=2)
            await outputs(settings).save(job(target=target), outcome(noise))
        assert caught.value.field == field


async def test_a_picture_that_failed_before_is_passed_on_as_it_is(settings: Settings) -> None:
    failed = Picture(None, seed=5, error="blocked")
    saved = await outputs(settings).save(job(), outcome(failed, picture()))
    assert saved.pictures[0] == failed and saved.pictures[1].path


async def test_infotext_stays_out_of_the_file_when_the_option_says_so(settings: Settings) -> None:
    saved = await outputs(settings).save(job(override_settings={"enable_pnginfo": False}), outcome(picture()))
    with Image.open(str(saved.pictures[0].path)) as image:
        assert image.text == {}


async def test_task_names_count_the_pictures_from_one_and_no_owner_leaves_their_folder(
    settings: Settings,
) -> None:
    one = replace(job(Target("task")), id="abc")
    saved = await outputs(settings).save(one, outcome(picture(), picture()))
    assert files_below(settings.outputs_dir) == ["images/alice/abc_1.png", "images/alice/abc_2.png"]
    assert saved.pictures[0].path == f"{settings.outputs_dir}/images/alice/abc_1.png"
    for owner in ("..", ".", "a/../../b", "/etc", ""):
        await outputs(settings).save(replace(one, owner=owner), outcome())
    assert files_below(settings.data_dir) == [
        "outputs/images/%2E%2E/abc_1.png",
        "outputs/images/%2E/abc_1.png",
        "outputs/images/%2Fetc/abc_1.png",
        "outputs/images/_/abc_1.png",
        "outputs/images/a%2F..%2F..%2Fb/abc_1.png",
        "outputs/images/alice/abc_1.png",
        "outputs/images/alice/abc_2.png",
        "state/link-secret",
    ]


async def test_a_mounted_path_is_told_with_its_object(tmp_path: Path) -> None:
    mount = tmp_path / "data"
    oss = OssSettings(mounts=((str(mount), "oss://examplebucket/data-oss"),))
    settings = settings_in(tmp_path, oss=oss)
    saved = (await outputs(settings).save(job(), outcome())).pictures[0]
    # What the guide's sample does by hand.
    assert saved.path is not None
    assert saved.oss_address == saved.path.replace(str(mount), "oss://examplebucket/data-oss")


async def test_a_mount_without_hard_links_is_written_to_all_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "no hard links here")

    monkeypatch.setattr("sd_cloud.outputs.files.os.link", refuse)
    monkeypatch.setattr("sd_cloud.outputs.links.link_secret", lambda state_dir: b"s" * 32)
    for _ in range(2):
        await outputs(settings).save(job(Target("webui")), outcome())
    assert files_below(settings.outputs_dir) == [
        "txt2img-images/2024-06-26/00000-1003.png",
        "txt2img-images/2024-06-26/00001-1003.png",
    ]
