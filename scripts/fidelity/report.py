"""Rows as lines on a terminal and as tables in ``docs/fidelity.md``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.fidelity.compare import Row


def line(row: Row) -> str:
    mark = "ok  " if row.same else "DIFF"
    return f"{mark} {row.group:14} {row.name:50} {_near(row.decibels):>6} {' | '.join(row.differences)}"


def golden_table(rows: Sequence[Row]) -> str:
    return "\n".join(
        ["| case | PSNR, dB | infotext |", "|---|---|---|", *(_golden_line(row) for row in rows)]
    )


def _golden_line(row: Row) -> str:
    return f"| {row.name} | {_near(row.decibels)} | {'; '.join(row.differences) or 'equal'} |"


def case_tables(rows: Sequence[Row]) -> str:
    """A line for each group with its least similar picture; then those that differ, one by one."""
    lines = ["| group | cases | the same | least PSNR of those, dB |", "|---|---|---|---|"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for group, found in groups.items():
        same = [row for row in found if row.same]
        least = min((row.decibels for row in same if row.decibels is not None), default=None)
        lines.append(f"| {group} | {len(found)} | {len(same)} | {_near(least)} |")
    differing = [row for row in rows if not row.same]
    return "\n".join([*lines, "", *_differing(differing)] if differing else lines)


def _differing(rows: Sequence[Row]) -> Iterator[str]:
    yield "| case that differs | PSNR, dB | what differs |"
    yield "|---|---|---|"
    for row in rows:
        what = "; ".join(row.differences).replace("|", "\\|").replace("\n", " ")
        yield f"| {row.group}: {row.name} | {_near(row.decibels)} | {what or 'the picture'} |"


def _near(decibels: float | None) -> str:
    if decibels is None:
        return "–"
    return "equal" if math.isinf(decibels) else f"{decibels:.1f}"


def put_into(page: Path, name: str, table: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    start, end, before, after = _place(page, name)
    page.write_text(f"{before}{start}\n{table}\n{end}{after}", "utf-8")


def check_place(page: Path, name: str) -> None:
    """Raises SystemExit where the page has no place of that name."""
    _place(page, name)


def _place(page: Path, name: str) -> tuple[str, str, str, str]:
    """The two marks, and what stands before and after them."""
    text = page.read_text("utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no place {start} … {end}")
    return start, end, before, after
