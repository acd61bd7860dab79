"""CLIP's byte pair encoding, as both of its implementations split text.

Format and vocabulary: openai/CLIP, ``clip/simple_tokenizer.py`` (MIT); the merges in ``data/`` are
its ``bpe_simple_vocab_16e6``. OpenCLIP uses the same one and undoes HTML escapes first.
"""

from __future__ import annotations

import functools
import heapq
import html
from importlib import resources
from itertools import pairwise

import ftfy
import regex

START = 49406
END = 49407
VOCABULARY_SIZE = 49408
KNOWN_WORDS = 50_000
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
SPACES = regex.compile(r"\s+")


def _byte_letters() -> dict[int, str]:
    """A printable character for each byte, so that merges can be written down as text."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


class ClipTokenizer:
    """Text to token ids, without the start and end tokens and without a length limit."""

    def __init__(self) -> None:
        text = resources.files(__package__).joinpath("data/clip_merges.txt").read_text("utf-8")
        lines = (line.split() for line in text.splitlines()[1:])
        pairs = [(parts[0], parts[1]) for parts in lines if len(parts) == 2]
        self._letters = _byte_letters()
        letters = list(self._letters.values())
        words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in pairs]
        words += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {word: number for number, word in enumerate(words)}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._known: dict[str, list[int]] = {}

    @property
    def comma(self) -> int:
        return self.ids[",</w>"]

    @functools.cached_property
    def bracket_gains(self) -> dict[int, float]:
        """By how much each token with brackets in it changes the weight, in the webui's first emphasis."""
        gains = {}
        for word, number in self.ids.items():
            gain = 1.0
            for letter in word:
                gain = gain * 1.1 if letter in "(]" else gain / 1.1 if letter in ")[" else gain
            if gain != 1.0:
                gains[number] = gain
        return gains

    def encode(self, text: str, *, unescape_html: bool = False) -> list[int]:
        """Token ids of one text. Quotes, ligatures and full-width characters are made plain first."""
        text = ftfy.fix_text(text)
        if unescape_html:
            text = html.unescape(html.unescape(text))
        text = SPACES.sub(" ", text).strip().lower()
        found: list[int] = []
        for word in WORDS.findall(text):
            if word not in self._known:
                if len(self._known) > KNOWN_WORDS:
                    self._known.clear()
                self._known[word] = self._merge(word)
            found.extend(self._known[word])
        return found

    def _merge(self, word: str) -> list[int]:
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [self.ids[word]]
        parts = [self._letters[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        # Merged are the pairs in the order of their ranks, each from left to right. A part that went
        # into the one before it is empty; `before` and `after` lead to the neighbours that are left.
        last = len(parts)
        before, after = list(range(-1, last - 1)), list(range(1, last + 1))
        waiting = [(rank, i) for i, pair in enumerate(pairwise(parts)) if (rank := self._rank(*pair)) >= 0]
        heapq.heapify(waiting)
        while waiting:
            rank, i = heapq.heappop(waiting)
            j = after[i]
            if j == last or not parts[i] or self._rank(parts[i], parts[j]) != rank:
                continue
            parts[i], parts[j] = parts[i] + parts[j], ""
            after[i] = after[j]
            if after[i] < last:
                before[after[i]] = i
            for left in (before[i], i):
                right = after[left] if left >= 0 else last
                if right < last and (new := self._rank(parts[left], parts[right])) >= 0:
                    heapq.heappush(waiting, (new, left))
        return [self.ids[part] for part in parts if part]

    def _rank(self, left: str, right: str) -> int:
        return self._ranks.get((left, right), -1)


@functools.cache
def clip_tokenizer() -> ClipTokenizer:
    """The one tokenizer of this process (loading it takes tens of milliseconds)."""
    return ClipTokenizer()
