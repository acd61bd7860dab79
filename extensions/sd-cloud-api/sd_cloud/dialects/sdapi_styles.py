"""Prompt styles: the data dir's ``styles.csv``, as the webui keeps it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_cloud.errors import NotFound


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str
    negative_prompt: str


def read_styles(path: Path) -> tuple[Style, ...]:
    """The styles of a file, the last of a name. No file: no styles. Blocks on the disk."""
    if not path.is_file():
        return ()
    found: dict[str, Style] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        for row in csv.DictReader(file):
            name = row.get("name") or ""
            # Files of early webuis have the prompt in a column "text".
            prompt = row.get("prompt") or row.get("text") or ""
            if name and not name.startswith("#"):
                found[name] = Style(name, prompt, row.get("negative_prompt") or "")
    return tuple(found.values())


def with_styles(
    prompt: str, negative_prompt: str, names: Sequence[str], styles: Sequence[Style]
) -> tuple[str, str]:
    """Both prompts with these styles laid over them, in order. Raises NotFound for an unknown name."""
    known = {style.name: style for style in styles}
    for name in names:
        if name in ("", "None"):
            continue
        if name not in known:
            raise NotFound(
                f"there is no style {name!r}; styles.csv has: {', '.join(known) or 'none'}", field="styles"
            )
        prompt = _laid_over(known[name].prompt, prompt)
        negative_prompt = _laid_over(known[name].negative_prompt, negative_prompt)
    return prompt, negative_prompt


def _laid_over(style: str, prompt: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)
