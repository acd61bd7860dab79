"""What a prompt says, as the webui reads it. Text in, plain data out; no model is needed.

The constructs, outermost first: ``<lora:name:weight>``, ``AND``, prompt editing
``[from:to:when]`` with alternation ``[a|b]``, then emphasis and ``BREAK``.
Composition by ``AND``: Liu et al. 2022, "Compositional Visual Generation with Composable
Diffusion Models".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sd_cloud.errors import BadRequest

ROUND = 1.1
SQUARE = 1 / 1.1


# --- extra networks -----------------------------------------------------------------------------

NETWORK = re.compile(r"<(\w+):([^>]+)>")
LIMIT_NETWORK_NUMBER = 1000


@dataclass(frozen=True)
class NetworkCall:
    """One ``<kind:a:b:name=c>``: what stands between the colons."""

    kind: str
    positional: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()

    def number(self, text: str) -> float:
        """One of the numbers in it. Raises BadRequest for what is none, and for one beyond all use."""
        call = f"<{self.kind}:{self.positional[0] if self.positional else ''}:…>"
        try:
            number = float(text)
        except ValueError as error:
            raise BadRequest(f"{call} has {text!r} where a number belongs", field="prompt") from error
        if not abs(number) <= LIMIT_NETWORK_NUMBER:  # also where it is nan
            limit = f"{-LIMIT_NETWORK_NUMBER} to {LIMIT_NETWORK_NUMBER}"
            raise BadRequest(f"{call} has {text!r} where {limit} is expected", field="prompt")
        return number


def split_networks(prompt: str) -> tuple[str, tuple[NetworkCall, ...]]:
    """The prompt without its ``<…>`` calls, and the calls in order."""
    calls = []
    end = prompt.rfind(">") + 1  # no call begins after it
    for kind, arguments in NETWORK.findall(prompt[:end]):
        parts = arguments.split(":")
        named = tuple((key, value) for key, _, value in (part.partition("=") for part in parts) if "=" in _)
        positional = tuple(part for part in parts if "=" not in part)
        calls.append(NetworkCall(kind, positional, named))
    return NETWORK.sub("", prompt[:end]) + prompt[end:], tuple(calls)


# --- AND ----------------------------------------------------------------------------------------

AND = re.compile(r"\bAND\b")
AND_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


def split_and(prompt: str) -> list[tuple[str, float]]:
    """The parts between ``AND`` with their weights (1 where none is written)."""
    found = []
    for part in AND.split(prompt):
        text, colon, weight = part.rpartition(":")
        weight = weight.strip()
        if colon and AND_WEIGHT.fullmatch(weight):
            found.append((text.rstrip(), float(weight)))
        else:
            found.append((part.rstrip(), 1.0))
    return found


# --- prompt editing and alternation -------------------------------------------------------------

NUMBER = re.compile(r"\s*([+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)\s*\]")
PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")


@dataclass(frozen=True)
class Edit:
    """``[before:after:when]``; ``when`` is a step number, or with a point a share of all steps."""

    before: Sequence[Node]
    after: Sequence[Node]
    when: str


@dataclass(frozen=True)
class Alternate:
    """``[a|b|c]``: one after the other, a step each."""

    options: tuple[Sequence[Node], ...]


Node = str | Edit | Alternate


class _NoGroup(Exception):
    """What begins here is no complete group; its bracket is an ordinary character."""


class _Unreadable(Exception):
    """The prompt holds something outside the grammar: it is taken word for word."""


@dataclass
class _Reader:
    text: str
    failed_at: set[int] = field(default_factory=set)

    def top(self) -> list[Node]:
        nodes: list[Node] = []
        at = 0
        while at < len(self.text):
            if self.text[at] in "[(":
                try:
                    group, end = self.group(at)
                    if not (isinstance(group[0], Edit) and self.strays(end) == 2):
                        nodes.extend(group)
                        at = end
                        continue
                except _NoGroup:
                    pass
            if self.text[at] in "[]():":
                nodes.append(self.text[at])
                at += 1
                continue
            plain = PLAIN.match(self.text, at)
            if plain is None:
                raise _Unreadable
            nodes.append(plain[0])
            at = plain.end()
        return nodes

    def strays(self, at: int) -> int:
        """How many brackets and colons that belong to no group follow one another from here.

        The webui's parser resolves its ambiguity so that an edit before exactly two of them is
        taken word for word.
        """
        start = at
        while self.at(at) and self.at(at) in "[]():":
            if self.at(at) in "[(":
                try:
                    self.group(at)
                    break
                except _NoGroup:
                    pass
            at += 1
        return at - start

    def within(self, at: int) -> tuple[list[Node], int]:
        """A run of text and whole groups; stops before a bracket, colon or bar of the outer group."""
        nodes: list[Node] = []
        while at < len(self.text):
            if self.text[at] in "[(":
                group, at = self.group(at)
                nodes.extend(group)
                continue
            plain = PLAIN.match(self.text, at)
            if plain is None:
                break
            nodes.append(plain[0])
            at = plain.end()
        return nodes, at

    def group(self, at: int) -> tuple[list[Node], int]:
        if at in self.failed_at:
            raise _NoGroup
        try:
            return self.round(at) if self.text[at] == "(" else self.square(at)
        except _NoGroup:
            self.failed_at.add(at)
            raise

    def round(self, at: int) -> tuple[list[Node], int]:
        inner, end = self.within(at + 1)
        found: list[Node] = ["(", *inner]
        if self.at(end) == ":":
            weight, end = self.within(end + 1)
            found += [":", *weight]
        if self.at(end) != ")":
            raise _NoGroup
        return [*found, ")"], end + 1

    def square(self, at: int) -> tuple[list[Node], int]:
        first, end = self.within(at + 1)
        mark = self.at(end)
        if mark == "]":
            return ["[", *first, "]"], end + 1
        if mark == "|":
            return self.bars(first, end)
        if mark != ":":
            raise _NoGroup
        number = NUMBER.match(self.text, end + 1)
        if number:
            return [Edit((), first, number[1])], number.end()
        second, end = self.within(end + 1)
        number = NUMBER.match(self.text, end + 1) if self.at(end) == ":" else None
        if number is None:
            raise _NoGroup
        return [Edit(first, second, number[1])], number.end()

    def bars(self, first: Sequence[Node], end: int) -> tuple[list[Node], int]:
        options = [first]
        while self.at(end) == "|":
            option, end = self.within(end + 1)
            options.append(option)
        if self.at(end) != "]":
            raise _NoGroup
        return [Alternate(tuple(options))], end + 1

    def at(self, place: int) -> str:
        return self.text[place : place + 1]


@dataclass(frozen=True)
class Timeline:
    """How numbers in ``[a:b:when]`` become steps.

    ``first_steps``/``hires_steps``: steps of the two passes; ``hires_steps`` is None in the
    first. In the hires pass whole numbers count on from the first pass and shares from 1.0.
    ``old``: the webui's ``use_old_scheduling``.
    """

    first_steps: int
    hires_steps: int | None = None
    old: bool = False

    @property
    def steps(self) -> int:
        return self.first_steps if self.hires_steps is None or self.old else self.hires_steps

    def step_of(self, when: str) -> int:
        value = float(when)
        second_pass = self.hires_steps is not None and not self.old
        if self.old:
            value = value * self.steps if value < 1 else value
        elif "." in when:
            value = (value - (1.0 if second_pass else 0.0)) * self.steps
        else:
            value = value - (self.first_steps if second_pass else 0)
        return min(self.steps, int(value))


def schedule_prompt(prompt: str, timeline: Timeline) -> list[tuple[int, str]]:
    """Which text holds up to which step (inclusive, counted from 1), in order.

    >>> schedule_prompt("a [b:c:0.5]", Timeline(10))
    [(5, 'a b'), (10, 'a c')]
    """
    try:
        nodes = _Reader(prompt).top()
    except (_Unreadable, RecursionError):
        return [(timeline.steps, prompt)]
    ends = sorted({timeline.steps, *_changes(nodes, timeline)})
    return [(end, "".join(_at_step(nodes, end, timeline))) for end in ends]


def _changes(nodes: Sequence[Node], timeline: Timeline) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, Edit):
            step = timeline.step_of(node.when)
            if step >= 1:
                yield step
            yield from _changes(node.before, timeline)
            yield from _changes(node.after, timeline)
        elif isinstance(node, Alternate):
            yield from range(1, timeline.steps + 1)
            for option in node.options:
                yield from _changes(option, timeline)


def _at_step(nodes: Sequence[Node], step: int, timeline: Timeline) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Edit):
            chosen = node.before if step <= timeline.step_of(node.when) else node.after
            yield from _at_step(chosen, step, timeline)
        else:
            yield from _at_step(node.options[(step - 1) % len(node.options)], step, timeline)


# --- emphasis and BREAK -------------------------------------------------------------------------

EMPHASIS = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b")


@dataclass
class Span:
    """Text with one weight; ``is_break`` marks where a new chunk begins."""

    text: str
    weight: float = 1.0
    is_break: bool = False


def parse_emphasis(prompt: str) -> list[Span]:
    """Text in spans of equal weight.

    >>> [(s.text, s.weight) for s in parse_emphasis("a (b:1.5) [c]")]
    [('a ', 1.0), ('b', 1.5), (' ', 1.0), ('c', 0.9090909090909091)]
    """
    spans: list[Span] = []
    rounds: list[int] = []
    squares: list[int] = []

    def weigh(start: int, factor: float) -> None:
        for span in spans[start:]:
            span.weight *= factor

    for found in EMPHASIS.finditer(prompt):
        text, weight = found[0], _number(found[1])
        if text.startswith("\\"):
            spans.append(Span(text[1:]))
        elif text == "(":
            rounds.append(len(spans))
        elif text == "[":
            squares.append(len(spans))
        elif weight is not None and rounds:
            weigh(rounds.pop(), weight)
        elif text == ")" and rounds:
            weigh(rounds.pop(), ROUND)
        elif text == "]" and squares:
            weigh(squares.pop(), SQUARE)
        else:
            first, *others = BREAK.split(text)
            spans.append(Span(first.rstrip() if others else first))
            for number, part in enumerate(others, 1):  # the spaces around a BREAK are its own
                spans.append(Span("BREAK", -1.0, True))
                spans.append(Span(part.strip() if number < len(others) else part.lstrip()))
    for start in rounds:
        weigh(start, ROUND)
    for start in squares:
        weigh(start, SQUARE)
    return _joined(spans) or [Span("")]


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:  # "1.2.3" has the letters of a number only
        return None


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].weight == span.weight:
            joined[-1].text += span.text
        else:
            joined.append(Span(span.text, span.weight))
    for span in joined:
        # A BREAK inside weighted brackets has its weight changed, and is then an ordinary word.
        span.is_break = span.text == "BREAK" and span.weight == -1.0
    return joined


# --- comments and styles ------------------------------------------------------------------------

COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
COMMENT_REST = re.compile(r"#[^\n]*(\n|$)")


def without_comments(prompt: str) -> str:
    """The prompt without what stands between ``#`` and the end of its line."""
    return COMMENT_REST.sub("\n", COMMENT_LINE.sub("\n", prompt))
