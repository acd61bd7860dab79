"""The standalone command line: flags and environment in, one mapping of values out.

The command line wins over the environment, the environment over the declared default. Nothing
is dropped silently: an unknown flag is an error, and :class:`Given` carries a note for every
flag that was given and does nothing here.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sd_cloud.flag import ENVIRONMENT_PREFIX
from sd_cloud.flags import FLAGS


@dataclass(frozen=True)
class Given:
    """``values``: every flag's value by ``dest``. ``notes``: sentences for the log at start."""

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sd-cloud: {message}\n")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Given:
    """Read the flags. Exits with 2 and a sentence on standard error when one can't be read."""
    parser = _Parser(prog="sd-cloud launch", allow_abbrev=False, description="Serve the API.")
    for flag in FLAGS:
        flag.add_to(parser, argparse.SUPPRESS)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        parser.error(_unknown(unknown))
    from_environment, notes = _environment(parser, environ)
    on_command_line = {
        flag.dest: getattr(namespace, flag.dest) for flag in FLAGS if hasattr(namespace, flag.dest)
    }
    given = {**from_environment, **on_command_line}
    values = {flag.dest: given.get(flag.dest, flag.initial) for flag in FLAGS}
    return Given(values, (*notes, *_without_effect(given)))


def _unknown(rest: Sequence[str]) -> str:
    wrong = rest[0].split("=", 1)[0]
    if not wrong.startswith("-"):
        return f"{wrong!r} is not a flag and belongs to none (see --help)"
    nearest = difflib.get_close_matches(wrong, [flag.name for flag in FLAGS], n=1, cutoff=0.5)
    return f"no flag {wrong}" + (f"; did you mean {nearest[0]}?" if nearest else " (see --help)")


def _environment(
    parser: argparse.ArgumentParser, environ: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    known = {flag.variable: flag for flag in FLAGS}
    values: dict[str, Any] = {}
    notes = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if variable not in known:
            nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0.8)
            notes.append(
                f"{variable} in the environment is ignored: no flag has that name"
                + (f"; did you mean {nearest[0]}?" if nearest else "")
            )
            continue
        try:
            values[known[variable].dest] = known[variable].convert(text)
        except ValueError as error:
            parser.error(f"{variable} in the environment: {error}")
    return values, tuple(notes)


def _without_effect(given: Mapping[str, Any]) -> list[str]:
    notes = []
    for flag in FLAGS:
        if flag.dest not in given or given[flag.dest] in (False, None, []):
            continue
        if flag.standalone == "no meaning":
            notes.append(f"{flag.name} has no meaning without the webui; it is accepted and changes nothing")
        elif flag.standalone == "not yet":
            notes.append(f"{flag.name} has no effect yet in this version")
    return notes
