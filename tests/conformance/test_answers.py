"""Our answers beside those a webui 1.10.1 gave: the same keys, the same types, in every place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.reference import needs_reference, reference
from tests.dialects.sdapi_world import Native, native

pytestmark = needs_reference

#: Route: why an empty list is an answer here.
EMPTY: dict[str, str] = {
    "extensions": "extensions of the webui run in the webui, not in this host",
    "face-restorers": "the engine restores no faces; the webui names what it could download",
    "prompt-styles": "a fresh styles.csv holds none",
}
#: Place: what our answers may be there beside what the recording shows, and why.
TOLERATED: dict[str, tuple[str, str]] = {
    "sd-models[].config": ("null", "a checkpoint without a sidecar yaml; the recorded ones have one"),
    "upscalers[].model_path": ("null", "the recorded webui names files it could download"),
}
LISTS = (
    *("cmd-flags", "embeddings", "extensions", "face-restorers", "hypernetworks", "latent-upscale-modes"),
    *("memory", "options", "progress", "prompt-styles", "realesrgan-models", "samplers", "schedulers"),
    *("scripts", "script-info", "sd-models", "sd-vae", "upscalers"),
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as world:
        yield world


def shape(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """``where.key[]``: the JSON type there. Numbers are one type; all items of a list share a place."""
    if isinstance(value, dict):
        yield where, "object"
        for key, inner in value.items():
            yield from shape(inner, f"{where}.{key}")
    elif isinstance(value, list):
        yield where, "list"
        for inner in value:
            yield from shape(inner, f"{where}[]")
    else:
        kinds: dict[type, str] = {
            bool: "boolean",
            int: "number",
            float: "number",
            str: "text",
            type(None): "null",
        }
        yield where, kinds[type(value)]


def shapes(value: Any, where: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for place, kind in shape(value, where):
        found.setdefault(place, set()).add(kind)
    return found


@pytest.mark.parametrize("route", LISTS)
async def test_an_answer_has_the_shape_of_the_webuis(world: Native, route: str) -> None:
    theirs, ours = reference(f"{route}.json"), await world.get(route)
    if ours == [] and theirs != []:
        assert route in EMPTY
        return
    if theirs in ([], {}):
        return  # the recording says nothing of its items; the OpenAPI file does
    expected, found = shapes(theirs, route), shapes(ours, route)
    for place, kinds in expected.items():
        parent, is_item = place.removesuffix("[]").rpartition(".")[0], place.endswith("[]")
        if place not in found:
            # No item of a list, or nothing below a null or an empty list.
            assert is_item or parent not in found, f"{place} is missing"
            continue
        more, _ = TOLERATED.get(place, ("", ""))
        unset = {"null"} if route in ("options", "cmd-flags") else set()
        assert found[place] <= kinds | {more} | unset, f"{place}: {found[place]}, the webui says {kinds}"


async def test_a_txt2img_answer_repeats_the_request_as_the_webui_repeats_it(world: Native) -> None:
    request, theirs = reference("txt2img.request.json"), reference("txt2img.json")
    ours = (await world.post("txt2img", request)).json()
    assert list(ours) == list(theirs)
    assert ours["parameters"] == theirs["parameters"]
    assert list(ours["parameters"]) == list(theirs["parameters"])
    assert isinstance(ours["info"], str) and len(ours["images"]) == 1


@pytest.mark.parametrize("route", ["samplers", "schedulers", "latent-upscale-modes"])
async def test_what_every_webui_has_is_listed_word_for_word(world: Native, route: str) -> None:
    assert await world.get(route) == reference(f"{route}.json")


async def test_options_are_the_webuis_with_its_defaults(world: Native) -> None:
    theirs, ours = reference("options.json"), await world.get("options")
    assert set(theirs) <= set(ours)
    more = {key for key in ours if key.startswith(("hypertile_", "SWIN_", "SCUNET_", "ldsr_"))}
    assert set(ours) - set(theirs) == more, "a webui with its page has these, and the recorded one had none"
    own = {"sd_model_checkpoint", "sd_checkpoint_hash", "settings_in_ui"}  # prose, and what is installed
    same = {key for key in theirs if not key.endswith("_explanation") and not key.startswith("outdir_")} - own
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    for key in (key for key in theirs if key.startswith("outdir_")):
        assert ours[key] == theirs[key].replace("/webui/data", str(world.settings.data_dir))


async def test_a_scripts_arguments_are_listed_as_the_webui_lists_them(world: Native) -> None:
    """All but those whose choices are what is installed; the axes of Hypertile come with the webui's page,
    which the recorded one had not."""

    def choices(argument: dict[str, Any]) -> Any:
        if argument["label"] == "Upscaler":
            return "the installed ones"
        listed = argument["choices"]
        return listed and [one for one in listed if not one.startswith("[Hypertile] ")]

    def arguments(infos: list[dict[str, Any]]) -> dict[tuple[str, bool], list[dict[str, Any]]]:
        return {
            (one["name"], one["is_img2img"]): [
                {**argument, "choices": choices(argument)} for argument in one["args"]
            ]
            for one in infos
            if not one["is_alwayson"] or one["name"] == "soft inpainting"
        }

    assert arguments(await world.get("script-info")) == arguments(reference("script-info.json"))
