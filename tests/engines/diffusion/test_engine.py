"""The worker as its process uses it: tiny checkpoints, real sampling."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_cloud.engines.base import Control, Verdict
from sd_cloud.errors import (
    BadRequest,
    Cancelled,
    CheckpointBroken,
    CheckpointNotFound,
    EngineFailed,
    OutOfMemory,
    ServiceError,
)
from sd_cloud.job import Job, Outcome, Progress
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"),
]

SMALL: dict[str, Any] = {
    "prompt": "a cat",
    "steps": 2,
    "width": 64,
    "height": 64,
    "seed": 7,
    "sampler_name": "Euler",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def worker(data_dir: Path) -> Iterator[Any]:
    from sd_cloud.engines.diffusion.engine import create

    yield create(install_models(data_dir))


def job(**changes: Any) -> Job:
    return Job(kind="txt2img", payload={**SMALL, **changes}, options={"sd_model_checkpoint": "tiny-a"})


def img2img(**changes: Any) -> Job:
    payload = {**SMALL, "init_images": [encoded(Image.new("RGB", (64, 64), "teal"))], **changes}
    return Job(kind="img2img", payload=payload, options={"sd_model_checkpoint": "tiny-a"})


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def made(worker: Any, one: Job) -> Outcome:
    return worker.run(one, lambda progress: None, Control())


def picture(outcome: Outcome, number: int = 0) -> Image.Image:
    image = outcome.pictures[number].image
    assert image is not None
    return image


def same(one: Outcome, other: Outcome) -> bool:
    return decibels(picture(one), picture(other)) > 60


def asking(verdict: Verdict, at_step: int) -> tuple[Any, Control]:
    control = Control()

    def report(progress: Progress) -> None:
        if progress.step == at_step:
            control.ask(verdict)

    return report, control


# --- progress, skip, interrupt, cancel ------------------------------------------------------------


def test_every_step_is_reported_with_a_small_picture(worker: Any) -> None:
    heard: list[Progress] = []
    worker.run(job(steps=3, n_iter=2), heard.append, Control())
    assert [(one.step, one.steps, one.job_no, one.job_count) for one in heard] == [
        (step, 3, number, 2) for number in (0, 1) for step in (1, 2, 3)
    ]
    assert heard[0].preview is not None and heard[0].preview.size == (8, 8)
    assert heard[-1].fraction == 1.0


def test_no_preview_is_made_when_the_options_say_so(worker: Any) -> None:
    heard: list[Progress] = []
    worker.run(job(override_settings={"live_previews_enable": False}), heard.append, Control())
    assert all(one.preview is None for one in heard)


def test_interrupting_keeps_what_is_there(worker: Any) -> None:
    report, control = asking("interrupt", 1)
    outcome = worker.run(job(steps=5, n_iter=3), report, control)
    assert outcome.interrupted
    assert len(outcome.pictures) == 1


def test_skipping_goes_on_with_the_next_batch(worker: Any) -> None:
    control = Control()
    steps: list[tuple[int, int]] = []

    def report(progress: Progress) -> None:
        steps.append((progress.job_no, progress.step))
        if (progress.job_no, progress.step) == (0, 2):
            control.ask("skip")

    outcome = worker.run(job(steps=4, n_iter=2), report, control)
    assert not outcome.interrupted
    assert len(outcome.pictures) == 2
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_cancelling_drops_everything_before_the_next_step(worker: Any) -> None:
    report, control = asking("cancel", 2)
    with pytest.raises(Cancelled):
        worker.run(job(steps=9), report, control)


# --- what comes out -------------------------------------------------------------------------------


def test_info_has_the_webuis_keys_in_its_order(worker: Any) -> None:
    info = made(worker, job()).info
    assert list(info) == [
        "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed",
        "all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps",
        "batch_size", "restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash",
        "sd_vae_name", "sd_vae_hash", "seed_resize_from_w", "seed_resize_from_h", "denoising_strength",
        "extra_generation_params", "index_of_first_image", "infotexts", "styles", "job_timestamp",
        "clip_skip", "is_using_inpainting_conditioning", "version",
    ]  # fmt: skip
    assert info["seed"] == 7
    assert info["sd_model_name"] == "tiny-a"


def test_a_grid_comes_first_when_several_pictures_are_saved(worker: Any) -> None:
    outcome = made(worker, job(batch_size=2, save_images=True))
    assert [one.role for one in outcome.pictures] == ["grid", "image", "image"]
    assert picture(outcome).size == (128, 64)
    assert outcome.info["index_of_first_image"] == 1
    assert len(outcome.info["infotexts"]) == 3


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"save_images": True}])
def test_no_grid_without_saving_or_for_one_picture(worker: Any, changes: dict[str, Any]) -> None:
    assert "grid" not in {one.role for one in made(worker, job(**changes)).pictures}


def test_pictures_of_a_batch_equal_those_made_singly(worker: Any) -> None:
    both = made(worker, job(batch_size=2, sampler_name="Euler a"))
    second = made(worker, job(seed=8, sampler_name="Euler a"))
    assert decibels(picture(both, 1), picture(second)) > 60


def test_a_seed_of_minus_one_is_drawn_and_told(worker: Any) -> None:
    outcome = made(worker, job(seed=-1))
    assert outcome.pictures[0].seed == outcome.info["seed"] >= 0


def test_every_sampler_makes_a_picture(worker: Any) -> None:
    from sd_cloud.engines.diffusion.catalogue_samplers import SAMPLERS

    for sampler in SAMPLERS:
        outcome = made(worker, job(sampler_name=sampler.name, steps=3))
        assert f"Sampler: {sampler.name}, " in outcome.pictures[0].infotext
        assert picture(outcome).getextrema() != ((0, 0),) * 3


def test_aliases_and_a_scheduler_in_the_name_are_understood(worker: Any) -> None:
    plain = made(worker, job(sampler_name="DPM++ 2M", scheduler="Exponential"))
    assert same(plain, made(worker, job(sampler_name="k_dpmpp_2m", scheduler="exponential")))
    assert same(plain, made(worker, job(sampler_name="DPM++ 2M Exponential")))


def test_styles_stand_around_the_prompt(worker: Any, data_dir: Path) -> None:
    rows = 'name,prompt,negative_prompt\nwarm,"{prompt}, warm light",cold\n'
    (data_dir / "styles.csv").write_text(rows, "utf-8")
    outcome = made(worker, job(styles=["warm", "missing"]))
    assert outcome.pictures[0].infotext.startswith("a cat, warm light\nNegative prompt: cold\nSteps: 2")
    assert outcome.info["comments"] == "Style not found: missing\n"


# --- networks -------------------------------------------------------------------------------------


def test_a_lora_changes_the_picture_and_leaves_no_trace(worker: Any) -> None:
    before = made(worker, job())
    with_lora = made(worker, job(prompt="a cat<lora:tiny-style:1>"))
    assert decibels(picture(before), picture(with_lora)) < 40
    assert decibels(picture(before), picture(made(worker, job()))) == float("inf")


def test_disabled_extra_networks_leave_none_of_the_last_jobs_at_work(worker: Any) -> None:
    plain, called = made(worker, job()), job(prompt="a cat<lora:tiny-style:1>")
    made(worker, called)
    assert same(plain, made(worker, job(prompt="a cat<lora:tiny-style:1>", disable_extra_networks=True)))


def test_a_lora_with_weight_zero_changes_nothing(worker: Any) -> None:
    assert same(made(worker, job()), made(worker, job(prompt="a cat<lora:tiny-style:0>")))


def test_an_unknown_lora_is_told_and_the_picture_made(worker: Any) -> None:
    outcome = made(worker, job(prompt="a cat<lora:nobody:1>"))
    assert outcome.info["comments"] == "Lora not found: nobody\n"
    assert same(outcome, made(worker, job()))


# --- second pass, source pictures -----------------------------------------------------------------


def test_the_second_pass_has_its_own_prompt_sampler_steps_and_checkpoint(worker: Any) -> None:
    outcome = made(
        worker,
        job(
            enable_hr=True,
            hr_scale=1.5,
            hr_upscaler="Latent (nearest-exact)",
            hr_prompt="a dog",
            hr_sampler_name="DPM++ 2M",
            hr_second_pass_steps=3,
            hr_checkpoint_name="tiny-b",
            denoising_strength=0.7,
        ),
    )
    assert picture(outcome).size == (96, 96)
    text = outcome.pictures[0].infotext
    assert "Hires sampler: DPM++ 2M" in text and "Hires prompt: a dog" in text
    assert "Hires checkpoint: tiny-b [53b85eef43]" in text and "Hires steps: 3" in text
    assert "Hires schedule type: Karras" in text
    assert same(made(worker, job()), made(worker, job()))


def test_a_picture_upscaler_serves_the_second_pass(worker: Any) -> None:
    outcome = made(worker, job(enable_hr=True, hr_upscaler="Lanczos", denoising_strength=0.0))
    assert picture(outcome).size == (128, 128)
    first = picture(made(worker, job())).resize((128, 128), Image.Resampling.LANCZOS)
    assert decibels(picture(outcome), first) > 10


def test_resizing_to_both_sides_cuts_what_is_too_much(worker: Any) -> None:
    outcome = made(worker, job(enable_hr=True, hr_resize_x=128, hr_resize_y=96, denoising_strength=0.5))
    assert picture(outcome).size == (128, 96)
    assert "Hires resize: 128x96" in outcome.pictures[0].infotext


def test_the_first_pass_is_there_to_be_saved_when_the_options_say_so(worker: Any) -> None:
    outcome = made(
        worker,
        job(
            enable_hr=True,
            hr_upscaler="Latent",
            denoising_strength=0.5,
            save_images=True,
            override_settings={"save_images_before_highres_fix": True},
        ),
    )
    assert [(one.role, one.image.size) for one in outcome.pictures if one.image] == [
        ("first_pass", (64, 64)),
        ("image", (128, 128)),
    ]


def test_the_refiner_takes_over_in_the_middle(worker: Any) -> None:
    plain = made(worker, job(steps=6))
    refined = made(worker, job(steps=6, refiner_checkpoint="tiny-b", refiner_switch_at=0.5))
    assert "Refiner: tiny-b [53b85eef43], Refiner switch at: 0.5" in refined.pictures[0].infotext
    assert decibels(picture(plain), picture(refined)) < 40
    assert same(plain, made(worker, job(steps=6)))


def test_no_change_asked_for_gives_the_source_picture_through_the_vae(worker: Any) -> None:
    few, many = (made(worker, img2img(denoising_strength=0.0, steps=steps)) for steps in (2, 8))
    assert decibels(picture(few), picture(many)) > 40


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_every_resize_mode_gives_the_size_asked_for(worker: Any, mode: int) -> None:
    source = encoded(Image.new("RGB", (100, 60), "teal"))
    outcome = made(worker, img2img(init_images=[source], resize_mode=mode))
    assert picture(outcome).size == (64, 64)


@pytest.mark.parametrize("fill", [0, 1, 2, 3])
def test_what_is_not_masked_stays(worker: Any, fill: int) -> None:
    source = Image.new("RGB", (64, 64), (10, 120, 200))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    one = img2img(
        init_images=[encoded(source)],
        mask=encoded(mask),
        mask_blur=0,
        inpainting_fill=fill,
        inpaint_full_res=False,
    )
    image = picture(made(worker, one))
    assert image.crop((32, 0, 64, 64)).getcolors() == [(2048, (10, 120, 200))]
    assert image.crop((0, 0, 32, 64)).getcolors() != [(2048, (10, 120, 200))]


def test_an_inverted_mask_changes_the_other_half(worker: Any) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    one = img2img(mask=encoded(mask), mask_blur=0, inpainting_mask_invert=1, inpaint_full_res=False)
    outcome = made(worker, one)
    assert picture(outcome).crop((0, 0, 32, 64)).getcolors() == [(2048, (0, 128, 128))]
    assert "Mask mode: Inpaint not masked" in outcome.pictures[0].infotext


def test_an_empty_mask_means_plain_img2img_and_says_so(worker: Any) -> None:
    outcome = made(worker, img2img(mask=encoded(Image.new("L", (64, 64), 0))))
    assert "mask is blank" in outcome.info["comments"]
    assert same(outcome, made(worker, img2img()))


def test_masks_are_returned_when_the_options_say_so(worker: Any) -> None:
    settings = {"return_mask": True, "return_mask_composite": True}
    one = img2img(mask=encoded(Image.new("L", (64, 64), 255)), override_settings=settings)
    assert [one.role for one in made(worker, one).pictures] == ["image", "mask", "mask_composite"]


def test_colour_correction_brings_the_picture_nearer_to_its_source(worker: Any) -> None:
    plain, corrected = (
        picture(made(worker, img2img(denoising_strength=0.9, override_settings=settings))).resize((1, 1))
        for settings in ({}, {"img2img_color_correction": True})
    )
    teal = (0, 128, 128)

    def distance(image: Image.Image) -> int:
        pixel = image.convert("RGB").getpixel((0, 0))
        return sum(abs(a - b) for a, b in zip(pixel, teal, strict=True))

    assert distance(corrected) < distance(plain)


# --- checkpoints and VAEs -------------------------------------------------------------------------


def test_the_jobs_checkpoint_and_vae_are_that_jobs_alone(worker: Any) -> None:
    before = made(worker, job())
    other = made(worker, replace(job(), checkpoint="tiny-b", vae="tiny-vae.safetensors"))
    assert "Model: tiny-b" in other.pictures[0].infotext
    assert "VAE: tiny-vae.safetensors" in other.pictures[0].infotext
    assert decibels(picture(before), picture(made(worker, job()))) == float("inf")


def test_a_checkpoint_put_in_while_running_is_found(worker: Any, data_dir: Path) -> None:
    folder = data_dir / "models" / "Stable-diffusion"
    shutil.copy(folder / "tiny-a.safetensors", folder / "late.safetensors")
    shutil.copy(folder / "tiny-a.yaml", folder / "late.yaml")
    outcome = made(worker, replace(job(), checkpoint="late"))
    assert same(outcome, made(worker, job()))


def test_an_unknown_checkpoint_or_vae_is_named_with_those_there(worker: Any) -> None:
    with pytest.raises(CheckpointNotFound, match=r"nobody.*tiny-a"):
        made(worker, replace(job(), checkpoint="nobody"))
    with pytest.raises(CheckpointNotFound, match=r"nobody.*tiny-vae"):
        made(worker, replace(job(), vae="nobody"))


def broken(folder: Path, name: str, how: str) -> str:
    whole = (folder / "tiny-a.safetensors").read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "text": b"<!DOCTYPE html><html>not a model</html>",
        "empty": b"",
    }[how]
    (folder / name).write_bytes(content)
    return name


@pytest.mark.parametrize("how", ["truncated", "text", "empty"])
def test_a_broken_file_is_named_and_the_next_job_served(worker: Any, data_dir: Path, how: str) -> None:
    name = broken(data_dir / "models" / "Stable-diffusion", f"{how}.safetensors", how)
    with pytest.raises(CheckpointBroken, match=name):
        made(worker, replace(job(), checkpoint=name))
    assert made(worker, job()).pictures


def test_a_file_of_another_kind_is_refused_with_what_it_is_not(worker: Any, data_dir: Path) -> None:
    folder = data_dir / "models" / "Stable-diffusion"
    shutil.copy(GOLDEN / "checkpoints" / "tiny-vae.safetensors", folder / "vae-only.safetensors")
    with pytest.raises(CheckpointBroken, match=r"vae-only.*not a checkpoint of a known family"):
        made(worker, replace(job(), checkpoint="vae-only"))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm.txt"),))


def test_a_pickle_that_would_run_code_is_refused(
    worker: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, data_dir / "models" / "Stable-diffusion" / "harm.ckpt")
    with pytest.raises(CheckpointBroken, match=r"harm\.ckpt is refused"):
        made(worker, replace(job(), checkpoint="harm.ckpt"))
    assert not (tmp_path / "harm.txt").exists()


def test_a_pickle_of_tensors_is_a_checkpoint_like_any(worker: Any, data_dir: Path) -> None:
    from safetensors.torch import load_file

    folder = data_dir / "models" / "Stable-diffusion"
    torch.save({"state_dict": load_file(folder / "tiny-a.safetensors")}, folder / "old.ckpt")
    shutil.copy(folder / "tiny-a.yaml", folder / "old.yaml")
    assert same(made(worker, replace(job(), checkpoint="old.ckpt")), made(worker, job()))


# --- refusals and failures ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "fact"),
    [
        ({"sampler_name": "Eulr"}, "sampler_name", "there are DPM\\+\\+ 2M, "),
        ({"scheduler": "Linear"}, "scheduler", "there are Automatic, "),
        ({"enable_hr": True, "hr_upscaler": "Nothing 8x"}, "hr_upscaler", "Lanczos"),
        ({"enable_hr": True, "hr_checkpoint_name": "nobody"}, "hr_checkpoint_name", "tiny-a"),
        ({"refiner_checkpoint": "nobody", "refiner_switch_at": 0.5}, "refiner_checkpoint", "tiny-a"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"width": "wide"}, "width", "whole number"),
        ({"cfg_scale": "7"}, "cfg_scale", "number"),
        ({"denoising_strength": 1.5}, "denoising_strength", "at most 1"),
        ({"sampler_name": "UniPC", "steps": 2}, "steps", "at least 3"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "two"}}, "CLIP_stop", "whole number"),
        ({"prompt": "<lora:tiny-style:much>"}, "prompt", "much"),
        ({"scheduler": "Karras", "override_settings": {"sigma_max": -1}}, "sigma_max", "at least 0"),
        ({"scheduler": "Beta", "override_settings": {"beta_dist_beta": 0}}, "beta_dist_beta", "more than 0"),
        ({"prompt": "<lora:tiny-style:nan>"}, "prompt", "-1000 to 1000"),
        ({"negative_prompt": "x" * 100_001}, "negative_prompt", "100001 characters; at most 100000"),
        ({"prompt": "<lora:tiny-style:1:1:inf>"}, "prompt", "-1000 to 1000"),
        ({"override_settings": {"eta_noise_seed_delta": 10**30}}, "eta_noise_seed_delta", "2.62"),
        ({"enable_hr": True, "hr_resize_x": 7}, "hr_resize_x", "7x7 pixels"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_what_there_is(
    worker: Any, changes: dict[str, Any], field: str, fact: str
) -> None:
    with pytest.raises((BadRequest, CheckpointNotFound), match=rf"{field}.*{fact}"):
        made(worker, job(**changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"init_images": []}, "init_images"),
        ({"init_images": ["bm90IGEgcGljdHVyZQ=="]}, "init_images"),
        ({"mask": "bm90IGEgcGljdHVyZQ=="}, "mask"),
    ],
)
def test_a_source_that_is_no_picture_is_refused(worker: Any, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=field):
        made(worker, img2img(**changes))


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            OutOfMemory,
        ),
        (RuntimeError("anything else"), EngineFailed),
        (KeyError("unexpected"), EngineFailed),
    ],
)
def test_after_any_failure_the_next_job_is_served(
    worker: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, wanted: type[ServiceError]
) -> None:
    from sd_cloud.engines.diffusion import guidance

    def fail(*_: Any) -> None:
        raise raised

    with monkeypatch.context() as patch, pytest.raises(wanted):
        patch.setattr(guidance.Guided, "_unet", fail)
        made(worker, job())
    assert made(worker, job()).pictures


def test_faces_without_weights_stay_as_they_are_and_info_says_so(worker: Any) -> None:
    outcome = made(worker, job(restore_faces=True))
    assert "Faces were not restored" in outcome.info["comments"]
    assert "Face restoration: CodeFormer" in outcome.pictures[0].infotext
    assert same(outcome, made(worker, job()))
