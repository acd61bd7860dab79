"""X/Y/Z plot: a picture for every combination of values along up to three axes, in labelled grids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sd_cloud.engines.diffusion.infotext import quoted
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.request import find_sampler, parse_request
from sd_cloud.engines.diffusion.scripts.labels import Label
from sd_cloud.engines.diffusion.scripts.run import (
    LIMIT_PICTURES,
    Session,
)
from sd_cloud.engines.diffusion.scripts.xyz_axes import SEED_AXES, Axis, axis_of, fixed
from sd_cloud.errors import BadRequest
from sd_cloud.job import Job, Outcome, Picture

MEGAPIXEL = 1_000_000
END_OF_MARKS = re.compile(r", (?:Version|User): [^,\n]*(?:, User: [^,\n]*)?$")


@dataclass(frozen=True)
class Line:
    """An axis with its values. ``written``: as the request has them; ``name``: X, Y or Z."""

    name: str
    axis: Axis
    values: list[Any]
    written: str

    @property
    def labels(self) -> list[str]:
        return [self.axis.shown(self.axis, value) for value in self.values]

    def told(self, *, seeds_fixed: bool) -> dict[str, str]:
        """What the infotext of a grid says of it."""
        if self.axis.label == "Nothing":
            return {}
        found = {f"{self.name} Type": self.axis.label, f"{self.name} Values": self.written}
        if self.axis.label in SEED_AXES and seeds_fixed:
            found[f"Fixed {self.name} Values"] = ", ".join(map(str, self.values))
        return found


Place = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """The first picture of a job, with the job's prompt and ``info``."""

    image: Image.Image
    prompt: str
    info: dict[str, Any]


