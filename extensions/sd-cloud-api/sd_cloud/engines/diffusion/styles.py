"""Styles: texts that a request puts around its prompts by name, from files like ``styles.csv``."""

from __future__ import annotations

import csv
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_cloud.errors import BadRequest, NotFound, SavingFailed


@dataclass(frozen=True)
class Style:
    """Without texts it is no style but a line in the list, above those of one file."""

    prompt: str | None
    negative_prompt: str | None


def styles_files(patterns: Sequence[str]) -> list[Path]:
    """The files that ``--styles-file`` means, each once; those of a pattern by name."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        found += sorted(path.parent.glob(path.name)) if "*" in path.name or "?" in path.name else [path]
    return list(dict.fromkeys(found))


def read_styles(patterns: Sequence[str]) -> dict[str, Style]:
    """Every style of these files; of two with one name the later counts, in the first's place."""
    found: dict[str, Style] = {}
    files = styles_files(patterns)
    for path in files:
        if len(files) > 1:
            found[f" {path.stem.upper()} ".center(40, "-")] = Style(None, None)
        if not path.is_file():
            continue
        with path.open("r", encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                name = (row.get("name") or "").strip()
                if name and not name.startswith("#"):
                    found[name] = Style(_prompt(row), row.get("negative_prompt") or "")
    return found


def _prompt(row: Mapping[str, str | None]) -> str:
    return row.get("prompt") or row.get("text") or ""  # the column's name in old files


def save_style(patterns: Sequence[str], name: str, style: Style | None) -> None:
    """Write a style into the file that has one of this name, or into the first; None takes it out.

    The file as it was stays beside it, with ``.bak`` at its end, as the webui leaves it. Raises BadRequest
    for what can't be a name, NotFound for a style to take out that is not there, SavingFailed.
    """
    name = name.strip()
    if not name or name.startswith("#") or name == "None":
        raise BadRequest(f"{name!r} can't be the name of a style", field="name")
    with _writing:
        held = {path: _rows(path) for path in styles_files(patterns) if path.is_file()}
        having = [path for path, rows in held.items() if any(row[0] == name for row in rows)]
        if style is None and not having:
            raise NotFound(f"there is no style {name!r}", field="name")
        path = having[-1] if having else _first(patterns)
        rows = held.get(path, [])
        place = next((i for i, row in enumerate(rows) if row[0] == name), len(rows))
        new = [] if style is None else [[name, style.prompt or "", style.negative_prompt or ""]]
        _write(path, [*rows[:place], *new, *(row for row in rows[place:] if row[0] != name)])


_writing = threading.Lock()


def _first(patterns: Sequence[str]) -> Path:
    """Where a new style goes: the first file, or where a pattern means none ``styles.csv`` in its folder."""
    found = styles_files(patterns[:1])
    return found[0] if found else Path(patterns[0]).parent / "styles.csv"


def _rows(path: Path) -> list[list[str]]:
    """Name, prompt and negative prompt of every line, comments too."""
    with path.open("r", encoding="utf-8-sig", newline="") as file:
        return [
            [(row.get("name") or "").strip(), _prompt(row), row.get("negative_prompt") or ""]
            for row in csv.DictReader(file, skipinitialspace=True)
        ]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path = path.resolve()  # a link stays one
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([("name", "prompt", "negative_prompt"), *rows])
        if path.is_file():
            shutil.copy(path, f"{path}.bak")
            shutil.copymode(path, new)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise SavingFailed(f"{path} cannot be written: {error.strerror}") from error


def styled(prompt: str, texts: Sequence[str]) -> str:
    """The prompt with each style's text around it (``{prompt}``) or after it."""
    for text in texts:
        if "{prompt}" in text:
            prompt = text.replace("{prompt}", prompt)
        else:
            prompt = ", ".join(part for part in (prompt.strip(), text.strip()) if part)
    return prompt


def apply_styles(
    prompt: str, negative: str, names: Sequence[str], styles: Mapping[str, Style]
) -> tuple[str, str, list[str]]:
    """Both prompts with the named styles, and the names there is no style for."""
    known = {name: style for name, style in styles.items() if style.prompt is not None}
    chosen = [known[name] for name in names if name in known]
    unknown = [name for name in names if name not in known and name != "None"]
    prompt = styled(prompt, [one.prompt or "" for one in chosen])
    return prompt, styled(negative, [one.negative_prompt or "" for one in chosen]), unknown
