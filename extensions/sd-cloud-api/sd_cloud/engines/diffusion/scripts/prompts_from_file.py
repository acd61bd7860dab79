"""Prompts from file or textbox: a job for each line, which is a prompt or a command line of fields."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sd_cloud.engines.diffusion.scripts.run import LIMIT_PICTURES, Session
from sd_cloud.errors import BadRequest
from sd_cloud.job import Outcome, Picture

LINES_FIELD = "script_args[3]"
PROMPTS = ("prompt", "negative_prompt")


def _flag(text: str) -> bool:
    return text == "true"


FIELDS: Mapping[str, Callable[[str], Any]] = {
    "sd_model": str,
    "styles": lambda text: [text],
    "seed": int,
    "subseed_strength": float,
    "subseed": int,
    "seed_resize_from_h": int,
    "seed_resize_from_w": int,
    "sampler_name": str,
    "batch_size": int,
    "n_iter": int,
    "steps": int,
    "cfg_scale": float,
    "width": int,
    "height": int,
    "restore_faces": _flag,
    "tiling": _flag,
}
"""What a line may set beside the prompts, and how its value is read."""

AS_ASKED: Mapping[str, Any] = {
    "subseed_strength": 0,
    "width": 512,
    "height": 512,
    "cfg_scale": 7.0,
    "steps": 50,
    "batch_size": 1,
    "restore_faces": None,
    "seed_resize_from_w": -1,
    "seed_resize_from_h": -1,
}
"""What ``info`` says as the request has it, whatever the lines say; with the webui's defaults."""

UNUSED = ("prompt_for_display", "sampler_index", "do_not_save_samples", "do_not_save_grid")
"""Fields that a line may have and that change no picture over the webui's API."""


def prompts_from_file(session: Session) -> Outcome:
    """The pictures of all lines, in order; ``info`` has the request's own numbers, as the webui's."""
    values = session.values
    lines = [line.strip() for line in str(values["prompt_txt"]).splitlines() if line.strip()]
    if not lines:
        raise BadRequest("prompt_txt: has no lines", field=LINES_FIELD)
    read = [read_line(line, number) for number, line in enumerate(lines, 1)]
    size, batches, seed = (
        session.whole("batch_size", 1),
        session.whole("n_iter", 1),
        session.whole("seed", -1),
    )
    wanted = sum(one.get("n_iter", batches) * one.get("batch_size", size) for one in read)
    if wanted > LIMIT_PICTURES:
        raise BadRequest(
            f"prompt_txt: asks for {wanted} pictures, more than {LIMIT_PICTURES}", field=LINES_FIELD
        )
    session.count = sum(one.get("n_iter", batches) for one in read)
    if seed == -1 and (values["checkbox_iterate"] or values["checkbox_iterate_batch"]):
        seed = session.fixed_seed("seed")
    job, marks = session.job, dict[str, Any]()
    made: list[Picture] = []
    for own in read:
        if session.stopped:
            break
        if "sd_model" in own:  # stays for the lines that follow, as in the webui
            job = replace(job, checkpoint=own.pop("sd_model"))
        changes = {"n_iter": batches, "seed": seed, **own, **_prompts(session, own)}
        made += session.run(marks, of=job, **changes)
        marks = session.outcomes[-1].info["extra_generation_params"]
        if values["checkbox_iterate"]:
            seed += size * batches
    return _outcome(session, made, seed)


def read_line(line: str, number: int) -> dict[str, Any]:
    """The fields of a line; one without ``--`` is a prompt. Raises BadRequest."""
    if "--" not in line:
        return {"prompt": line}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise _unreadable(number, str(error)) from error
    found: dict[str, Any] = {}
    while words:
        name = words.pop(0)
        if not name.startswith("--"):
            raise _unreadable(number, f"{name!r} stands where a --field belongs")
        if not words:
            raise _unreadable(number, f"{name} has no value")
        found |= _field(name[2:], words, number)
    return found


def _field(name: str, words: list[str], number: int) -> dict[str, Any]:
    """Takes its words from the list: prompts all up to the next field, others one."""
    value = words.pop(0)
    if name in PROMPTS:
        while words and not words[0].startswith("--"):
            value += " " + words.pop(0)
        return {name: value}
    if name in UNUSED:
        return {}
    if name not in FIELDS:
        there = ", ".join(f"--{one}" for one in (*PROMPTS, *FIELDS))
        raise _unreadable(number, f"there is no --{name}; there are {there}")
    try:
        return {name: FIELDS[name](value)}
    except ValueError as error:
        raise _unreadable(number, f"--{name} cannot be {value!r}") from error


def _unreadable(number: int, why: str) -> BadRequest:
    return BadRequest(f"prompt_txt: line {number}: {why}"[:600], field=LINES_FIELD)


def _prompts(session: Session, own: Mapping[str, Any]) -> dict[str, str]:
    """The line's prompts with the request's after or before them."""
    found = {}
    for name in PROMPTS:
        whole = session.text(name)
        if own.get(name) and whole:
            parts = [own[name], whole]
            found[name] = " ".join(parts if session.values["prompt_position"] == "start" else parts[::-1])
    return found


def _outcome(session: Session, made: list[Picture], seed: int) -> Outcome:
    session.check_begun()
    infos = [one.info for one in session.outcomes]
    payload = session.payload
    return Outcome(
        tuple(made),
        info={
            **infos[-1],
            "prompt": infos[0]["all_prompts"][0],
            "all_prompts": [text for one in infos for text in one["all_prompts"]],
            "negative_prompt": session.text("negative_prompt"),
            "all_negative_prompts": [session.text("negative_prompt")],
            "seed": seed,
            "all_seeds": [seed],
            "subseed": -1,
            "all_subseeds": [-1],
            **{name: payload.get(name, default) for name, default in AS_ASKED.items()},
            "sd_model_name": None,
            "sd_model_hash": None,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "index_of_first_image": 0,
            "infotexts": [text for one in infos for text in one["infotexts"]],
        },
    )
