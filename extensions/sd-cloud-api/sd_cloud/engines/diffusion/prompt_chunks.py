"""Prompts as chunks of 75 weighted tokens, with the places of textual inversions in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sd_cloud.engines.diffusion.prompt_grammar import Span, parse_emphasis
from sd_cloud.engines.diffusion.tokenizer import END, START
from sd_cloud.errors import BadRequest

CHUNK_TOKENS = 75


class Found(Protocol):
    """A textual inversion as chunks see it: how many tokens it takes the place of."""

    @property
    def name(self) -> str: ...

    @property
    def vectors(self) -> int: ...


@dataclass(frozen=True)
class Place:
    offset: int  # in the chunk, not counting the start token
    embedding: Found


@dataclass
class Chunk:
    """77 tokens once closed: start, 75 of the prompt, end."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def closed(self) -> Chunk:
        missing = CHUNK_TOKENS - len(self.tokens)
        return Chunk(
            [START, *self.tokens, *[END] * missing, END],
            [1.0, *self.weights, *[1.0] * missing, 1.0],
            self.places,
        )


EMPTY = Chunk().closed()

Lookup = Callable[[Sequence[int], int], tuple[Found, int] | None]
"""The embedding that begins at a position in the tokens, and how many tokens its name takes."""


def chunks_of(
    text: str,
    tokenize: Callable[[str], list[int]],
    *,
    lookup: Lookup,
    comma: int | None,
    comma_backtrack: int,
    emphasis: bool,
) -> list[Chunk]:
    """Cut a prompt into chunks.

    ``comma_backtrack``: when a chunk is full, up to this many tokens after its last comma move to
    the next one. ``emphasis=False`` takes brackets as ordinary characters.
    """
    cutter = _Cutter(lookup, comma, comma_backtrack)
    for span in parse_emphasis(text) if emphasis else [Span(text)]:
        if span.is_break:
            cutter.close()
        else:
            cutter.add(tokenize(span.text), span.weight)
    return cutter.finish()


def one_chunk(
    text: str, tokenize: Callable[[str], list[int]], *, lookup: Lookup, gains: Mapping[int, float]
) -> list[Chunk]:
    """``use_old_emphasis_implementation``: brackets weigh token by token, what is beyond 75 is cut off.

    ``gains``: by how much a token with brackets in it changes the weight of all that follow it.
    """
    tokens, chunk, weight, position = tokenize(text), Chunk(), 1.0, 0
    while position < len(tokens):
        token = tokens[position]
        found = lookup(tokens, position)
        if token in gains:
            weight *= gains[token]
            position += 1
        elif found is None:
            chunk.tokens.append(token)
            chunk.weights.append(weight)
            position += 1
        else:
            embedding, length = found
            chunk.places.append(Place(len(chunk.tokens), embedding))
            chunk.tokens += [0] * embedding.vectors
            chunk.weights += [weight] * embedding.vectors
            position += length
    places = [place for place in chunk.places if place.offset < CHUNK_TOKENS]
    return [Chunk(chunk.tokens[:CHUNK_TOKENS], chunk.weights[:CHUNK_TOKENS], places).closed()]


class _Cutter:
    def __init__(self, lookup: Lookup, comma: int | None, comma_backtrack: int) -> None:
        self.lookup = lookup
        self.comma = comma
        self.backtrack = comma_backtrack
        self.done: list[Chunk] = []
        self.open = Chunk()
        self.last_comma = -1

    def add(self, tokens: Sequence[int], weight: float) -> None:
        position = 0
        while position < len(tokens):
            token = tokens[position]
            if token == self.comma:
                self.last_comma = len(self.open.tokens)
            elif self._just_after_comma():
                self._carry_over()
            if len(self.open.tokens) == CHUNK_TOKENS:
                self.close()
            found = self.lookup(tokens, position)
            if found is None:
                self.open.tokens.append(token)
                self.open.weights.append(weight)
                position += 1
                continue
            embedding, length = found
            if embedding.vectors > CHUNK_TOKENS:
                size = f"{embedding.vectors} vectors; a chunk holds {CHUNK_TOKENS}"
                raise BadRequest(f"embedding {embedding.name!r} has {size}", field="prompt")
            if len(self.open.tokens) + embedding.vectors > CHUNK_TOKENS:
                self.close()
            self.open.places.append(Place(len(self.open.tokens), embedding))
            self.open.tokens += [0] * embedding.vectors
            self.open.weights += [weight] * embedding.vectors
            position += length

    def _just_after_comma(self) -> bool:
        full = len(self.open.tokens) == CHUNK_TOKENS
        near = len(self.open.tokens) - self.last_comma <= self.backtrack
        return self.backtrack != 0 and full and self.last_comma != -1 and near

    def _carry_over(self) -> None:
        cut = self.last_comma + 1
        tokens, weights = self.open.tokens[cut:], self.open.weights[cut:]
        self.open.tokens, self.open.weights = self.open.tokens[:cut], self.open.weights[:cut]
        self.close()
        self.open.tokens, self.open.weights = tokens, weights

    def close(self) -> None:
        self.done.append(self.open.closed())
        self.open = Chunk()
        self.last_comma = -1

    def finish(self) -> list[Chunk]:
        if self.open.tokens or not self.done:
            self.close()
        return self.done
