"""The catalogue names files as the webui does, reads no weights and survives bad files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sd_cloud.engines.base import checkpoint_aliases
from sd_cloud.engines.diffusion import catalogue
from sd_cloud.engines.diffusion.hashes import HashBook
from sd_cloud.settings import Settings, settings_below

SHARED = Path(__file__).resolve().parents[4] / "shared"
ANSWERS = SHARED / "reference" / "webui-1.10.1"
GOLDEN = SHARED / "golden" / "checkpoints"
needs_reference = pytest.mark.skipif(
    not ANSWERS.is_dir(), reason="needs shared/reference beside the repository"
)
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")


def tensors(path: Path, metadata: dict[str, str] | None = None, **shapes: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in (shapes or {"w": (2,)}).items()}
    save_file(arrays, path, metadata)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path / "data")


def answer(name: str) -> Any:
    return json.loads((ANSWERS / f"{name}.json").read_text())


def test_a_checkpoint_by_flag_is_the_first_of_all(settings: Settings, tmp_path: Path) -> None:
    folder = settings.folders.checkpoints[0]
    for path in (folder / "a.safetensors", folder / "z" / "b.safetensors", tmp_path / "own.safetensors"):
        tensors(path)
    outside = replace(settings, ckpt=tmp_path / "own.safetensors")
    names = ["own.safetensors", "a.safetensors", "z/b.safetensors"]
    assert [one.name for one in catalogue.scan(outside).checkpoints] == names
    inside = replace(settings, ckpt=folder / "z" / "b.safetensors")
    assert [one.name for one in catalogue.scan(inside).checkpoints] == ["z/b.safetensors", "a.safetensors"]
    gone = replace(settings, ckpt=tmp_path / "gone.safetensors")
    assert [one.name for one in catalogue.scan(gone).checkpoints] == ["a.safetensors", "z/b.safetensors"]


def test_checkpoints_are_named_below_their_folder_and_ordered_by_number(settings: Settings) -> None:
    folder = settings.folders.checkpoints[0]
    for name in ("v10.safetensors", "v2.safetensors", "sub/deep.ckpt", "v2.vae.safetensors", "notes.txt"):
        tensors(folder / name)
    (folder / "v2.yaml").write_text("model: {}")
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    tensors(folder / ".hidden" / "x.safetensors")

    found = catalogue.scan(settings).checkpoints

    assert [one.name for one in found] == ["v2.safetensors", "v10.safetensors", "sub/deep.ckpt"]
    assert [one.title for one in found] == [one.name for one in found]
    assert found[0].config == str(folder / "v2.yaml") and found[1].config is None
    assert found[0].sha256 is None and found[0].hash is None


@needs_reference
@needs_golden
def test_a_hashed_checkpoint_is_listed_as_the_webui_lists_it(settings: Settings) -> None:
    folder = settings.folders.checkpoints[0]
    folder.mkdir(parents=True)
    for name in ("tiny-a", "tiny-b"):
        for ending in (".safetensors", ".yaml"):
            (folder / (name + ending)).symlink_to(GOLDEN / (name + ending))
    catalogue.hash_book(settings).sha256(folder / "tiny-a.safetensors")

    found = catalogue.scan(settings)
    listed = [
        {
            "title": one.title.replace(one.hash or "-", "HASH"),
            "hash": one.hash is not None,
            "config": Path(one.config or "").name,
        }
        for one in found.checkpoints
    ]
    expected = [
        {
            "title": one["title"].replace(one["hash"] or "-", "HASH"),
            "hash": one["hash"] is not None,
            "config": Path(one["config"]).name,
        }
        for one in answer("sd-models")
    ]
    assert listed == expected
    for alias in ("tiny-a", "tiny-a.safetensors", "f6fbbf8740", "tiny-a [f6fbbf8740]"):
        assert found.checkpoint(alias) == found.checkpoints[0], checkpoint_aliases(found.checkpoints[0])


def test_a_checkpoint_answers_to_its_oldest_hash_too(settings: Settings) -> None:
    path = settings.folders.checkpoints[0] / "old.ckpt"
    path.parent.mkdir(parents=True)
    content = os.urandom(0x100000 + 0x20000)
    path.write_bytes(content)
    short = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    found = catalogue.scan(settings)
    assert found.checkpoint(short) == found.checkpoint(f"old.ckpt [{short}]") == found.checkpoints[0]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("0123456789", True), ("a.ckpt [0123456789]", True), ("a" * 64, True), ("another", False)],
)
def test_a_hash_that_is_not_there_may_be_that_of_a_file_without_one(
    settings: Settings, wanted: str, told: bool
) -> None:
    tensors(settings.folders.checkpoints[0] / "new.safetensors")
    remark = catalogue.scan(settings).unhashed_remark(wanted)
    assert ("1 of them have no hash yet" in remark) == told


def test_of_two_files_of_one_name_the_last_folders_counts(settings: Settings, tmp_path: Path) -> None:
    flag, own = tmp_path / "flag", tmp_path / "own"
    both = {"checkpoints": (flag, own), "loras": (own, flag), "vaes": (own / "vae", flag / "vae")}
    for folder in (flag, own):
        tensors(folder / "same.safetensors")
        tensors(folder / "of-both.vae.safetensors")
        tensors(folder / "vae" / "b.safetensors")
    tensors(flag / "z.safetensors")
    found = catalogue.scan(replace(settings, folders=replace(settings.folders, **both)))
    names = ("same.safetensors", "z.safetensors")
    listed = [one for one in found.checkpoints if one.name in names]
    assert [one.filename for one in listed] == [str(own / names[0]), str(flag / names[1])]
    assert str(flag / names[0]) in [one.filename for one in found.loras]
    by_name = {one.name: one.filename for one in found.vaes}
    assert by_name["b.safetensors"] == str(flag / "vae" / "b.safetensors")
    assert by_name["of-both.vae.safetensors"] == str(flag / "of-both.vae.safetensors")


def test_a_link_back_to_a_folder_around_it_lists_nothing_twice(settings: Settings, tmp_path: Path) -> None:
    folder, other = settings.folders.checkpoints[0], tmp_path / "other"
    tensors(folder / "a.safetensors")
    tensors(other / "b.safetensors")
    (folder / "itself").symlink_to(folder)
    (folder / "elsewhere").symlink_to(other)
    (folder / "again").symlink_to(other)
    (other / "back").symlink_to(folder.parent)
    found = [one.name for one in catalogue.scan(settings).checkpoints]
    assert sorted(found) == ["a.safetensors", "again/b.safetensors", "elsewhere/b.safetensors"]


def test_vaes_come_from_their_folder_and_from_beside_checkpoints(settings: Settings) -> None:
    tensors(settings.folders.vaes[0] / "b.safetensors")
    tensors(settings.folders.checkpoints[0] / "anime.vae.safetensors")
    checkpoint = tensors(settings.folders.checkpoints[0] / "anime.safetensors")
    found = catalogue.scan(settings)
    assert [one.name for one in found.vaes] == ["anime.vae.safetensors", "b.safetensors"]
    beside = catalogue.vae_beside(found, found.checkpoints[0])
    assert found.checkpoints[0].filename == str(checkpoint)
    assert beside is not None and beside.name == "anime.vae.safetensors"


@needs_golden
def test_loras_carry_alias_and_parsed_metadata(settings: Settings) -> None:
    tensors(
        settings.folders.loras[0] / "file.safetensors",
        {
            "z": "1",
            "ss_tag_frequency": '{"a": {"cat": 2}}',
            "ss_output_name": "trained",
            "ss_sd_model_name": "m",
        },
    )
    (settings.folders.loras[0] / "tiny-style.safetensors").symlink_to(GOLDEN / "tiny-style.safetensors")
    first, second = catalogue.scan(settings).loras
    assert (first.name, first.extra["alias"]) == ("file", "trained")
    assert first.extra["metadata"]["ss_tag_frequency"] == {"a": {"cat": 2}}
    assert list(first.extra["metadata"])[:2] == ["ss_sd_model_name", "ss_tag_frequency"]
    assert second.extra == {
        "alias": "tiny-style",
        "metadata": {"ss_output_name": "tiny-style", "ss_base_model_version": "sd_v1"},
    }


@needs_golden
def test_hashes_are_the_ones_in_the_webuis_infotexts(tmp_path: Path) -> None:
    book = HashBook(tmp_path / "hashes.json")
    assert (book.addnet(GOLDEN / "tiny-style.safetensors") or "")[:12] == "ed53769783d7"
    assert (book.sha256(GOLDEN / "tiny-word.safetensors") or "")[:12] == "7a9ebf50a237"
    assert (book.sha256(GOLDEN / "tiny-vae.safetensors") or "")[:10] == "3847c69fc3"


def test_an_embeddings_size_is_read_from_every_form_it_is_saved_in(settings: Settings) -> None:
    folder = settings.folders.embeddings[0]
    tensors(folder / "plain.safetensors", emb_params=(3, 64))
    tensors(folder / "single.safetensors", emb_params=(768,))
    tensors(folder / "Both.safetensors", clip_l=(2, 768), clip_g=(2, 1280))
    tensors(folder / "unknown.safetensors", a=(1,), b=(1,))
    trained = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(5, 768))}),
        "name": "old",
        "step": 1500,
        "sd_checkpoint": "cafe",
        "sd_checkpoint_name": "base",
    }
    torch.save(trained, folder / "old.pt")
    torch.save(trained, folder / "older.pt", _use_new_zipfile_serialization=False)
    torch.save({"<cat>": torch.zeros(768)}, folder / "concept.bin")

    found = {one.name: one.extra for one in catalogue.scan(settings).embeddings}

    sizes = {name: (extra["shape"], extra["vectors"]) for name, extra in found.items()}
    assert sizes == {
        "Both": (2048, 2),
        "concept": (768, 1),
        "old": (768, 5),
        "older": (768, 5),
        "plain": (64, 3),
        "single": (768, 1),
    }
    assert found["old"]["step"] == found["older"]["step"] == 1500
    assert found["old"]["sd_checkpoint_name"] == "base"


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch " + os.environ["RAN"],))


def test_a_pickle_that_would_run_code_is_left_out_and_does_not_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    settings.folders.embeddings[0].mkdir(parents=True)
    torch.save({"*": Runs()}, settings.folders.embeddings[0] / "evil.pt")
    assert catalogue.scan(settings).embeddings == ()
    assert not (tmp_path / "ran").exists()
    assert "evil.pt" in caplog.text and "system" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"abc", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 4) + b"[1]x"]
)
def test_a_broken_safetensors_file_does_not_stop_the_scan(
    settings: Settings, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (settings.folders.loras[0], settings.folders.embeddings[0]):
        folder.mkdir(parents=True)
        (folder / "broken.safetensors").write_bytes(content)
    tensors(settings.folders.loras[0] / "good.safetensors")
    found = catalogue.scan(settings)
    assert [one.name for one in found.loras] == ["broken", "good"]
    assert found.embeddings == ()
    assert "broken.safetensors" in caplog.text


def test_controlnets_are_listed_with_the_short_hash_and_without_annotators(settings: Settings) -> None:
    folder = settings.folders.controlnets[0]
    (folder / "annotators").mkdir(parents=True)
    (folder / "annotators" / "body.pth").write_bytes(b"x")
    content = os.urandom(0x100000 + 0x20000)
    (folder / "canny.pth").write_bytes(content)
    expected = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert [one.name for one in catalogue.scan(settings).controlnets] == [f"canny [{expected}]"]


@needs_reference
def test_upscalers_begin_as_the_webuis_do_and_then_list_files(settings: Settings) -> None:
    folder = settings.folders.esrgan[0]
    folder.mkdir(parents=True)
    for name in ("RealESRGAN_x4plus.pth", "4x-zz.pth", "4x-AA.safetensors"):
        (folder / name).write_bytes(b"")
    found = catalogue.scan(settings).upscalers
    assert [one.name for one in found] == [
        "None",
        "Lanczos",
        "Nearest",
        "4x-AA",
        "4x-zz",
        "R-ESRGAN 4x+",
        "RealESRGAN_x4plus",
    ]
    shown = ("model_name", "model_path", "scale")
    plain = [
        {"name": one.name, "model_url": None, **{key: one.extra[key] for key in shown}} for one in found[:3]
    ]
    assert plain == answer("upscalers")[:3]
    assert [one.extra["model_name"] for one in found[3:]] == ["ESRGAN_4x", "ESRGAN_4x", None, "ESRGAN_4x"]


@needs_reference
def test_samplers_and_schedulers_are_the_webuis_word_for_word(settings: Settings) -> None:
    found = catalogue.scan(settings)
    samplers = [
        {"name": one.name, "aliases": list(one.aliases), "options": dict(one.options)}
        for one in found.samplers
    ]
    schedulers = [
        {
            "name": one.name,
            "label": one.label,
            "aliases": list(one.aliases) or None,
            "default_rho": one.default_rho,
            "need_inner_model": one.need_inner_model,
        }
        for one in found.schedulers
    ]
    assert samplers == answer("samplers")
    assert schedulers == answer("schedulers")


def test_every_listed_sampler_and_scheduler_is_there_and_no_other() -> None:
    from sd_cloud.engines.diffusion.noise_levels import SCHEDULES
    from sd_cloud.engines.diffusion.samplers import BY_NAME, TIMESTEP_SAMPLERS

    assert {one.name for one in catalogue.SAMPLERS} == {*BY_NAME, *TIMESTEP_SAMPLERS}
    assert {one.name for one in catalogue.SCHEDULERS} == {"automatic", *SCHEDULES}


def test_a_hash_is_computed_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"one")
    book = HashBook(tmp_path / "state" / "hashes.json")
    assert book.known(file) is None
    first = book.sha256(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    assert HashBook(tmp_path / "state" / "hashes.json", compute=False).known(file) == first

    os.utime(file, ns=(1, 1))
    file.write_bytes(b"two2")
    assert book.known(file) is None
    assert book.sha256(file) == hashlib.sha256(b"two2").hexdigest()


def test_with_no_hashing_nothing_is_computed(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"one")
    book = HashBook(tmp_path / "hashes.json", compute=False)
    assert book.sha256(file) is None and book.addnet(file) is None
    assert not (tmp_path / "hashes.json").exists()


def test_two_books_on_one_file_see_each_others_hashes(tmp_path: Path) -> None:
    one, two = (HashBook(tmp_path / "hashes.json") for _ in range(2))
    for name, book in (("a", one), ("b", two)):
        (tmp_path / name).write_text(name)
        book.sha256(tmp_path / name)
    assert one.known(tmp_path / "b") == hashlib.sha256(b"b").hexdigest()
    assert two.known(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()


def test_the_catalogue_is_scanned_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from sd_cloud.engines.diffusion import catalogue;"
        "from sd_cloud.settings import settings_below;"
        f"catalogue.scan(settings_below({str(tmp_path)!r}));"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
