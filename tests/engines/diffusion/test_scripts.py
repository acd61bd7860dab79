"""The webui's built-in img2img scripts, on a stand-in for the engine and on the real one."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.interrogate.files import BLIP, CLIP
from sd_cloud.engines.diffusion.scripts.loopback import strength_at
from sd_cloud.engines.diffusion.scripts.outpainting import matched, plan_growths, shaped_noise
from sd_cloud.engines.diffusion.scripts.run import Before, asks_for_script, encoded, run_script
from sd_cloud.errors import BadRequest, Cancelled, NotImplementedHere
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.settings import Settings, settings_below

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))


@dataclass
class Brightening:
    """In the place of the engine: gives back each init image, brighter by one, at the asked size."""

    asked: list[Mapping[str, Any]] = field(default_factory=list)
    marks: list[Mapping[str, Any]] = field(default_factory=list)
    last_seeds: list[int | None] = field(default_factory=list)
    control: Control = field(default_factory=Control)
    interrupt_at: int | None = None

    def __call__(self, job: Job, before: Before, report: Any) -> Outcome:
        self.asked.append(job.payload)
        self.marks.append(before.marks)
        self.last_seeds.append(before.last_seed)
        report(Progress(step=1, steps=1))
        if self.interrupt_at == len(self.asked):
            self.control.ask("interrupt")
        payload = job.payload
        size = (payload.get("width", 512), payload.get("height", 512))
        seed = payload.get("seed", 5)
        made = []
        for number, text in enumerate(payload["init_images"]):
            image = pictures.decode_picture(text, "init_images").convert("RGB").resize(size)
            brighter = image.point(lambda value: min(value + 1, 255))
            made.append(Picture(brighter, seed=seed + number, infotext=f"Seed: {seed + number}"))
        info = {"infotexts": [made[0].infotext], "seed": seed, "subseed": 1, "all_seeds": [seed]}
        return Outcome((*made, Picture(photo(), role="control_map")), info)


def run(settings: Settings, make: Brightening, name: str, args: list[Any], **fields: Any) -> Outcome:
    payload = {"script_name": name, "script_args": args, "init_images": [encoded(photo())], **fields}
    job = Job("img2img", payload, options={"grid_only_if_multiple": True})
    return run_script(job, lambda _: None, make.control, make, settings=settings, device="cpu")


# --- names and arguments ------------------------------------------------------------------------


def test_a_job_asks_for_a_script_by_name() -> None:
    assert not asks_for_script(Job("img2img", {}))
    assert not asks_for_script(Job("img2img", {"script_name": "None"}))
    assert asks_for_script(Job("img2img", {"script_name": "loopback"}))


@pytest.mark.parametrize(
    ("name", "args", "field", "fact"),
    [
        ("custom code", [], "script_name", "Loopback"),
        ("Loopback", [0], r"script_args\[0\]", "loops: 0 is not from 1 to 32"),
        ("Loopback", ["4"], r"script_args\[0\]", "not a number"),
        ("Loopback", [4, 0.5, "Steep"], r"script_args\[2\]", "Aggressive"),
        ("Loopback", [1] * 5, "script_args", "takes 4 arguments"),
        ("SD upscale", ["", 64, "ESRGAN"], r"script_args\[2\]", "None, Lanczos, Nearest"),
        ("SD upscale", ["", 64, 17], r"script_args\[2\]", "1: Lanczos"),
        ("SD upscale", ["", 256], r"script_args\[1\]", "not less than"),
        ("Outpainting mk2", ["", 128, 8, ["north"]], r"script_args\[3\]", "left, right"),
        ("Outpainting mk2", ["", 128, 8, []], r"script_args\[3\]", "grows to no side"),
        ("Poor man's outpainting", [128], r"script_args\[0\]", "not less than"),
        ("Poor man's outpainting", [32, 64], r"script_args\[1\]", "leaves nothing"),
        ("img2img alternative test", ["", "yes"], r"script_args\[1\]", "not true or false"),
        ("img2img alternative test", ["", True, True, 5], r"script_args\[3\]", "not a string"),
    ],
)
def test_wrong_names_and_arguments_are_named(
    settings: Settings, name: str, args: list[Any], field: str, fact: str
) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: ") as caught:
        run(settings, Brightening(), name, args, width=128, height=128)
    assert fact in str(caught.value)


def test_txt2img_has_none_that_wants_a_picture(settings: Settings) -> None:
    job = Job("txt2img", {"script_name": "Loopback"})
    with pytest.raises(BadRequest, match=r"^script_name: 'Loopback' is no script of txt2img"):
        run_script(job, lambda _: None, Control(), Brightening(), settings=settings, device="cpu")


def test_a_script_needs_a_picture(settings: Settings) -> None:
    with pytest.raises(BadRequest, match=r"^init_images: "):
        run(settings, Brightening(), "Loopback", [], init_images=[])


# --- loopback -----------------------------------------------------------------------------------


def test_each_loop_starts_from_the_last_ones_picture(settings: Settings) -> None:
    make = Brightening()
    outcome = run(
        settings, make, "loopback", [3, 0.2, "Linear"], seed=10, denoising_strength=0.6, inpainting_fill=2
    )
    assert [one["seed"] for one in make.asked] == [10, 11, 12]
    assert make.last_seeds == [None, 10, 11]
    assert [one["denoising_strength"] for one in make.asked] == pytest.approx([0.6, 0.4, 0.2])
    assert [one["inpainting_fill"] for one in make.asked] == [2, 1, 1]
    assert make.marks[0] == {"Final denoising strength": 0.2, "Denoising curve": "Linear"}
    assert len({one["subseed"] for one in make.asked}) == 1
    grid, *images = outcome.pictures
    assert grid.role == "grid" and [one.role for one in images] == ["image"] * 3
    assert grid.image is not None and images[0].image is not None
    assert grid.image.size == (3 * images[0].image.width, images[0].image.height)
    second = pictures.decode_picture(make.asked[1]["init_images"][0], "x")
    assert second.tobytes() == images[0].image.tobytes()
    assert outcome.info["infotexts"] == ["Seed: 10"] * 4 and outcome.info["seed"] == 10


def test_several_batches_give_the_last_picture_of_each(settings: Settings) -> None:
    make = Brightening()
    outcome = run(settings, make, "Loopback", [2], n_iter=3, seed=1)
    assert len(make.asked) == 6 and all(one["n_iter"] == 1 and one["batch_size"] == 1 for one in make.asked)
    assert make.asked[2]["init_images"] == make.asked[0]["init_images"]
    assert len(outcome.of_role("image")) == 3


def test_curves_bend_between_the_same_ends() -> None:
    for curve in ("Linear", "Aggressive", "Lazy"):
        assert strength_at(0, 5, 0.8, 0.2, curve) == 0.8
        assert strength_at(4, 5, 0.8, 0.2, curve) == pytest.approx(0.2)
    middle = [strength_at(2, 5, 0.0, 1.0, curve) for curve in ("Lazy", "Linear", "Aggressive")]
    assert middle == sorted(middle) and middle[1] == 0.5
    assert strength_at(0, 1, 0.8, 0.2, "Linear") == 0.8


def test_each_loop_may_describe_its_picture_in_its_prompt(settings: Settings) -> None:
    for folder, name in ((settings.folders.blip[0], BLIP), (settings.folders.clip[0], CLIP)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    seen: list[str] = []

    def describe(job: Job, model: str, image: str) -> str:
        seen.append(image)
        return f"{model} {len(seen)}"

    make = Brightening()
    args = {"script_name": "Loopback", "script_args": [2, 0.5, "Linear", "CLIP"], "prompt": "a cat"}
    job = Job("img2img", {**args, "init_images": [encoded(photo())]})
    run_script(job, lambda _: None, Control(), make, settings=settings, device="cpu", describe=describe)
    assert [one["prompt"] for one in make.asked] == ["a cat, clip 1", "a cat, clip 2"]
    first, second = (np.asarray(pictures.decode_picture(one, "x"), int) for one in seen)
    assert first.shape == (64, 64, 3) and second.shape == (512, 512, 3)


def test_what_describing_lacks_is_told_before_the_first_loop(settings: Settings) -> None:
    make = Brightening()
    with pytest.raises(NotImplementedHere, match=r"^script_args\[3\]: 'deepdanbooru' needs"):
        run(settings, make, "Loopback", [2, 0.5, "Linear", "DeepBooru"])
    assert not make.asked


def test_an_interrupted_script_keeps_what_is_there_and_a_cancelled_one_nothing(settings: Settings) -> None:
    make = Brightening(interrupt_at=3)
    outcome = run(settings, make, "Loopback", [5])
    assert outcome.interrupted and len(make.asked) == 3 and len(outcome.of_role("image")) == 2
    cancelled = Brightening()
    cancelled.control.ask("cancel")
    with pytest.raises(Cancelled):
        run(settings, cancelled, "Loopback", [5])


def test_progress_counts_over_all_jobs(settings: Settings) -> None:
    seen: list[Progress] = []
    make = Brightening()
    payload = {"script_name": "Loopback", "script_args": [4], "init_images": [encoded(photo())]}
    run_script(Job("img2img", payload), seen.append, Control(), make, settings=settings, device="cpu")
    assert [(one.job_no, one.job_count) for one in seen] == [(place, 4) for place in range(4)]


# --- SD upscale ---------------------------------------------------------------------------------


def test_tiles_of_the_enlarged_picture_are_made_anew_and_joined(settings: Settings) -> None:
    make = Brightening()
    source = Image.new("RGB", (96, 64), (10, 20, 30))
    outcome = run(
        settings,
        make,
        "SD upscale",
        ["", 16, "Lanczos", 2.0],
        init_images=[encoded(source)],
        width=80,
        height=80,
        batch_size=2,
        seed=3,
    )
    (made,) = outcome.pictures
    assert made.image is not None and made.image.size == (192, 128)
    assert np.abs(np.asarray(made.image, int) - [11, 21, 31]).max() <= 1
    assert [len(one["init_images"]) for one in make.asked] == [2, 2, 2] and [
        one["seed"] for one in make.asked
    ] == [3, 4, 5]
    assert make.marks[0] == {"SD upscale overlap": 16, "SD upscale upscaler": "Lanczos"}


def test_the_upscaler_may_be_named_or_numbered_and_none_keeps_the_size(settings: Settings) -> None:
    for asked, size in (("nearest", (128, 128)), (1, (128, 128)), (0, (64, 64)), ("None", (64, 64))):
        outcome = run(settings, Brightening(), "SD upscale", ["", 0, asked], width=64, height=64)
        image = outcome.pictures[0].image
        assert image is not None and image.size == size, asked


def test_several_large_pictures_have_seeds_one_apart(settings: Settings) -> None:
    outcome = run(settings, Brightening(), "SD upscale", ["", 0, 0], width=64, height=64, n_iter=2, seed=9)
    assert [one.seed for one in outcome.pictures] == [9, 10]


# --- poor man's outpainting ---------------------------------------------------------------------


def test_only_tiles_that_show_something_new_are_made(settings: Settings) -> None:
    make = Brightening()
    source = photo(128, 64)
    args, sent = [32, 4, 1, ["right"]], [encoded(source)]
    outcome = run(
        settings, make, "Poor man's outpainting", args, init_images=sent, width=64, height=64, seed=3
    )
    (made,) = outcome.pictures
    assert made.image is not None and made.image.size == (192, 64) and made.seed == 3
    assert [one["seed"] for one in make.asked] == [3, 4]
    first = make.asked[0]
    assert (first["mask_blur"], first["inpainting_fill"], first["inpaint_full_res"]) == (8, 1, False)
    kept = np.asarray(made.image, int)[:, :32]
    assert np.abs(kept - np.asarray(source, int)[:, :32]).max() <= 1


# --- outpainting --------------------------------------------------------------------------------


def test_sides_grow_to_a_multiple_of_64() -> None:
    grown = plan_growths((100, 64), 32, ["left", "right", "down"], 8)
    assert [(one.side, one.pixels) for one in grown] == [("left", 46), ("right", 46), ("down", 64)]
    assert {(one.blur_x, one.blur_y) for one in grown} == {(8, 8)}
    only_up = plan_growths((64, 64), 8, ["up"], 4)
    assert [(one.side, one.pixels, one.blur_x, one.blur_y) for one in only_up] == [("up", 64, 0, 4)]


def test_the_picture_stays_where_it_was_and_the_new_side_is_inpainted(settings: Settings) -> None:
    make = Brightening()
    source = photo(64, 64)
    outcome = run(
        settings,
        make,
        "Outpainting mk2",
        ["", 64, 4, ["right"]],
        init_images=[encoded(source)],
        width=128,
        height=64,
        mask_blur=9,
    )
    (made,) = outcome.pictures
    assert made.image is not None and made.image.size == (128, 64)
    (asked,) = make.asked
    assert (asked["width"], asked["height"]) == (128, 64)
    assert asked["inpaint_full_res"] is False and asked["inpainting_fill"] == 1
    assert (asked["mask_blur"], asked["mask_blur_x"], asked["mask_blur_y"]) == (None, 16, 0)
    mask = np.asarray(pictures.decode_picture(asked["mask"], "mask").convert("L"))
    assert (mask[:, :61] == 0).all() and (mask[:, 61:] == 255).all()
    latent = np.asarray(pictures.decode_picture(asked["latent_mask"], "mask").convert("L"))
    assert (latent[:, :57] == 0).all() and (latent[:, 57:] == 255).all()
    start = np.asarray(pictures.decode_picture(asked["init_images"][0], "x"), int)
    assert np.abs(start[:, :60] - np.asarray(source, int)[:, :60]).max() <= 1
    assert start[:, 70:].std() > 5  # noise, not black


def test_every_side_asked_for_is_a_job_of_its_own(settings: Settings) -> None:
    make = Brightening()
    outcome = run(settings, make, "Outpainting mk2", ["", 64], width=128, height=128, batch_size=2)
    assert len(make.asked) == 4 and all(len(one["init_images"]) == 2 for one in make.asked)
    grid, *made = outcome.pictures
    assert grid.role == "grid" and [one.image.size for one in made if one.image] == [(192, 192)] * 2


def test_shaped_noise_has_the_pictures_colours_and_is_always_the_same() -> None:
    image = np.zeros((64, 128, 3))
    image[:, :64] = np.asarray(photo(64, 64), float) / 255
    mask = np.zeros((64, 128, 3))
    mask[:, 64:] = 1.0
    made = shaped_noise(image, mask)
    assert (made == shaped_noise(image, mask)).all()
    assert np.allclose(made[:, :64], image[:, :64])
    for channel in range(3):
        assert made[:, 64:, channel].mean() == pytest.approx(image[:, :64, channel].mean(), abs=0.02)
        assert made[:, 64:, channel].std() == pytest.approx(image[:, :64, channel].std(), abs=0.02)


def test_matching_gives_values_the_other_distribution() -> None:
    random = np.random.default_rng(0)
    values, like = random.normal(size=5000), random.uniform(2, 3, size=4000)
    made = matched(values, like)
    assert (np.argsort(made) == np.argsort(values)).mean() > 0.9
    assert np.quantile(made, [0.1, 0.5, 0.9]) == pytest.approx([2.1, 2.5, 2.9], abs=0.03)


# --- with the engine ----------------------------------------------------------------------------


@needs_golden
def test_scripts_run_on_the_engine(settings: Settings) -> None:
    from sd_cloud.engines.diffusion.engine import DiffusionWorker

    folder = settings.folders.checkpoints[0]
    folder.mkdir(parents=True)
    for name in ("tiny-a.safetensors", "tiny-a.yaml"):
        (folder / name).symlink_to(GOLDEN / "checkpoints" / name)
    source = base64.b64encode((GOLDEN / "cases" / "input.png").read_bytes()).decode()
    width, height = Image.open(io.BytesIO(base64.b64decode(source))).size
    worker = DiffusionWorker(settings)

    def make(name: str, args: list[Any], **fields: Any) -> Outcome:
        payload = {
            "init_images": [source],
            "prompt": "a red cat",
            "steps": 2,
            "width": 64,
            "height": 64,
            "seed": 4,
            "sampler_name": "Euler a",
            "script_name": name,
            "script_args": args,
            **fields,
        }
        return worker.run(Job("img2img", payload), lambda _: None, Control())

    looped = make("Loopback", [2, 0.3, "Linear", "None"], denoising_strength=0.6)
    assert [one.role for one in looped.pictures] == ["grid", "image", "image"]
    assert "Final denoising strength: 0.3, Denoising curve: Linear" in looped.pictures[1].infotext
    assert "Seed: 5" in looped.pictures[2].infotext

    upscaled = make("SD upscale", ["", 16, "Lanczos", 1.0], width=96, height=96, denoising_strength=0.4)
    (large,) = upscaled.pictures
    assert large.image is not None and large.image.size == (width // 8 * 8, height // 8 * 8)
    assert "SD upscale overlap: 16, SD upscale upscaler: Lanczos" in large.infotext

    found = make("img2img alternative test", ["", True, True, "a cat", "", True, 2], denoising_strength=0.4)
    (again,) = found.pictures
    assert "Decode prompt: a cat" in again.infotext and "Denoising strength: 1.0" in again.infotext
    with pytest.raises(BadRequest, match="sampler_name"):
        make("img2img alternative test", ["", False], sampler_name="DDIM")

    outpainted = make("Outpainting mk2", ["", 64, 8, ["left"]], width=256, height=256, denoising_strength=0.8)
    (grown,) = outpainted.pictures
    assert grown.image is not None and grown.image.width >= width + 64
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"), int)
    shown = np.asarray(grown.image, int)[:, grown.image.width - width :]
    assert np.abs(shown[:height, 60:] - kept[:, 60:]).mean() < 12
