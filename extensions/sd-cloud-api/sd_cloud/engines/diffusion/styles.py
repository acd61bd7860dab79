"""Styles of ``styles.csv``: texts that a request puts around its prompts by name."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Style:
    prompt: str
    negative_prompt: str


def read_styles(folder: Path) -> dict[str, Style]:
    """Every style of ``styles*.csv`` in a folder; in two files the later wins."""
    found: dict[str, Style] = {}
    for path in sorted(folder.glob("styles*.csv")):
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
    chosen = [styles[name] for name in names if name in styles]
    unknown = [name for name in names if name not in styles and name != "None"]
    prompt = styled(prompt, [one.prompt for one in chosen])
    return prompt, styled(negative, [one.negative_prompt for one in chosen]), unknown
