"""The prompt grammar and the cutting into chunks; no model and no torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from sd_cloud.engines.diffusion.prompt_chunks import CHUNK_TOKENS, EMPTY, chunks_of, one_chunk
from sd_cloud.engines.diffusion.prompt_grammar import (
    Timeline,
    parse_emphasis,
    schedule_prompt,
    split_and,
    split_networks,
    without_comments,
)
from sd_cloud.engines.diffusion.tokenizer import END, START, clip_tokenizer
from sd_cloud.errors import BadRequest

TEN = Timeline(10)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("plain", [(10, "plain")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [b::3] c", [(3, "a b c"), (10, "a  c")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:0] c", [(10, "a b c")]),
        ("a [b:99] c", [(10, "a  c")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
    ],
)
def test_editing_changes_the_prompt_at_its_step(prompt: str, wanted: list[tuple[int, str]]) -> None:
    assert schedule_prompt(prompt, TEN) == wanted


def test_alternation_takes_its_options_in_turn() -> None:
    found = dict(schedule_prompt("[fe||x]male", TEN))
    assert [found[step] for step in range(1, 5)] == ["female", "male", "xmale", "female"]
    assert len(found) == 10


def test_editing_within_alternation_changes_the_option() -> None:
    found = dict(schedule_prompt("[a[b:5]|c]", TEN))
    assert (found[3], found[4], found[7], found[8]) == ("a", "c", "ab", "c")


def test_in_the_second_pass_numbers_count_on_from_the_first() -> None:
    second = Timeline(10, 8)
    assert schedule_prompt("[a:b:0.5]", second) == [(8, "b")]
    assert schedule_prompt("[a:b:1.5]", second) == [(4, "a"), (8, "b")]
    assert schedule_prompt("[a:b:12]", second) == [(2, "a"), (8, "b")]


def test_the_old_timeline_takes_numbers_below_one_as_shares() -> None:
    assert schedule_prompt("[a:b:1.5]", Timeline(10, None, old=True))[0] == (1, "a")
    assert schedule_prompt("[a:b:0.5]", Timeline(10, 8, old=True)) == [(5, "a"), (10, "b")]


def test_a_prompt_of_a_thousand_brackets_is_read_in_a_moment() -> None:
    assert schedule_prompt("(" * 500 + "a" + "[" * 500, TEN)[0][0] == 10


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("normal", [("normal", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a:1.5)", [("a", 1.5)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("", [("", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
    ],
)
def test_brackets_weigh_what_is_in_them(prompt: str, wanted: list[tuple[str, float]]) -> None:
    found = [(span.text, pytest.approx(span.weight)) for span in parse_emphasis(prompt)]
    assert found == wanted


def test_break_is_a_mark_of_its_own() -> None:
    assert [(span.text, span.is_break) for span in parse_emphasis("a BREAK b")] == [
        ("a", False),
        ("BREAK", True),
        ("b", False),
    ]


def test_and_splits_with_weights_at_the_end_of_each_part() -> None:
    assert split_and("a cat :1.2 AND a house AND b:-0.5") == [("a cat", 1.2), (" a house", 1.0), (" b", -0.5)]
    assert split_and("SAND ANDES") == [("SAND ANDES", 1.0)]


def test_networks_are_taken_out_of_the_prompt_in_order() -> None:
    text, calls = split_networks("a <lora:x:0.5:0.7> b<lora:y:te=1:unet=0.2>")
    assert text == "a  b"
    assert [(call.kind, call.positional, dict(call.named)) for call in calls] == [
        ("lora", ("x", "0.5", "0.7"), {}),
        ("lora", ("y",), {"te": "1", "unet": "0.2"}),
    ]


def test_comments_go_to_the_end_of_their_line() -> None:
    assert without_comments("a # b\nc") == "a \nc"
    assert without_comments("# all\na") == "\na"


# --- tokens and chunks ----------------------------------------------------------------------------


def test_text_is_made_plain_before_it_is_split() -> None:
    tokenizer = clip_tokenizer()
    assert tokenizer.encode("A  “Cat”，\n dog") == tokenizer.encode('a "cat", dog')
    assert tokenizer.encode("<a &amp; b", unescape_html=True) == tokenizer.encode("<a & b")
    assert tokenizer.encode("<a &amp; b") != tokenizer.encode("<a & b")
    assert tokenizer.encode("photo of a cat") == [1125, 539, 320, 2368]


@dataclass(frozen=True)
class Word:
    vectors: int
    name: str = "word"


def cut(text: str, *, words: dict[int, Word] | None = None, backtrack: int = 20, emphasis: bool = True):
    def lookup(tokens, position):
        word = (words or {}).get(tokens[position])
        return (word, 1) if word else None

    tokenizer = clip_tokenizer()
    return chunks_of(
        text,
        tokenizer.encode,
        lookup=lookup,
        comma=tokenizer.comma,
        comma_backtrack=backtrack,
        emphasis=emphasis,
    )


def test_a_chunk_has_77_tokens_and_an_empty_prompt_one_chunk() -> None:
    (chunk,) = cut("")
    assert chunk == EMPTY
    assert chunk.tokens == [START, *[END] * 76]


def test_a_long_prompt_is_cut_into_chunks_of_75() -> None:
    first, second = cut("cat " * 80)
    assert len(first.tokens) == len(second.tokens) == 77
    assert first.tokens.count(2368) == CHUNK_TOKENS
    assert second.tokens.count(2368) == 5


def test_what_follows_the_last_comma_moves_to_the_next_chunk() -> None:
    text = "cat " * 70 + ", " + "dog " * 8
    first, second = cut(text)
    assert first.tokens.count(1929) == 0
    assert second.tokens.count(1929) == 8
    kept, _ = cut(text, backtrack=0)
    assert kept.tokens.count(1929) == 4


def test_break_closes_a_chunk() -> None:
    assert [chunk.tokens[1] for chunk in cut("cat BREAK dog")] == [2368, 1929]


def test_weights_stand_beside_their_tokens() -> None:
    (chunk,) = cut("a (cat:1.5)")
    assert chunk.weights[:4] == [1.0, 1.0, 1.5, 1.0]
    (chunk,) = cut("(cat:1.5)", emphasis=False)
    assert set(chunk.weights) == {1.0}


def test_an_embedding_takes_as_many_places_as_it_has_vectors() -> None:
    (chunk,) = cut("a cat dog", words={2368: Word(3)})
    assert chunk.tokens[:6] == [START, 320, 0, 0, 0, 1929]
    assert [(place.offset, place.embedding) for place in chunk.places] == [(1, Word(3))]


def test_an_embedding_that_does_not_fit_begins_the_next_chunk() -> None:
    first, second = cut("dog " * 74 + "cat", words={2368: Word(3)})
    assert not first.places
    assert second.places[0].offset == 0


def test_what_a_long_prompt_takes_grows_no_faster_than_it() -> None:
    """None of these ends in the time of a test where each place looks at all that follow it."""
    many = 60_000
    assert split_and(" " * many + "a") == [(" " * many + "a", 1.0)]
    assert split_and("a" + "\n" * many + ":2" + " " * many) == [("a", 2.0)]
    assert [span.text for span in parse_emphasis("a" + " " * many + "BREAK" + "\n" * many)] == [
        "a",
        "BREAK",
        "",
    ]
    assert split_networks("<a:" * many) == ("<a:" * many, ())
    letters = "".join(random.Random(1).choices("etaoinshrdlu", k=many))
    assert len(clip_tokenizer().encode(letters)) > many / 8


def test_a_word_is_merged_by_rank_and_each_pair_from_left_to_right() -> None:
    assert clip_tokenizer().encode("aaaaaaaaa") == [23126, 320]
    assert clip_tokenizer().encode("thethethe 猫猫 rhythmic") == [
        599,
        599,
        518,
        163,
        234,
        104,
        163,
        234,
        360,
        46386,
    ]


def test_an_embedding_that_no_chunk_can_hold_is_refused_by_its_name() -> None:
    (chunk,) = cut("cat", words={2368: Word(75)})
    assert len(chunk.tokens) == 77
    with pytest.raises(BadRequest, match=r"^prompt: embedding 'word' has 76 vectors; a chunk holds 75"):
        cut("cat", words={2368: Word(76)})


def test_the_first_emphasis_weighs_token_by_token_and_cuts_at_75() -> None:
    tokenizer = clip_tokenizer()
    chunk = one_chunk(
        "a (cat) [dog", tokenizer.encode, lookup=lambda tokens, at: None, gains=tokenizer.bracket_gains
    )[0]
    assert chunk.weights[1:5] == pytest.approx([1.0, 1.1, 1 / 1.1, 1.0])
    long = one_chunk("a " * 100, tokenizer.encode, lookup=lambda tokens, at: None, gains={})
    assert len(long) == 1 and len(long[0].tokens) == 77
