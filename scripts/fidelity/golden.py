"""The golden pictures, made again by our service."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from PIL import Image
from scripts.fidelity.answers import Answer, Asked
from scripts.fidelity.case import Case
from scripts.fidelity.compare import Row, compared
from scripts.fidelity.report import line

OWN_INFO = ("all_seeds", "all_subseeds")


def rows(ours: Asked, golden: Path) -> list[Row]:
    """One row for each case of ``cases.json``."""
    found = []
    for entry in json.loads((golden / "cases.json").read_text("utf-8")):
        request = {key: _filled(value, golden) for key, value in entry["request"].items()}
        if isinstance(request.get("init_images"), str):
            request["init_images"] = [request["init_images"]]
        case = Case("golden", entry["name"], entry["route"], request)
        made = ours.answer(case)
        images = tuple(Image.open(golden / "cases" / name) for name in entry["images"])
        known = {key: entry[key] for key in OWN_INFO if key in entry}
        info = {key: value for key, value in (made.info or {}).items() if key in known}
        expected = Answer(200, images, {**known, "infotexts": entry["infotexts"]})
        here = Answer(made.status, made.pictures, {**info, "infotexts": made.infotexts}, made.refusal)
        found.append(compared(case, expected, here))
        print(line(found[-1]), flush=True)
    return found


def _filled(value: Any, golden: Path) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        return base64.b64encode((golden / "cases" / value[1:]).read_bytes()).decode("ascii")
    return value