class Plot:
    """One plot at work: its three lines, and what its cells gave."""

    def __init__(self, session: Session) -> None:
        self.session = session
        values = session.values
        self.seeds_fixed = not values["no_fixed_seeds"]
        self.lines = [self._line(name, 3 * place) for place, name in enumerate("XYZ")]
        self.across, self.down, self.deep = (len(line.values) for line in self.lines)
        self.job = self._base()
        self.cells: dict[Place, Cell] = {}

    def _line(self, name: str, place: int) -> Line:
        values = self.session.values
        low = name.lower()
        axis = axis_of(self.session.job.kind, values[f"{low}_type"], f"script_args[{place}]")
        chosen = axis.listed and not values["csv_mode"]
        found, written = axis.values(
            values[f"{low}_values"],
            values[f"{low}_values_dropdown"],
            f"script_args[{place + (2 if chosen else 1)}]",
            as_csv=bool(values["csv_mode"]),
        )
        return Line(name, axis, fixed(axis, found) if self.seeds_fixed else found, written)

    def _base(self) -> Job:
        """The request with its sampler by name and its seeds drawn, before any axis changes it."""
        session, payload = self.session, dict(self.session.payload)
        name = session.text("sampler_name") or session.text("sampler_index") or "Euler"
        sampler, scheduler = find_sampler(name, payload.get("scheduler"), "sampler_name", "scheduler")
        payload |= {"sampler_name": sampler.name, "scheduler": scheduler.label}
        if self.seeds_fixed:
            payload |= {name: session.fixed_seed(name) for name in ("seed", "subseed")}
        if not session.options.flag("return_grid"):
            payload["batch_size"] = 1
        return session.job.with_payload(payload)

    def check_size(self) -> None:
        """Raises BadRequest where there are too many pictures, or the grid would be too large."""
        payload, cells = self.job.payload, self.across * self.down * self.deep
        wanted = cells * self.session.whole("n_iter", 1) * int(payload.get("batch_size") or 1)
        if wanted > LIMIT_PICTURES:
            raise BadRequest(
                f"the plot has {wanted} pictures, more than {LIMIT_PICTURES}", field="script_args"
            )
        pixels = cells * self.session.whole("width", 512) * self.session.whole("height", 512)
        most = self.session.options.number("img_max_size_mp")
        if round(pixels / MEGAPIXEL) >= most:
            raise BadRequest(
                f"the grid would have {pixels / MEGAPIXEL:.0f} megapixels; the option img_max_size_mp allows "
                f"less than {most:g}",
                field="script_args",
            )

    def places(self) -> Iterator[Place]:
        """All cells; the axis that costs most to change in the outermost loop."""
        costs = [line.axis.cost for line in self.lines]
        order = [2, 1, 0]
        if costs.count(max(costs)) == 1:
            most = costs.index(max(costs))
            one, other = (place for place in range(3) if place != most)
            order = [most, one, other] if costs[one] > costs[other] else [most, other, one]
        counts = (self.across, self.down, self.deep)
        for outer in range(counts[order[0]]):
            for middle in range(counts[order[1]]):
                for inner in range(counts[order[2]]):
                    place = {order[0]: outer, order[1]: middle, order[2]: inner}
                    yield place[0], place[1], place[2]

    def job_at(self, place: Place) -> Job:
        """The request of one cell. Raises BadRequest for a value that does not go."""
        job = self.job
        for line, number in zip(self.lines, place, strict=True):
            job = line.axis.apply(job, line.values[number], line.values)
        values, seed = self.session.values, int(job.payload.get("seed") or 0)
        wide, high = (
            (self.across if values["vary_seeds_x"] else 1),
            (self.down if values["vary_seeds_y"] else 1),
        )
        seed += place[0] if values["vary_seeds_x"] else 0
        seed += place[1] * wide if values["vary_seeds_y"] else 0
        seed += place[2] * wide * high if values["vary_seeds_z"] else 0
        return job.with_payload({**job.payload, "seed": seed})

    def run(self) -> None:
        """Every cell, unless a person stops it."""
        self.check_size()
        jobs = {place: self.job_at(place) for place in self.places()}
        for job in jobs.values():  # what cannot be read is refused before the first picture
            parse_request(job, Options(job))
        batches = self.session.whole("n_iter", 1)
        self.session.count = len(jobs) * batches
        marks: dict[str, Any] = {}
        for place, job in jobs.items():
            if self.session.stopped:
                return
            saving = self.session.payload.get("save_images", False)
            self.session.run(marks, of=job, n_iter=batches, save_images=saving)
            outcome = self.session.outcomes[-1]
            marks = outcome.info["extra_generation_params"]
            shown = next((one.image for one in outcome.pictures if one.image is not None), None)
            if shown is not None:
                self.cells[place] = Cell(shown, job.payload.get("prompt") or "", dict(outcome.info))

    # --- what is answered -----------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """The grid of all, a grid for each value of Z, and the cells: as far as they are asked for."""
        self.session.check_begun()
        if not self.cells:  # skipped before its first picture
            return self.session.outcomes[0]
        values, deep = self.session.values, self.deep
        order = [(x, y, z) for z in range(deep) for y in range(self.down) for x in range(self.across)]
        blank = Image.new("RGB", next(cell.image.size for cell in self.cells.values()))
        cells = [self.cells.get(place) for place in order]
        images = [cell.image if cell else blank for cell in cells]
        told: dict[str, list[Any]] = {
            "all_prompts": [cell and cell.prompt for cell in cells],
            "all_seeds": [cell and cell.info["seed"] for cell in cells],
            "infotexts": [cell and cell.info["infotexts"][0] for cell in cells],
        }
        size = self.across * self.down
        grids = [self._grid(images[z * size : (z + 1) * size]) for z in range(deep)]
        for listed in told.values():
            listed[:0] = [listed[z * size] for z in range(deep)]
        sheet = self._sheet(grids)
        told["infotexts"].insert(0, None)
        told["infotexts"][: 1 + deep] = self._texts(cells[::size])
        shown = [Picture(one, "grid") for one in (sheet, *grids)]
        if values["include_lone_images"]:
            shown += [Picture(one) for one in images]
        if not values["include_sub_grids"]:
            for listed in (shown, *told.values()):
                del listed[1 : 1 + deep]
        first = self.session.outcomes[0].info
        last = self.session.outcomes[-1].info
        return Outcome(
            pictures=tuple(self._dressed(one, told["infotexts"], number) for number, one in enumerate(shown)),
            info={
                **first,
                **told,
                "prompt": told["all_prompts"][0],
                "extra_generation_params": last["extra_generation_params"],
                "index_of_first_image": 1,
            },
        )

    def _dressed(self, picture: Picture, texts: Sequence[str | None], number: int) -> Picture:
        text = texts[number] if number < len(texts) else None
        seed = re.search(r"\bSeed: (\d+)", text or "")
        return Picture(picture.image, picture.role, seed=int(seed[1]) if seed else None, infotext=text or "")

    def _grid(self, images: list[Image.Image]) -> Image.Image:
        across, down, _ = self.lines
        sheet = self.session.sheet(images, rows=self.down)
        return self._with_labels(
            sheet, images, across.labels, down.labels, int(self.session.values["margin_size"])
        )

    def _sheet(self, grids: list[Image.Image]) -> Image.Image:
        return self._with_labels(self.session.sheet(grids, rows=1), grids, self.lines[2].labels, [""], 0)

    def _with_labels(
        self, sheet: Image.Image, images: list[Image.Image], above: list[str], beside: list[str], margin: int
    ) -> Image.Image:
        if not self.session.values["draw_legend"]:
            return sheet
        cell = (max(one.width for one in images), max(one.height for one in images))
        rows, columns = [[Label(text)] for text in beside], [[Label(text)] for text in above]
        return self.session.labelled(sheet, cell, columns, rows, margin=margin)

    def _texts(self, firsts: Sequence[Cell | None]) -> list[str | None]:
        """Of the grid of all, then of each value of Z: its first cell's, with what the axes are."""
        x, y, z = (line.told(seeds_fixed=self.seeds_fixed) for line in self.lines)
        own = [None if cell is None else str(cell.info["infotexts"][0]) for cell in firsts]
        marks = {"Script": "X/Y/Z plot", **x, **y}
        sub = [text and with_marks(text, marks) for text in own]
        return [own[0] and with_marks(own[0], {**marks, **z}), *sub]


def with_marks(text: str, marks: dict[str, str]) -> str:
    """An infotext with more ``key: value`` at the end of its last line, before version and user."""
    more = "".join(f", {key}: {quoted(value)}" for key, value in marks.items())
    end = END_OF_MARKS.search(text)
    at = end.start() if end else len(text)
    return text[:at] + more + text[at:]


def xyz_plot(session: Session) -> Outcome:
    plot = Plot(session)
    plot.run()
    return plot.outcome()
