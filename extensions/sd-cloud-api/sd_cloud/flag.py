"""What one launch flag is: its name, its values, its environment variable, its argparse form."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["switch", "text", "path", "int", "float", "list"]
Origin = Literal["ours", "webui", "built-in extension", "controlnet extension"]
Standalone = Literal["used", "no meaning", "not yet"]

ENVIRONMENT_PREFIX = "SD_CLOUD_"
YES = frozenset({"1", "true", "yes", "on"})
NO = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True)
class Flag:
    """One launch flag.

    ``origin``: who defines it when we live inside the webui (only ``ours`` may be added there:
    a second definition breaks the first one's preload). ``standalone``: ``used``, ``no meaning``
    (accepted, and logged as such) or ``not yet`` (parsed; the start says that it has no effect).
    A ``list`` takes several values, comma-separated, space-separated or by repeating the flag.
    """

    name: str
    help: str
    kind: Kind = "switch"
    default: Any = None
    origin: Origin = "ours"
    standalone: Standalone = "used"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that mirrors it."""
        return ENVIRONMENT_PREFIX + self.dest.upper()

    @property
    def initial(self) -> Any:
        """The value when nobody gives one."""
        if self.kind == "switch":
            return False
        return [] if self.kind == "list" and self.default is None else self.default

    def convert(self, text: str) -> Any:
        """One value from its text. Raises ValueError with a sentence."""
        if self.kind == "switch":
            if text.strip().lower() in YES | NO:
                return text.strip().lower() in YES
            raise ValueError(f"{text!r} is neither yes nor no (write 1 or 0)")
        if self.kind == "int":
            return _number(text, int)
        if self.kind == "float":
            return _number(text, float)
        if self.kind == "path":
            return str(Path(text).expanduser().absolute()) if text else None
        if self.kind == "list":
            return [part.strip() for part in text.split(",") if part.strip()]
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}")
        return text

    def add_to(self, parser: argparse.ArgumentParser, default: Any) -> None:
        help_text = self.help.replace("%", "%%")
        if self.kind == "switch":
            parser.add_argument(self.name, action="store_true", default=default, help=help_text)
        elif self.kind == "list":
            parser.add_argument(
                self.name, nargs="+", action=_Extend, default=default, metavar=self.metavar, help=help_text
            )
        else:
            parser.add_argument(
                self.name, type=_typed(self), default=default, metavar=self.metavar, help=help_text
            )


class _Extend(argparse.Action):
    """Adds comma-separated values to a list of this command line's own, never to the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest + "_given", [])
        given = [*given, *(part.strip() for text in values for part in str(text).split(",") if part.strip())]
        setattr(namespace, self.dest, given)
        setattr(namespace, self.dest + "_given", given)


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
    if value < 0 or value != value:
        raise ValueError(f"{text} is below zero")
    return value


def _typed(flag: Flag) -> Any:
    def convert(text: str) -> Any:
        try:
            return flag.convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
