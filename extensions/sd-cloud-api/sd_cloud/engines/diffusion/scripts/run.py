"""The webui's built-in scripts: ``script_name`` and ``script_args`` of a request.

A script makes its pictures by several ordinary jobs. What each does, its arguments and what it
writes follow ``scripts/*.py`` of webui 1.10.1.
"""

from __future__ import annotations

import base64
import io
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sd_cloud.engines.base import Control, Report, ScriptArgument
from sd_cloud.engines.diffusion import pictures
from sd_cloud.engines.diffusion.inversion import Inversion
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompts import OwnTexts
from sd_cloud.engines.diffusion.request import SEEDS
from sd_cloud.engines.diffusion.scripts.forms import FORMS, Form
from sd_cloud.engines.diffusion.scripts.labels import Colours, Label, labelled
from sd_cloud.errors import BadRequest, Cancelled, NotImplementedHere
from sd_cloud.job import Job, Outcome, Picture, Progress
from sd_cloud.settings import Settings

LIMIT_PICTURES = 1000
"""As many as any other request may ask for."""


@dataclass(frozen=True)
class Before:
    """What a job of a script has from the script, and from the job before it.

    ``marks`` stand first in its ``extra_generation_params``. ``last_seed``: img2img's encoding goes
    on with the random numbers that the seed of the picture before left behind, and ``drawn`` numbers
    further on. ``colour_target``: what the pictures' colours are matched to, whatever the options say.
    """

    marks: Mapping[str, Any] = field(default_factory=dict)
    last_seed: int | None = None
    drawn: int = 0
    colour_target: NDArray[np.uint8] | None = None
    texts: OwnTexts = field(default_factory=OwnTexts)
    inversion: Inversion | None = None


Make = Callable[[Job, Before, Report], Outcome]
"""Runs one ordinary job."""

Describe = Callable[[Job, str, str], str]
"""Words for a picture in base64 by one of the models of ``/sdapi/v1/interrogate``, under a job's options."""


def describes_nothing(job: Job, model: str, image: str) -> str:
    raise NotImplementedHere(f"{model!r} is not part of this engine")


@dataclass
class Session:
    """A script at work: its job, and the ordinary jobs it has run so far.

    ``values`` are its arguments by name. ``count`` is how many jobs it will run, for progress.
    ``drawn`` counts the random numbers that it has drawn itself since the last job;
    ``colour_target`` is what its jobs match their colours to.
    """

    job: Job
    values: Mapping[str, Any]
    make: Make
    report: Report
    control: Control
    settings: Settings
    device: torch.device | str
    describe: Describe = describes_nothing
    count: int = 1
    done: int = 0
    drawn: int = 0
    colour_target: NDArray[np.uint8] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    options: Options = field(init=False)

    def __post_init__(self) -> None:
        self.options = Options(self.job)

    @property
    def payload(self) -> Mapping[str, Any]:
        return self.job.payload

    @property
    def stopped(self) -> bool:
        """Whether a person asked to stop; raises Cancelled when nothing is to be kept."""
        if self.control.verdict == "cancel":
            raise Cancelled("the task was cancelled while it ran")
        return self.control.verdict == "interrupt"

    @property
    def skipped(self) -> bool:
        return self.control.verdict == "skip"

    def source(self) -> Image.Image:
        """The first of ``init_images``. Raises BadRequest."""
        images = self.payload.get("init_images")
        if isinstance(images, str):
            images = [images]
        if not isinstance(images, list) or not images or not isinstance(images[0], str):
            raise BadRequest("must be a list of pictures in base64, at least one", field="init_images")
        return pictures.decode_picture(images[0], "init_images[0]")

    def whole(self, name: str, default: int) -> int:
        value = self.payload.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise BadRequest(f"must be a whole number, not {value!r:.80}", field=name)
        return int(value)

    def fixed_seed(self, name: str) -> int:
        """The request's seed, or one drawn now for -1."""
        seed = self.whole(name, -1)
        return random.randrange(SEEDS) if seed == -1 else seed

    def text(self, name: str) -> str:
        value = self.payload.get(name)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"must be a string, not {value!r:.80}", field=name)
        return value or ""

    def run(
        self,
        marks: Mapping[str, Any],
        *,
        of: Job | None = None,
        texts: OwnTexts | None = None,
        inversion: Inversion | None = None,
        **changes: Any,
    ) -> list[Picture]:
        """One ordinary job with these fields changed; its pictures, without grid and maps."""
        base = of or self.job
        plain: dict[str, Any] = {"script_name": None, "script_args": [], "n_iter": 1, "save_images": False}
        job = replace(base, payload={**base.payload, **plain, **changes})
        last = self.outcomes[-1].info["all_seeds"][-1] if self.outcomes else None
        before = Before(marks, last, self.drawn, self.colour_target, texts or OwnTexts(), inversion)
        outcome = self.make(job, before, self._counted)
        self.drawn = 0
        self.outcomes.append(outcome)
        self.done += 1
        return list(outcome.of_role("image"))

    def draws(self, count: int) -> None:
        self.drawn += count

    def _counted(self, progress: Progress) -> None:
        self.report(replace(progress, job_no=self.done, job_count=max(self.count, self.done + 1)))

    def outcome(self, made: Sequence[Picture], *, grid: Image.Image | None = None) -> Outcome:
        """The script's pictures; ``info`` is the first job's, with its text for every picture."""
        self.check_begun()
        first, last = self.outcomes[0].info, self.outcomes[-1].info
        text = str(first["infotexts"][0])
        sheet = [Picture(grid, "grid", first["seed"], first["subseed"], text)] if grid is not None else []
        shown = [*sheet, *made]
        return Outcome(
            pictures=tuple(shown),
            info={
                **last,
                "seed": first["seed"],
                "subseed": -1,
                "index_of_first_image": 0,
                "infotexts": [text] * len(shown),
            },
        )

    def check_begun(self) -> None:
        """Raises Cancelled when no job was run at all."""
        if not self.outcomes:
            raise Cancelled("the task was stopped before its first picture")

    def sheet(self, images: Sequence[Image.Image], *, rows: int | None = None) -> Image.Image:
        """All pictures in one, by the webui's grid options."""
        options = self.options
        return pictures.grid(
            images,
            1,
            rows=options.whole("n_rows") if rows is None else rows,
            no_gaps=options.flag("grid_prevent_empty_spots"),
            background=options.text("grid_background_color"),
        )

    def labelled(
        self,
        sheet: Image.Image,
        cell: tuple[int, int],
        above: Sequence[Sequence[Label]],
        beside: Sequence[Sequence[Label]],
        *,
        margin: int = 0,
    ) -> Image.Image:
        """A grid with labels, in the colours of the webui's options."""
        options = self.options
        colours = Colours(
            options.text("grid_background_color"),
            options.text("grid_text_active_color"),
            options.text("grid_text_inactive_color"),
        )
        return labelled(sheet, cell, above, beside, colours, margin=margin)


