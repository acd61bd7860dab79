"""Infotext into values: each case is what a real webui 1.10.1 made of the same text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_cloud.outputs.infotext_parse import has_emphasis, parse_infotext

ABSENT: dict[str, Any] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
    "Prompt": "",
    "Negative prompt": "",
}


def told(text: str) -> dict[str, Any]:
    """What the text says beyond what its silence means."""
    return {key: value for key, value in parse_infotext(text).items() if ABSENT.get(key, ABSENT) != value}


def test_an_empty_text_says_what_silence_means() -> None:
    assert parse_infotext("") == ABSENT


def test_prompt_negative_prompt_and_pairs_are_told_apart() -> None:
    text = (
        "girl with a beret,\n((eyeshadow)), detailed\n"
        "Negative prompt: ugly, [blurry]\nbad anatomy\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b"
    )
    assert told(text) == {
        "Prompt": "girl with a beret,\n((eyeshadow)), detailed",
        "Negative prompt": "ugly, [blurry]\nbad anatomy",
        "Steps": "20",
        "Sampler": "Euler a",
        "CFG scale": "7",
        "Seed": "965400086",
        "Size-1": "512",
        "Size-2": "768",
        "Model hash": "45dee52b",
        "Emphasis": "Original",
    }


def test_a_last_line_with_fewer_than_three_pairs_belongs_to_the_prompt() -> None:
    assert told("a cat\nstyle: oil, mood: calm") == {"Prompt": "a cat\nstyle: oil, mood: calm"}


def test_quoted_values_are_json() -> None:
    text = (
        'a\nSteps: 2, TI hashes: "a: b, c: d", Hires prompt: "x, y\\nz", Sampler: DDIM, Note: "open, Seed: 5'
    )
    said = told(text)
    assert said["TI hashes"] == "a: b, c: d" and said["Hires prompt"] == "x, y\nz"
    assert said["Note"] == '"open' and said["Seed"] == "5"


def test_an_old_first_pass_size_becomes_the_hires_size() -> None:
    said = told("a\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 1024x512, First pass size: 0x0")
    assert (said["Size-1"], said["Size-2"]) == (768, 384)
    assert (said["Hires resize-1"], said["Hires resize-2"]) == (1024, 512)
    said = told("a\nSteps: 2, Sampler: DDIM, Seed: 1, Size: 1024x512, First pass size: 256x128")
    assert (said["Size-1"], said["Size-2"]) == (256, 128)


@pytest.mark.parametrize(
    ("version", "switched"),
    [
        ("v1.5.1", {"Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod"}),
        ("1.6.0", {"Downcast alphas_cumprod"}),
        ("v1.7.0-224-gabc", {"Downcast alphas_cumprod"}),
        ("v1.7.0-225-gabc", set()),
        ("v1.10.1", set()),
        ("f0.0.17v1.8.0rc-latest-1", set()),
    ],
)
def test_pictures_of_an_older_webui_switch_on_what_it_did(version: str, switched: set[str]) -> None:
    said = told(f"[a:b:3]\nSteps: 2, Sampler: DDIM, Seed: 1, Version: {version}")
    known = {"Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod"}
    assert known & set(said) == switched


def test_a_hypernetwork_goes_into_the_prompt() -> None:
    said = told("a\nSteps: 2, Sampler: DDIM, Hypernet: anime(abc), Hypernet strength: 0.5")
    assert said["Prompt"] == "a<hypernet:anime(abc):0.5>" and "Emphasis" not in said


@pytest.mark.parametrize(
    ("prompt", "emphasised"),
    [
        ("a cat", False),
        ("(a) cat", True),
        ("[a] cat", True),
        ("(a:1.2)", True),
        ("(a:1.0)", False),
        ("[(a)]", False),
        (r"\(a\)", False),
        ("(", False),
        ("(a", True),
        ("a)", False),
        ("a: 1.5)", False),
        ("BREAK", False),
        ("()", False),
    ],
)
def test_emphasis_is_any_weight_but_one(prompt: str, emphasised: bool) -> None:
    assert has_emphasis(prompt) is emphasised


@given(st.text())
def test_no_text_is_too_odd_to_be_read(text: str) -> None:
    assert isinstance(parse_infotext(text)["Prompt"], str)
