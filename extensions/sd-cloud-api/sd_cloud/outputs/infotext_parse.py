"""Infotext back into values: what the webui reads out of a picture when one is pasted.

An infotext is the prompt (any number of lines), ``Negative prompt:`` and its lines, and a last line
of ``Key: value`` pairs between commas, a value with a comma, colon or line break in it being a JSON
string. Missing keys get the value that their absence meant.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-(\d+)(?:-.*)?)?")

#: A last line with fewer pairs than this belongs to the prompt.
_FEWEST_PAIRS = 3

#: What it means that a key is not there.
_ABSENT: dict[str, Any] = {
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
}


def parse_infotext(infotext: str) -> dict[str, Any]:
    """The values of an infotext by their names in it; a size ``WxH`` as ``<name>-1``, ``<name>-2``."""
    lines = infotext.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    if len(pairs) < _FEWEST_PAIRS:
        pairs = []
    else:
        lines = lines[:-1]
    found: dict[str, Any] = {}
    for key, raw in pairs:
        if not raw:
            continue
        value = _unquoted(raw)
        size = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    found["Prompt"], found["Negative prompt"] = _prompts(lines)
    emphasis = has_emphasis(found["Prompt"], found["Negative prompt"])
    if "Hypernet" in found:
        strength = found.get("Hypernet strength", "1.0")
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{strength}>"
    _first_pass_as_hires(found)
    return _completed(found, emphasis=emphasis)


def _prompts(lines: list[str]) -> tuple[str, str]:
    positive: list[str] = []
    negative: list[str] = []
    into = positive
    for line in lines:
        line = line.strip()
        if line.startswith(_NEGATIVE):
            into, line = negative, line[len(_NEGATIVE) :].strip()
        # An empty line at the start of either prompt adds nothing, as in the webui.
        if line or into:
            into.append(line)
    return "\n".join(positive), "\n".join(negative)


def _unquoted(value: str) -> Any:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _first_pass_as_hires(found: dict[str, Any]) -> None:
    """Old infotexts tell the first pass's size; the size they tell is then the hires pass's."""
    if "First pass size-1" not in found or "First pass size-2" not in found:
        return
    first = int(found["First pass size-1"]), int(found["First pass size-2"])
    full = int(found.get("Size-1", 512)), int(found.get("Size-2", 512))
    if 0 in first:
        first = _old_first_pass(*full)
    found["Size-1"], found["Size-2"] = first
    found["Hires resize-1"], found["Hires resize-2"] = full


def _old_first_pass(width: int, height: int) -> tuple[int, int]:
    """The size that a first pass of 0x0 stood for: the picture's shape at 512x512 pixels, in 64s."""
    if not width or not height:
        return 512, 512
    scale = math.sqrt(512 * 512 / (width * height))
    return math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64


def _completed(found: dict[str, Any], *, emphasis: bool) -> dict[str, Any]:
    if "Hires resize-1" not in found:
        found.pop("Hires resize-2", None)
    for key, value in _ABSENT.items():
        found.setdefault(key, value)
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    if emphasis:
        found.setdefault("Emphasis", "Original")
    _older_versions(found)
    return found


def _older_versions(found: dict[str, Any]) -> None:
    """Switches on what pictures of an older webui were made with."""
    version = _version(found.get("Version"))
    if version is None:
        return
    if version < (1, 6, 0) and "[" in found["Prompt"]:
        found["Old prompt editing timelines"] = True
    if version < (1, 6, 0) and found.get("Sampler") in ("DDIM", "PLMS"):
        found["Pad conds v0"] = True
    if version < (1, 7, 0, 225):
        found["Downcast alphas_cumprod"] = True
    if version < (1, 8, 0) and found.get("Refiner"):
        found["Refiner switch by sampling steps"] = True


def _version(text: object) -> tuple[int, ...] | None:
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    return tuple(int(part) for part in match.groups() if part is not None) if match else None


_TOKEN = re.compile(r"\\.|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|.", re.DOTALL)
_MORE = 1.1


def has_emphasis(*prompts: str) -> bool:
    """Whether any part of the prompts has a weight other than 1: ``(a)``, ``[a]``, ``(a:1.2)``."""
    return any(weight != 1.0 for prompt in prompts for weight in _weights(prompt))


def _weights(prompt: str) -> list[float]:
    """The weight of each piece of text. A bracket that is never closed counts to the end."""
    weights: list[float] = []
    round_opened: list[int] = []
    square_opened: list[int] = []
    for match in _TOKEN.finditer(prompt):
        token, given = match[0], match[1]
        if token == "(":
            round_opened.append(len(weights))
        elif token == "[":
            square_opened.append(len(weights))
        elif given is not None and round_opened:
            _multiply(weights, round_opened.pop(), _number(given))
        elif token == ")" and round_opened:
            _multiply(weights, round_opened.pop(), _MORE)
        elif token == "]" and square_opened:
            _multiply(weights, square_opened.pop(), 1 / _MORE)
        else:
            weights.append(1.0)
    for start in round_opened:
        _multiply(weights, start, _MORE)
    for start in square_opened:
        _multiply(weights, start, 1 / _MORE)
    return weights


def _multiply(weights: list[float], start: int, by: float) -> None:
    weights[start:] = [weight * by for weight in weights[start:]]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0  # "(a:..)" is no weight to anybody
