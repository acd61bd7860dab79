"""docs/fidelity.md says of every native field whether it is the same, differs, or is absent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"
OPENAPI = ROOT.parent / "shared" / "reference" / "webui-1.10.1" / "openapi.json"
COMMON = "Fields of txt2img and img2img"
TABLES = {
    "StableDiffusionProcessingTxt2Img": (COMMON, "Of txt2img alone"),
    "StableDiffusionProcessingImg2Img": (COMMON, "Of img2img alone"),
    "ExtrasSingleImageRequest": ("Fields of extra-single-image and extra-batch-images",),
    "ExtrasBatchImagesRequest": ("Fields of extra-single-image and extra-batch-images",),
}


def _rows(heading: str) -> dict[str, str]:
    """Field -> what the table under a heading says of it."""
    under = re.split(r"^#+ ", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    section = next(part for part in under if part.startswith(f"{heading}\n"))
    found = {}
    for left, right in re.findall(r"^\| (`.*?) \| (.*) \|$", section, flags=re.MULTILINE):
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", left), right))
    return found


@pytest.mark.skipif(not OPENAPI.is_file(), reason="the webui's OpenAPI file is not beside this checkout")
@pytest.mark.parametrize("model", TABLES)
def test_every_field_of_the_native_models_stands_in_the_table(model: str) -> None:
    fields = json.loads(OPENAPI.read_text("utf-8"))["components"]["schemas"][model]["properties"]
    said = {field: text for heading in TABLES[model] for field, text in _rows(heading).items()}
    assert set(fields) - set(said) == set()


@pytest.mark.parametrize("heading", sorted({heading for headings in TABLES.values() for heading in headings}))
def test_the_tables_say_nothing_but_same_differs_or_absent(heading: str) -> None:
    rows = _rows(heading)
    assert rows
    assert [field for field, text in rows.items() if not re.match("same|differs|absent", text)] == []


@pytest.mark.skipif(not OPENAPI.is_file(), reason="the webui's OpenAPI file is not beside this checkout")
def test_the_tables_name_no_field_that_the_native_models_lack() -> None:
    schemas = json.loads(OPENAPI.read_text("utf-8"))["components"]["schemas"]
    known = {field for model in TABLES for field in schemas[model]["properties"]}
    said = {field for headings in TABLES.values() for heading in headings for field in _rows(heading)}
    assert said - known == set()
