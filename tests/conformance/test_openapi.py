"""Our OpenAPI file beside the webui's, route by route and field by field."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.reference import needs_reference, reference
from tests.conformance.schemas import differences, facts, native_part
from tests.dialects.sdapi_world import Native, native

pytestmark = needs_reference

#: Every difference that is meant, by address, with its reason. Nothing else may differ, and each
#: of these must still exist.
TOLERATED: dict[str, str] = {
    "Options.*_explanation": "prose of the settings page; ours is our own",
    "Options.hypertile_*": "a webui with its page lists them; the recorded one had no page",
    "Options.ldsr_*": "a webui with its page lists them; the recorded one had no page",
    "Options.S*_tile*": "a webui with its page lists them; the recorded one had no page",
    "Options.SWIN_torch_compile": "a webui with its page lists it; the recorded one had no page",
    "Options.settings_in_ui": "prose of the settings page; ours is our own",
    "Flags.data_dir": "the webui's default is its own folder; ours is the data dir served",
    "Flags.config": "the webui's default is in its program folder; we have no such folder",
    "Flags.ckpt": "the webui's default is in its program folder; we have no such folder",
    "Flags.gfpgan_dir": "the webui's default is in its program folder; we have no such folder",
    "Flags.localizations_dir": "the webui's default is in its program folder; we have no such folder",
    "Flags.textual_inversion_templates_dir": "the webui's default is in its program folder; we have none",
    "ValidationError.input": "FastAPI's newer releases declare it; our answers do not carry it",
    "ValidationError.ctx": "FastAPI's newer releases declare it; our answers do not carry it",
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as world:
        yield world


async def test_our_openapi_file_says_what_the_webuis_says(world: Native) -> None:
    text = json.dumps(world.app.openapi()).replace(str(world.settings.data_dir), "/webui/data")
    found = differences(facts(reference("openapi.json")), facts(native_part(json.loads(text))))
    meant = {
        address: pattern
        for pattern in TOLERATED
        for address in found
        if fnmatch.fnmatchcase(address, pattern)
    }
    unmeant = {address: what for address, what in found.items() if address not in meant}
    assert unmeant == {}
    assert set(TOLERATED) == set(meant.values()), "a tolerated difference that is none any more"
