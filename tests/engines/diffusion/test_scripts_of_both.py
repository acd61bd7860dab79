"""The built-in scripts that txt2img has as well: on a stand-in for the engine, and on the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.scripts.labels import Colours, Label, labelled
from sd_cloud.engines.diffusion.scripts.prompts_from_file import read_line
from sd_cloud.engines.diffusion.scripts.run import Before, run_script
from sd_cloud.engines.diffusion.scripts.xyz_axes import axis_of
from sd_cloud.engines.diffusion.scripts.xyz_plot import with_marks
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Outcome, Picture
from sd_cloud.settings import Settings, settings_below

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs shared/golden beside the repository")
MATRIX, LINES, PLOT = "Prompt matrix", "Prompts from file or textbox", "X/Y/Z plot"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_below(tmp_path)


@dataclass
class Painting:
    """In the place of the engine: plain pictures, as red as the steps, as green as the CFG scale."""

    jobs: list[Job] = field(default_factory=list)
    before: list[Before] = field(default_factory=list)
    control: Control = field(default_factory=Control)
    interrupt_at: int | None = None

    def __call__(self, job: Job, before: Before, report: Any) -> Outcome:
        self.jobs.append(job)
        self.before.append(before)
        if self.interrupt_at == len(self.jobs):
            self.control.ask("interrupt")
        asked = job.payload
        own = before.texts.prompts or before.texts.negative_prompts
        count = len(own) if own else int(asked.get("batch_size", 1)) * int(asked["n_iter"])
        size = (asked.get("width", 64), asked.get("height", 64))
        colour = (int(asked.get("steps", 0)), int(asked.get("cfg_scale", 0) * 10), 0)
        seeds = before.texts.seeds or [asked["seed"] + number for number in range(count)]
        texts = [f"{asked.get('prompt')}\nSteps: 1, Seed: {seed}, Version: 1.10.1" for seed in seeds]
        info = {
            "infotexts": texts,
            "prompt": asked.get("prompt"),
            "all_prompts": [asked.get("prompt")] * count,
            "seed": seeds[0],
            "subseed": 1,
            "all_seeds": seeds,
            "extra_generation_params": {},
        }
        made = [Picture(Image.new("RGB", size, colour), infotext=text) for text in texts]
        return Outcome(tuple(made), info)


def run(settings: Settings, make: Painting, name: str, args: Sequence[Any], **fields: Any) -> Outcome:
    payload = {"prompt": "a cat", "seed": 5, "width": 64, "height": 64, "steps": 3, **fields}
    job = Job("txt2img", {**payload, "script_name": name, "script_args": list(args)})
    return run_script(job, lambda _: None, make.control, make, settings=settings, device="cpu")


def plot(settings: Settings, make: Painting, *lines: tuple[Any, str], **fields: Any) -> Outcome:
    flags = {name: fields.pop(name) for name in list(fields) if name in FLAGS}
    args: list[Any] = []
    for kind, values in (*lines, (0, ""), (0, ""))[:3]:
        args += [kind, values, []]
    return run(settings, make, PLOT, [*args, *{**FLAGS, **flags}.values()], **fields)


FLAGS: Mapping[str, Any] = {
    "draw_legend": False,
    "include_lone_images": False,
    "include_sub_grids": False,
    "no_fixed_seeds": False,
    "vary_seeds_x": False,
    "vary_seeds_y": False,
    "vary_seeds_z": False,
    "margin_size": 0,
    "csv_mode": True,
}


def corners(image: Image.Image | None, columns: int, rows: int) -> list[list[tuple[int, ...]]]:
    assert image is not None
    pixels = np.asarray(image)
    return [[tuple(pixels[row * 64, column * 64]) for column in range(columns)] for row in range(rows)]


# --- prompt matrix ------------------------------------------------------------------------------


def test_a_matrix_has_every_combination_of_the_parts(settings: Settings) -> None:
    make = Painting()
    outcome = run(settings, make, MATRIX, [], prompt="a cat|red, |at night", batch_size=3)
    texts = make.before[0].texts
    assert texts.prompts == ["a cat", "a cat, red", "a cat, at night", "a cat, red, at night"]
    assert texts.seeds == [5] * 4 and texts.negative_prompts is None
    assert make.jobs[0].payload["n_iter"] == 2
    assert [one.role for one in outcome.pictures] == ["grid", *["image"] * 4]
    assert outcome.info["index_of_first_image"] == 1 and len(outcome.info["infotexts"]) == 5


def test_a_matrix_of_the_negative_prompt_with_other_seeds(settings: Settings) -> None:
    make = Painting()
    run(settings, make, MATRIX, [True, True, "negative", "space"], negative_prompt="bad|dark")
    texts = make.before[0].texts
    assert texts.negative_prompts == ["bad", "dark bad"] and texts.prompts is None and texts.seeds == [5, 6]


def test_a_matrix_of_too_many_parts_is_refused_before_anything_is_made(settings: Settings) -> None:
    make = Painting()
    with pytest.raises(BadRequest, match=r"^prompt: 11 parts make 1024 pictures"):
        run(settings, make, MATRIX, [], prompt="|".join("abcdefghijk"))
    assert not make.jobs


# --- prompts from file --------------------------------------------------------------------------


def test_each_line_is_a_job_with_the_requests_prompt_after_it(settings: Settings) -> None:
    make = Painting()
    text = "a dog\n\n--prompt a tall tower --steps 7 --cfg_scale 2.5 --tiling true\n"
    outcome = run(settings, make, LINES, [True, False, "start", text], batch_size=2)
    first, second = (one.payload for one in make.jobs)
    assert (first["prompt"], first["seed"], first["steps"]) == ("a dog a cat", 5, 3)
    assert (second["prompt"], second["seed"], second["steps"]) == ("a tall tower a cat", 7, 7)
    assert second["cfg_scale"] == 2.5 and second["tiling"] is True
    assert len(outcome.pictures) == len(outcome.info["infotexts"]) == 4


def test_a_checkpoint_stays_for_the_lines_that_follow(settings: Settings) -> None:
    make = Painting()
    run(settings, make, LINES, [False, False, "end", "a\n--sd_model other --prompt b\nc"])
    assert [one.checkpoint for one in make.jobs] == [None, "other", "other"]
    assert make.jobs[2].payload["prompt"] == "a cat c"


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("a --steps", "'a' stands where a --field belongs"),
        ("--steps", "--steps has no value"),
        ("--steps many", "--steps cannot be 'many'"),
        ("--outpath_samples /etc", "there is no --outpath_samples"),
        ("--prompt 'a", "No closing quotation"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, fact: str) -> None:
    with pytest.raises(BadRequest, match=r"^script_args\[3\]: prompt_txt: line 4: ") as caught:
        read_line(line, 4)
    assert fact in str(caught.value)


# --- X/Y/Z plot ---------------------------------------------------------------------------------


def test_a_plot_has_x_across_y_down_and_a_grid_for_each_z(settings: Settings) -> None:
    make = Painting()
    shown = {"include_lone_images": True, "include_sub_grids": True}
    outcome = plot(settings, make, (4, "3-5"), ("CFG Scale", "1, 2"), (1, "8,9"), **shown)
    sheet, *rest = outcome.pictures
    assert [one.role for one in rest] == ["grid", "grid", *["image"] * 12]
    assert corners(rest[0].image, 3, 2) == [
        [(3, 10, 0), (4, 10, 0), (5, 10, 0)],
        [(3, 20, 0), (4, 20, 0), (5, 20, 0)],
    ]
    assert sheet.image is not None and sheet.image.size == (2 * 3 * 64, 2 * 64)
    marks = "Script: X/Y/Z plot, X Type: Steps, X Values: 3-5, Y Type: CFG Scale"
    last = ", Version: 1.10.1"
    assert marks in sheet.infotext and sheet.infotext.endswith(f'Fixed Z Values: "8, 9"{last}')
    assert "Z Type" not in rest[0].infotext and "Script" not in rest[2].infotext


def test_what_costs_most_to_change_is_changed_least_often(settings: Settings) -> None:
    make = Painting()
    plot(settings, make, (11, "one,two"), (4, "3,4"))
    assert [one.checkpoint for one in make.jobs] == ["one", "one", "two", "two"]


def test_seeds_may_vary_along_the_axes(settings: Settings) -> None:
    make = Painting()
    plot(settings, make, (4, "3,4"), (6, "1,2"), vary_seeds_x=True, vary_seeds_y=True)
    assert sorted(one.payload["seed"] for one in make.jobs) == [5, 6, 7, 8]


def test_an_interrupted_plot_is_blank_where_nothing_was_made(settings: Settings) -> None:
    make = Painting(interrupt_at=2)
    outcome = plot(settings, make, (4, "3-5"))
    assert outcome.interrupted and corners(outcome.pictures[0].image, 3, 1)[0][2] == (0, 0, 0)


@pytest.mark.parametrize(
    ("lines", "field", "fact"),
    [
        ([(77, "1")], r"script_args\[0\]", "4: Steps"),
        ([(4, "1"), ("Speed", "1")], r"script_args\[3\]", "'Speed' is no axis"),
        ([(4, "")], r"script_args\[1\]", "has no values"),
        ([(4, "fast")], r"script_args\[1\]", "'fast'"),
        ([(4, "1-5 (+0)")], r"script_args\[1\]", "step of 0"),
        ([(4, "1-100"), (6, "1-20")], "script_args", "more than 1000"),
        ([(4, "1-9000000000")], r"script_args\[1\]", "9000000000 values, more than 1000"),
        ([(6, "1-2 [9000000000]")], r"script_args\[1\]", "more than 1000"),
        ([(8, ",".join("abcdefghijklmnopqrstuvwxyz"))], r"script_args\[1\]", "the order of 26 parts"),
        ([(4, "0,1")], "steps", "0"),
        ([(7, "dog, cow")], "script_args", "did not find 'dog'"),
        ([(8, "cat, dog")], "script_args", "did not find 'dog'"),
        ([(9, "Nowhere")], "sampler_name", "Nowhere"),
        ([(41, "64")], "script_args", "512x768"),
    ],
)
def test_a_plot_that_cannot_be_made_is_refused_before_its_first_picture(
    settings: Settings, lines: list[tuple[Any, str]], field: str, fact: str
) -> None:
    make = Painting()
    with pytest.raises(BadRequest, match=f"^{field}: ") as caught:
        plot(settings, make, *lines)
    assert fact in str(caught.value) and not make.jobs


@pytest.mark.parametrize(
    ("label", "written", "values"),
    [
        ("Steps", "1-5", [1, 2, 3, 4, 5]),
        ("Steps", "2-8 (+3), 20", [2, 5, 8, 20]),
        ("Steps", "1-9 [3]", [1, 5, 9]),
        ("CFG Scale", "1-2 [3]", [1.0, 1.5, 2.0]),
        ("CFG Scale", "1-2 (+0.5)", [1.0, 1.5, 2.0]),
        ("Prompt S/R", 'cat, "dog, big"', ["cat", "dog, big"]),
        ("Prompt order", "a, b", [("a", "b"), ("b", "a")]),
        ("Nothing", "", [0]),
    ],
)
def test_values_are_written_as_in_the_webui(label: str, written: str, values: list[Any]) -> None:
    found, _ = axis_of("txt2img", label, "x").values(written, [], "x", as_csv=True)
    assert found == values


def test_marks_stand_before_version_and_user() -> None:
    text = "a\nSteps: 1, Model: b, Version: 1.10.1, User: me"
    assert (
        with_marks(text, {"Script": "x, y"})
        == 'a\nSteps: 1, Model: b, Script: "x, y", Version: 1.10.1, User: me'
    )
    assert with_marks("a\nSteps: 1", {"Script": "x"}) == "a\nSteps: 1, Script: x"


def test_labels_stand_above_and_beside_the_cells_they_name() -> None:
    sheet = Image.new("RGB", (200, 200), "blue")
    colours = Colours("#ffffff", "#000000", "#999999")
    above = [[Label("one")], [Label("two", active=False)]]
    made = labelled(sheet, (100, 100), above, [[Label("a")], [Label("b")]], colours, margin=10)
    pixels = np.asarray(made.convert("RGB"), int)
    assert made.width == 200 + 75 + 10 and made.height > 210
    room = made.height - 210
    assert (pixels[room, 75] == [0, 0, 255]).all() and (pixels[room + 105, 180] == 255).all()
    dark = (pixels < 130).all(axis=2)
    assert dark[:room, 75:175].any() and not dark[:room, 185:].any()  # struck through in grey
    assert dark[room:, :75].any()


# --- with the engine ----------------------------------------------------------------------------


@needs_golden
def test_they_run_on_the_engine(settings: Settings) -> None:
    from sd_cloud.engines.diffusion.engine import DiffusionWorker

    folder = settings.folders.checkpoints[0]
    folder.mkdir(parents=True)
    for name in ("tiny-a.safetensors", "tiny-a.yaml"):
        (folder / name).symlink_to(GOLDEN / "checkpoints" / name)
    worker = DiffusionWorker(settings)

    def make(name: str, args: list[Any], **fields: Any) -> Outcome:
        payload = {"steps": 2, "width": 64, "height": 64, "seed": 4, "sampler_name": "Euler a", **fields}
        job = Job("txt2img", {**payload, "script_name": name, "script_args": args})
        return worker.run(job, lambda _: None, Control())

    def pixels(picture: Picture) -> Any:
        assert picture.image is not None
        return np.asarray(picture.image, int)

    _, plain, red, night = make(MATRIX, [], prompt="a cat|red|at night", batch_size=3).pictures[:4]
    assert "a cat, red\nSteps: 2" in red.infotext and not (pixels(plain) == pixels(red)).all()
    sheet, alone, other = make(
        PLOT, [7, "red, blue", [], *[0, "", []] * 2, True, True], prompt="red"
    ).pictures
    assert sheet.role == "grid" and "X Type: Prompt S/R" in sheet.infotext
    assert "blue\nSteps: 2" in other.infotext and not (pixels(alone) == pixels(other)).all()
    (line,) = make(LINES, [False, False, "start", "a cat, at night"]).pictures
    assert np.abs(pixels(line) - pixels(night)).max() <= 1
