"""The webui's filename patterns: ``[seed]-[prompt_words]``, ``[date]/[datetime<%H%M>]`` and the rest.

What a pattern's token becomes is made safe for a file name, so that a prompt cannot name a folder.
A token nobody knows stays as it is written.
"""

from __future__ import annotations

import hashlib
import re
import string
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

from PIL import Image

from sd_cloud.job import Job

LIMIT_PART_CHARS = 128
_DEFAULT_TIME_FORMAT = "%Y%m%d%H%M%S"
_INVALID = {ord(char): "_" for char in '#<>:"/\\|?*\n\r\t\0'}
_PART = re.compile(r"(.*?)(?:\[([^\[\]]+)\]|$)", re.DOTALL)
_ARGUMENT = re.compile(r"(.*)<([^>]*)>$", re.DOTALL)
_WORDS = re.compile(r"[\s" + re.escape(string.punctuation) + "]+")


class Skip:
    """The value of a token that says nothing here; the text before it is left out with it."""


@dataclass(frozen=True)
class Facts:
    """What the tokens of one picture's name are taken from.

    ``info`` is the outcome's; ``index`` counts the job's pictures from 0.
    """

    job: Job
    info: Mapping[str, Any]
    image: Image.Image
    moment: datetime
    seed: int | None = None
    index: int = 0

    def said(self, name: str, default: Any = None) -> Any:
        """A value of the run: as the engine reports it, else as the request has it."""
        value = self.info.get(name)
        return self.job.payload.get(name, default) if value is None else value

    def one_of(self, plural: str, single: str) -> str:
        """This picture's entry of a list in ``info``, else the request's own."""
        entries = self.info.get(plural) or []
        value = entries[self.index] if self.index < len(entries) else self.said(single)
        return str(value or "")

    @property
    def prompt(self) -> str:
        return self.one_of("all_prompts", "prompt")

    @property
    def negative_prompt(self) -> str:
        return self.one_of("all_negative_prompts", "negative_prompt")

    @property
    def batch_size(self) -> int:
        return int(self.said("batch_size") or 1)

    @property
    def seeds(self) -> Sequence[Any]:
        return self.info.get("all_seeds") or [self.seed]


