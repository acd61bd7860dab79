"""Styles: texts that a request puts around its prompts by name, from files like ``styles.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


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
                    prompt = row.get("prompt") or row.get("text") or ""
                    found[name] = Style(prompt, row.get("negative_prompt") or "")
    return found


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
