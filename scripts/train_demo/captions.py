"""Words for pictures: the wordings trained on, and those held out for the retrieval score."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

from .concepts import ALIASES, COLOURED, HELD_OUT_PAIRS, LABELS, MAIN_STYLE
from .data import Entry

TRAIN_WORDINGS: tuple[str, ...] = (
    "{noun}",
    "{a} {noun}",
    "{a} {noun}",
    "{noun} emoji",
    "a picture of {a} {noun}",
    "a drawing of {a} {noun}",
    "an icon of {a} {noun}",
    "{a} {noun} on a white background",
    "{a} cute {noun}",
    "{a} {noun}, clipart",
    "{noun}, simple, flat colours",
    "{a} {noun}, best quality",
    "this is {a} {noun}",
)
STYLED_WORDINGS: tuple[str, ...] = (
    "{a} {noun}, {style} style",
    "{noun}, {style} style",
    "{style} style {noun}",
    "{style} {noun}",
    "{a} {noun}, {style}",
)
HELD_OUT_WORDINGS: tuple[str, ...] = (
    "an illustration of {a} {noun}",
    "one {noun}, please",
    "a small sticker showing {a} {noun}",
    "{a} beautiful {noun}, digital art",
    "a photo of the {noun}",
    "draw me {a} {noun}",
    "{noun}, detailed, vivid",
    "{a} lovely little {noun}",
)


# What a caption leaves open the seed decides: a car of any colour, now and then in another style.
COLOUR_UNSAID = 0.1
STYLE_UNSAID = 0.2


def article(noun: str) -> str:
    return "an" if noun[0].lower() in "aeiou" else "a"


def nouns(label: str) -> tuple[str, ...]:
    """The names a concept goes by, its CLDR label first."""
    return (label, *ALIASES.get(label, ()))


@cache
def own_tags(label: str, tags: tuple[str, ...]) -> tuple[str, ...]:
    """Keywords that belong to the concept alone: no other concept's name holds them."""
    words = Counter(word for other in LABELS for name in nouns(other) for word in name.lower().split())
    return tuple(tag for tag in tags if tag.lower() not in words and " " not in tag)


def fill(wording: str, noun: str, style: str = "") -> str:
    return wording.format(noun=noun, a=article(noun), style=style)


def caption(entry: Entry, rng: random.Random) -> str:
    """One of the many ways to say what the picture shows."""
    if entry.colour:
        noun = COLOURED[entry.concept]
        if rng.random() > COLOUR_UNSAID:
            noun = f"{entry.colour} {noun}"
    else:
        names = nouns(entry.concept)
        noun = names[0] if rng.random() < 0.6 else rng.choice(names)
    if rng.random() < (0.3 if entry.style == MAIN_STYLE else 1 - STYLE_UNSAID):
        text = fill(rng.choice(STYLED_WORDINGS), noun, entry.style)
    else:
        text = fill(rng.choice(TRAIN_WORDINGS), noun)
    tags = own_tags(entry.concept, entry.tags)
    if tags and not entry.colour and rng.random() < 0.1:
        text = f"{text}, {', '.join(rng.sample(tags, min(len(tags), 2)))}"
    return text


def held_out_captions(count: int, seed: int = 7) -> list[tuple[str, str]]:
    """(caption, concept) pairs in wordings that training never saw."""
    rng = random.Random(seed)
    labels = list(LABELS)
    rng.shuffle(labels)
    chosen = [labels[index % len(labels)] for index in range(count)]
    return [(fill(rng.choice(HELD_OUT_WORDINGS), rng.choice(nouns(label))), label) for label in chosen]


def held_out_colours() -> list[tuple[str, str, str]]:
    """(caption, concept, colour): colour and thing were each seen, but never together."""
    by_noun = {noun: label for label, noun in COLOURED.items()}
    return [
        (f"{article(colour)} {colour} {noun}", by_noun[noun], colour)
        for colour, noun in sorted(HELD_OUT_PAIRS)
    ]