def safe_part(text: str) -> str:
    """A text as part of a file name: nothing in it separates folders, and it does not end in a dot."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    return text.translate(_INVALID).lstrip(" ")[:LIMIT_PART_CHARS].rstrip(" .")


def expand(pattern: str, facts: Facts) -> str:
    """The text that a pattern stands for."""
    text = ""
    for match in _PART.finditer(pattern):
        before, token = match.groups()
        if token is None:
            text += before
            continue
        value = _value(token, facts)
        if value is Skip:
            continue
        text += before + (f"[{token}]" if value is None else str(value))
    return text


def _value(token: str, facts: Facts) -> object:
    arguments: list[str] = []
    name = token
    while match := _ARGUMENT.match(name):
        name, argument = match.groups()
        arguments.insert(0, argument)
    known = _TOKENS.get(name.lower())
    value = None if known is None else known(facts, arguments)
    return safe_part(value) if isinstance(value, str) else value


def _moment(facts: Facts, arguments: list[str]) -> str:
    form = arguments[0] if arguments and arguments[0] else _DEFAULT_TIME_FORMAT
    zone = None
    if len(arguments) > 1:
        try:
            zone = zoneinfo.ZoneInfo(arguments[1])
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            pass  # an unknown zone is local time, as in the webui
    try:
        told = facts.moment.astimezone(zone).strftime(form)
    except ValueError:
        told = facts.moment.astimezone(zone).strftime(_DEFAULT_TIME_FORMAT)
    return told


def _text_hash(text: str, arguments: list[str]) -> str:
    length = _length(arguments, 8)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:length]


def _length(arguments: list[str], default: int | None) -> int | None:
    return int(arguments[0]) if arguments and arguments[0].isdigit() else default


def _prompt_words(facts: Facts) -> str:
    words = [word for word in _WORDS.split(facts.prompt) if word] or ["empty"]
    return " ".join(words[: int(facts.job.option("directories_max_prompt_words", 8) or 8)])


def _prompt_without_styles(facts: Facts) -> str:
    # Styles are merged into the prompt before it is sampled; the request has it without them.
    return str(facts.job.payload.get("prompt") or facts.prompt)


def _has_prompt(facts: Facts, arguments: list[str]) -> str:
    prompt = facts.prompt.lower()
    text = ""
    for argument in arguments:
        wanted, _, otherwise = argument.partition("|")
        if wanted and wanted.lower() in prompt:
            text += wanted.lower()
        else:
            text += otherwise.partition("|")[0]
    return text.replace(" ", "_")


def _scheduler(facts: Facts) -> str:
    extra = facts.info.get("extra_generation_params") or {}
    return str(extra.get("Schedule type") or facts.said("scheduler") or "Automatic").capitalize()


def _vae_filename(facts: Facts) -> str:
    name = facts.said("sd_vae_name")
    if not name:
        return "NoneType"
    parts = PurePath(str(name)).name.split(".")
    return parts[1] if len(parts) > 1 and not parts[0] else parts[0]


def _generation_number(facts: Facts) -> object:
    alone = facts.batch_size == 1 and int(facts.job.payload.get("n_iter") or 1) == 1
    return Skip if alone else facts.index + 1


def _styles(facts: Facts) -> str:
    names = [str(one) for one in facts.said("styles") or [] if one != "None"]
    return ", ".join(names) or "None"


_TOKENS: dict[str, Callable[[Facts, list[str]], object]] = {
    "basename": lambda f, a: "img",
    "seed": lambda f, a: "" if f.seed is None else f.seed,
    "seed_first": lambda f, a: f.seed if f.batch_size == 1 else f.seeds[0],
    "seed_last": lambda f, a: Skip if f.batch_size == 1 else f.seeds[-1],
    "steps": lambda f, a: f.said("steps"),
    "cfg": lambda f, a: f.said("cfg_scale"),
    "width": lambda f, a: f.image.width,
    "height": lambda f, a: f.image.height,
    "styles": lambda f, a: _styles(f),
    "sampler": lambda f, a: str(f.said("sampler_name") or ""),
    "sampler_scheduler": lambda f, a: f"{f.said('sampler_name') or ''} {_scheduler(f)}",
    "scheduler": lambda f, a: _scheduler(f),
    "model_hash": lambda f, a: str(f.said("sd_model_hash") or ""),
    "model_name": lambda f, a: str(f.said("sd_model_name") or f.job.checkpoint or ""),
    "date": lambda f, a: f.moment.strftime("%Y-%m-%d"),
    "datetime": _moment,
    "job_timestamp": lambda f, a: str(f.said("job_timestamp") or ""),
    "prompt_hash": lambda f, a: _text_hash(f.prompt, a),
    "negative_prompt_hash": lambda f, a: _text_hash(f.negative_prompt, a),
    "full_prompt_hash": lambda f, a: _text_hash(f"{f.prompt} {f.negative_prompt}", a),
    "prompt": lambda f, a: f.prompt.replace(" ", "_"),
    "prompt_no_styles": lambda f, a: _prompt_without_styles(f),
    "prompt_spaces": lambda f, a: f.prompt,
    "prompt_words": lambda f, a: _prompt_words(f),
    "batch_number": lambda f, a: Skip if f.batch_size == 1 else f.index % f.batch_size + 1,
    "batch_size": lambda f, a: f.batch_size,
    "generation_number": lambda f, a: _generation_number(f),
    "hasprompt": _has_prompt,
    "clip_skip": lambda f, a: f.said("clip_skip", f.job.option("CLIP_stop_at_last_layers", 1)),
    "denoising": lambda f, a: f.said("denoising_strength") or Skip,
    "user": lambda f, a: f.job.owner,
    "vae_filename": lambda f, a: _vae_filename(f),
    "none": lambda f, a: "",
    "image_hash": lambda f, a: hashlib.sha256(f.image.tobytes()).hexdigest()[: _length(a, None)],
}