@dataclass(frozen=True)
class Script:
    """``body`` runs the script; its arguments are the form's."""

    form: Form
    body: Callable[[Session], Outcome]


def scripts() -> Mapping[str, Script]:
    """All scripts, by their names in lower case."""
    from sd_cloud.engines.diffusion.scripts.img2img_alternative import img2img_alternative
    from sd_cloud.engines.diffusion.scripts.loopback import loopback
    from sd_cloud.engines.diffusion.scripts.outpainting import outpainting
    from sd_cloud.engines.diffusion.scripts.poor_outpainting import poor_outpainting
    from sd_cloud.engines.diffusion.scripts.prompt_matrix import prompt_matrix
    from sd_cloud.engines.diffusion.scripts.prompts_from_file import prompts_from_file
    from sd_cloud.engines.diffusion.scripts.upscale import sd_upscale
    from sd_cloud.engines.diffusion.scripts.xyz_plot import xyz_plot

    bodies = (
        *(img2img_alternative, loopback, outpainting, poor_outpainting),
        *(prompt_matrix, prompts_from_file, sd_upscale, xyz_plot),
    )
    return {form.title.lower(): Script(form, body) for form, body in zip(FORMS, bodies, strict=True)}


def asks_for_script(job: Job) -> bool:
    name = job.payload.get("script_name")
    return bool(name) and str(name).lower() != "none"


def run_script(
    job: Job,
    report: Report,
    control: Control,
    make: Make,
    *,
    settings: Settings,
    device: torch.device | str,
    describe: Describe = describes_nothing,
) -> Outcome:
    """Run the script a job asks for.

    Raises BadRequest for an unknown script or argument (naming it), Cancelled, and what ``make``
    and the script raise.
    """
    began = time.monotonic()
    name = job.payload["script_name"]
    script = scripts().get(str(name).lower())
    if script is None or job.kind not in script.form.kinds:
        there = ", ".join(one.title for one in FORMS if job.kind in one.kinds)
        raise BadRequest(f"{name!r} is no script of {job.kind}, which has: {there}", field="script_name")
    values = read_arguments(script.form, job.payload.get("script_args"))
    session = Session(job, values, make, report, control, settings, device, describe)
    outcome = script.body(session)
    return replace(outcome, interrupted=session.stopped, seconds=time.monotonic() - began)


def read_arguments(form: Form, sent: Any) -> dict[str, Any]:
    """``script_args`` by name; what is not sent or null has the webui's default. Raises BadRequest."""
    given = [] if sent is None else sent
    if not isinstance(given, list):
        raise BadRequest("must be a list", field="script_args")
    if len(given) > len(form.arguments):
        names = ", ".join(one.name for one in form.arguments)
        raise BadRequest(
            f"{form.title} takes {len(form.arguments)} arguments ({names}), not {len(given)}",
            field="script_args",
        )
    padded = [*given, *[None] * (len(form.arguments) - len(given))]
    return {
        one.name: one.default if value is None else _checked(one, value, f"script_args[{place}]")
        for place, (one, value) in enumerate(zip(form.arguments, padded, strict=True))
    }


def _checked(argument: ScriptArgument, value: Any, where: str) -> Any:
    """An argument's value. Those that depend on another one, or on a folder, are checked by the script."""
    name = f"{argument.name}: "
    if argument.kind in ("number", "place"):
        low, high = argument.low or 0, argument.high or 0
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"{name}{value!r:.80} is not a number", field=where)
        if not low <= value <= high:
            raise BadRequest(f"{name}{value} is not from {low:g} to {high:g}", field=where)
    elif argument.kind == "flag" and value not in (True, False):
        raise BadRequest(f"{name}{value!r:.80} is not true or false", field=where)
    elif argument.kind == "text" and not isinstance(value, str):
        raise BadRequest(f"{name}{value!r:.80} is not a string", field=where)
    elif argument.kind == "choice" and value not in argument.choices:
        raise BadRequest(f"{name}{value!r:.80} is none of {', '.join(argument.choices)}", field=where)
    elif argument.kind == "choices" and not _all_among(value, argument.choices):
        raise BadRequest(f"{name}must be a list of some of {', '.join(argument.choices)}", field=where)
    return value


def _all_among(values: Any, choices: tuple[str, ...]) -> bool:
    return isinstance(values, list) and all(value in choices for value in values)


def encoded(image: Image.Image) -> str:
    """A picture as a request carries it: PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def image_of(picture: Picture) -> Image.Image:
    assert picture.image is not None
    return picture.image
