"""Places where a drawn text could join a suffix, against a plain definition of them."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from afterword.completion.choice import Presentation
from afterword.completion.joints import (
    Candidate,
    Joint,
    Seam,
    joints,
    log_sum,
    make_seam,
    promising,
    trial,
)
from afterword.completion.lengths import SHARE, LengthCosts
from afterword.completion.openings import openings
from afterword.completion.prompt_text import VocabView
from afterword.completion.search import best_of
from afterword.completion.units import Unit
from afterword.core.job import Sampled, ScoredPrompt
from afterword.engine.toy import ToyTokenizer

TOKENIZER = ToyTokenizer(infill=False)
VOCAB = VocabView(TOKENIZER.pieces, TOKENIZER.end_ids)
TEXT = st.text(st.sampled_from("ab \n.é🙂the"), max_size=12)
IDS = st.lists(st.integers(0, len(TOKENIZER.pieces) - 8), max_size=10)


def seam(prompt: str, suffix: str) -> Seam:
    return make_seam(TOKENIZER.encode(prompt), TOKENIZER.encode(suffix), TOKENIZER, VOCAB)


def first_of(found: Sequence[Joint], costs: LengthCosts, unit: Unit) -> Sequence[Joint]:
    """The most promising middles, if all can be used."""
    return next((listed for listed in promising(found, costs, unit) if listed), [])


def drawn(ids: Sequence[int]) -> Candidate:
    """A candidate whose tokens have log-probability -1, and a suffix behind each -2."""
    found = Candidate()
    for token in ids:
        ids_of_row = array("i", (10, token))
        row = array("d", (-2.0, -1.0))
        found.add(Sampled(0, 0, array("i", (token,)), array("d", (-1.0,)), ids_of_row, row))
    return found


@given(
    IDS,
    TEXT,
    st.lists(st.sampled_from(["a", "th", "\n", "  ", " a"]), max_size=2),
    st.sampled_from(["", " ", "  "]),
)
@example([256], "", ["  "], " ")
def test_middles_are_beginnings_of_the_text_before_a_stop_is_whole(
    ids: list[int], suffix: str, stops: list[str], begun: str
) -> None:
    text = begun + b"".join(TOKENIZER.pieces[token] for token in ids).decode(errors="replace")
    shown = Presentation(stops=tuple(stops))
    found = joints(drawn([*ids, 1]), seam("x", suffix), VOCAB, shown, len(ids), begun=begun)
    for joint in found:
        assert text.startswith(joint.text) or text.lstrip("\n").startswith(joint.text)
        assert not any(stop in joint.text for stop in stops)


@given(IDS, TEXT)
def test_every_boundary_of_tokens_between_characters_is_a_place(
    ids: list[int], suffix: str
) -> None:
    at = seam("x", suffix)
    found = joints(drawn([*ids, 1]), at, VOCAB, Presentation(), len(ids))
    texts = {joint.text for joint in found}
    raw = b""
    for token in [*ids, None]:
        # Inside a character there is no place.
        with contextlib.suppress(UnicodeDecodeError):
            assert raw.decode() in texts
        raw += b"" if token is None else TOKENIZER.pieces[token]


def test_a_place_inside_a_token_that_agrees_with_the_suffix() -> None:
    ids = TOKENIZER.encode("a. ")
    assert TOKENIZER.pieces[ids[-1]] == b". "
    inside = joints(drawn(ids), seam("x", " the"), VOCAB, Presentation(), len(ids))
    assert "a." in {joint.text for joint in inside}
    apart = joints(drawn(ids), seam("x", "the"), VOCAB, Presentation(), len(ids))
    assert "a." not in {joint.text for joint in apart}


def test_a_middle_stands_without_the_empty_lines_before_it_too() -> None:
    ids = TOKENIZER.encode("\n\nab")
    found = joints(drawn([*ids, 1]), seam("x", "y"), VOCAB, Presentation(), len(ids))
    promise = {joint.text: joint.promise for joint in found}
    assert {"\n\nab", "ab"} <= promise.keys()
    # The token of the lines costs 1.
    assert promise["ab"] == promise["\n\nab"] + 1
    # Without the lines it would have fewer tokens than it must.
    least = Presentation(min_tokens=len(ids))
    found = joints(drawn([*ids, 1]), seam("x", "y"), VOCAB, least, len(ids))
    assert [joint.text for joint in found] == ["\n\nab"]


def test_end_tokens_and_limits_end_a_candidate() -> None:
    (end,) = TOKENIZER.encode("<|endoftext|>")
    ids = TOKENIZER.encode("ab")
    ended = joints(drawn([*ids, end, *ids]), seam("x", "y"), VOCAB, Presentation(), 9)
    assert [(joint.text, joint.at_limit) for joint in ended] == [
        ("", False), ("a", False), ("ab", False)
    ]  # fmt: skip
    limited = joints(drawn([*ids, *ids]), seam("x", "y"), VOCAB, Presentation(), 1)
    assert [(joint.text, joint.at_limit) for joint in limited] == [("", False), ("a", True)]
    least = joints(drawn([*ids, end]), seam("x", "y"), VOCAB, Presentation(min_tokens=2), 9)
    assert [joint.text for joint in least] == ["ab"]


def test_a_middle_begins_with_what_its_opening_begun() -> None:
    found = joints(drawn([97, 1]), seam("x\n", "\ny"), VOCAB, Presentation(), 1, begun="  ")
    assert [joint.text for joint in found] == ["  ", "  a"]
    stop = Presentation(stops=(" ",))
    assert joints(drawn([97, 1]), seam("x\n", "\ny"), VOCAB, stop, 1, begun="  ") == []
    across = Presentation(stops=(" a",))
    found = joints(drawn([97, 1]), seam("x\n", "\ny"), VOCAB, across, 1, begun="  ")
    assert [joint.text for joint in found] == ["  ", " "]


@given(TEXT, TEXT, TEXT)
def test_a_trial_is_prompt_middle_and_suffix_as_one_text(
    prompt: str, middle: str, suffix: str
) -> None:
    at = seam(f"x{prompt}", suffix)
    made = trial(Joint(middle, 0.0), at, TOKENIZER)
    text = b"".join(TOKENIZER.pieces[token] for token in made.ids).decode()
    assert text == f"x{prompt}{middle}{suffix}"
    before = b"".join(TOKENIZER.pieces[token] for token in made.ids[: made.split])
    assert f"x{prompt}{middle}".encode().startswith(before)
    assert made.start <= made.split <= len(made.ids)
    assert made.suffix_tokens == len(made.ids) - made.split
    values = array("d", [-1.0] * (len(made.ids) - 1))
    scored = ScoredPrompt(values, array("i"), array("d"))
    assert made.score(scored, LengthCosts(())) == -(len(made.ids) - made.start)
    costs = LengthCosts([[-1.0 / SHARE] * 99])
    behind = len(made.ids) - made.start - made.tokens
    assert made.score(scored, costs) == pytest.approx(-behind)


@given(st.lists(st.tuples(TEXT, st.floats(-50, 0)), max_size=8), st.integers(1, 5))
def test_the_most_promising_of_each_text(listed: list[tuple[str, float]], most: int) -> None:
    found = first_of([Joint(text, promise) for text, promise in listed], LengthCosts(()), "part")[
        :most
    ]
    best = {text: max(p for t, p in listed if t == text) for text, _ in listed}
    visible = {text: p for text, p in best.items() if text.strip()} or best
    assert [joint.promise for joint in found] == sorted(visible.values(), reverse=True)[:most]
    assert len({joint.text for joint in found}) == len(found)


def test_where_sentences_are_missing_middles_are_whole_ones() -> None:
    found = [Joint(" In", -1.0), Joint(" He sat.", -9.0), Joint(" .", -2.0), Joint(" Who?", -8.0)]
    ordered = first_of(found, LengthCosts(()), "sentences")
    assert [joint.text for joint in ordered] == [" Who?", " He sat."]
    # A text that goes on with the sentence before it is no whole one.
    rest = Joint(" in it.", -1.0)
    assert first_of([rest, *found], LengthCosts(()), "sentences")[0] == Joint(" Who?", -8.0)
    assert first_of(found[:1], LengthCosts(()), "sentences") == found[:1]
    assert first_of(found, LengthCosts(()), "part")[0] == found[0]


def test_a_long_middle_is_compared_with_the_likeliest_of_its_length() -> None:
    costs = LengthCosts([[-4.0, -4.0], [-2.0, -8.0, -2.0], []])
    assert [costs.of(n) for n in range(5)] == pytest.approx(
        [0.0, -2.0 * SHARE, -8.0 * SHARE, -12.0 * SHARE, -16.0 * SHARE]
    )
    short, long = Joint("a", -3.0, 1), Joint("abc", -10.0, 3)
    assert first_of([short, long], LengthCosts(()), "part")[0] == short
    assert first_of([short, long], costs, "part")[0] == long


def test_a_middle_does_not_repeat_the_suffix() -> None:
    suffix = " the theatre of the sea"
    ids = TOKENIZER.encode(f"ab{suffix} and")
    found = joints(drawn(ids), seam("x", suffix), VOCAB, Presentation(), len(ids))
    texts = {joint.text for joint in found}
    assert {"ab", "ab the"} <= texts
    assert not any("the theatre of t" in text for text in texts)


def test_the_best_come_first_and_repeat_if_there_are_too_few() -> None:
    a, b, c = Joint("a", 0.0), Joint("b", 0.0), Joint("c", 0.0)
    assert best_of([(a, -3.0), (b, -1.0), (c, -2.0)], 2) == [b, c]
    assert best_of([(a, -1.0), (b, -1.0)], 1) == [a]
    assert best_of([(a, -2.0), (b, -1.0)], 5) == [b, a, b, a, b]


def test_sums_of_probabilities() -> None:
    assert log_sum([math.log(0.25), math.log(0.5)]) == pytest.approx(math.log(0.75))
    assert log_sum([]) == -math.inf
    assert log_sum([-1000.0, -1000.0]) == pytest.approx(-1000 + math.log(2))


def test_candidates_continue_the_prompt_alone_and_behind_the_suffix() -> None:
    prompt, suffix = "if a:\n", "\n    b\n"
    ids, after = TOKENIZER.encode(prompt), TOKENIZER.encode(suffix)
    found = openings(ids, suffix, after, TOKENIZER, VOCAB, most_tokens=100)
    texts = [b"".join(TOKENIZER.pieces[token] for token in one.ids).decode() for one in found]
    behind = "    b\n\n"
    assert [one.begun for one in found] == ["", "    ", "", "    "]
    assert texts == [prompt, f"{prompt}    ", f"{behind}{prompt}", f"{behind}{prompt}    "]
    ids_of = TOKENIZER.encode
    words = openings(ids_of("a b"), " c", ids_of(" c"), TOKENIZER, VOCAB, most_tokens=100)
    assert [one.begun for one in words] == ["", ""]
    assert len(openings(ids, suffix, after, TOKENIZER, VOCAB, most_tokens=len(ids))) == 1
