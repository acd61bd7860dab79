"""Labels around a grid of pictures: what each column and each row is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

FONT = Path(__file__).parents[1] / "data" / "Roboto-Regular.ttf"
"""Apache License 2.0, by Google: the font of the webui's own labels."""

STRIKE_PX = 4


@dataclass(frozen=True)
class Label:
    """One line beside a grid; where it is not active it is pale and struck through."""

    text: str = ""
    active: bool = True


@dataclass(frozen=True)
class Colours:
    """As ``#rrggbb``."""

    background: str
    active: str
    inactive: str


@dataclass(frozen=True)
class _Line:
    """A label, or a part of a long one, with its size in pixels and the width it has to fit."""

    label: Label
    width: float
    height: float
    room: int


def labelled(
    sheet: Image.Image,
    cell: tuple[int, int],
    above: Sequence[Sequence[Label]],
    beside: Sequence[Sequence[Label]],
    colours: Colours,
    *,
    margin: int = 0,
) -> Image.Image:
    """A grid of cells of (width, height) px with labels ``above`` its columns and ``beside`` its rows.

    Sizes follow ``draw_grid_annotations`` of webui 1.10.1: letters of a 25th of a cell's sides, and three
    quarters of a cell's width for what stands beside.
    """
    width, height = cell
    size = (width + height) // 25
    gap = size // 2
    room_left = width * 3 // 4 if any(one.text for labels in beside for one in labels) else 0
    columns = [_lines(labels, size, width) for labels in above]
    rows = [_lines(labels, size, room_left) for labels in beside]
    tall = [sum(line.height + gap for line in lines) - gap for lines in columns]
    room_above = int(max(tall) + gap * 2) if sum(tall) else 0
    whole = Image.new(
        "RGB",
        (
            sheet.width + room_left + margin * (len(columns) - 1),
            sheet.height + room_above + margin * (len(rows) - 1),
        ),
        ImageColor.getcolor(colours.background, "RGB"),
    )
    for row in range(len(rows)):
        for column in range(len(columns)):
            left, top = width * column, height * row
            piece = sheet.crop((left, top, left + width, top + height))
            whole.paste(piece, (room_left + left + margin * column, room_above + top + margin * row))
    draw = ImageDraw.Draw(whole)
    for column, lines in enumerate(columns):
        middle = room_left + (width + margin) * column + width / 2
        _write(draw, middle, room_above / 2 - tall[column] / 2, lines, size, colours)
    for row, lines in enumerate(rows):
        start = room_above + (height + margin) * row + height / 2 - sum(line.height for line in lines) / 2
        _write(draw, room_left / 2, start, lines, size, colours)
    return whole


def _lines(labels: Sequence[Label], size: int, room: int) -> list[_Line]:
    """Labels broken between words where they are wider than ``room`` px."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    font = _font(size)
    found = []
    for label in labels:
        parts = [""]
        for word in label.text.split():
            longer = f"{parts[-1]} {word}".strip()
            if draw.textlength(longer, font=font) <= room:
                parts[-1] = longer
            else:
                parts.append(word)
        for part in parts:
            left, top, right, bottom = draw.textbbox((0, 0), part, font=font)
            found.append(_Line(Label(part, label.active), right - left, bottom - top, room))
    return found


def _write(
    draw: ImageDraw.ImageDraw, middle: float, top: float, lines: Sequence[_Line], size: int, colours: Colours
) -> None:
    for line in lines:
        colour = colours.active if line.label.active else colours.inactive
        fitting = size
        while fitting > 1 and _wide(draw, line.label.text, fitting) > line.room:
            fitting -= 1
        place = (middle, top + line.height / 2)
        draw.text(place, line.label.text, font=_font(fitting), fill=colour, anchor="mm")
        if not line.label.active:
            y, half = top + line.height // 2, line.width // 2
            draw.line((middle - half, y, middle + half, y), fill=colours.inactive, width=STRIKE_PX)
        top += line.height + size // 2


def _wide(draw: ImageDraw.ImageDraw, text: str, size: int) -> float:
    left, _, right, _ = draw.textbbox((0, 0), text, font=_font(size))
    return right - left


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), max(size, 1))
