"""How answers show themselves: tints of the page, HTML that is safe, tables, plots."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

import afterword
from afterword import LLM, InvalidRequest, TextCompletion
from afterword.library import tints
from afterword.library.segments import TextSpan, segments
from afterword.library.token_names import visible

PAGE = Path(afterword.__file__).parent / "playground" / "files"
HOSTILE = "<script>alert(1)</script>\"'&\u202e\n"


class Reader(HTMLParser):
    """Collects tags, texts and tooltips."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text, self.titles = "", ""
        self.styles: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        assert set(given) <= {"class", "style", "title"}
        self.titles += given.get("title") or ""
        self.styles.append(given["style"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_tints_are_the_pages() -> None:
    steps = re.search(r"STEPS = \[(.*?)\]", (PAGE / "tint.js").read_text())
    assert steps is not None
    assert tuple(map(float, steps[1].split(","))) == tints.STEPS
    theme = (PAGE / "theme.css").read_text()
    light = theme.partition("@media")[0]
    for name, ours in (("tint", tints.TINTS), ("plot", tints.PLOTS)):
        theirs = [re.search(rf"--{name}-{i}: (#\w+)", light) for i in range(len(ours))]
        assert [found and found[1] for found in theirs] == list(ours)
    assert f"--ink: {tints.INK};" in light


@pytest.mark.parametrize(
    ("probability", "step"), [(1, 0), (0.8, 0), (0.79, 1), (0.0101, 6), (0.009, 7), (0, 7)]
)
def test_steps(probability: float, step: int) -> None:
    logprob = math.log(probability) if probability else -9999.0
    assert tints.step_of(logprob) == step


def test_names_of_tokens() -> None:
    assert visible("bytes:\\xe2\\x80") == "bytes:\\xe2\\x80"
    assert visible("a\n\\\x1b\u202e") == "a\\n\\\\\\x1b\\u202e"


def test_segments() -> None:
    # Two tokens share a character; an end token writes nothing; the text begins before the tokens.
    found = list(segments("ab🙂c", [1, 2, 2, 3, 4], [-1.0, -2.0, -3.0, None, -5.0]))
    assert found == [
        TextSpan("a", None, 0, 0),
        TextSpan("b", -1.0, 0, 1),
        TextSpan("🙂", -5.0, 1, 3),
        TextSpan("c", None, 3, 4),
    ]
    assert "".join(s.text for s in segments("abc", [10, 12], [0, 0], base=10)) == "abc"
    assert list(segments("ab", [], [])) == [TextSpan("ab", None, 0, 0)]
    assert list(segments("", [0], [-1.0])) == []


def test_a_completion_as_html(llm: LLM) -> None:
    answer = llm.complete(HOSTILE, max_tokens=8, temperature=0, logprobs=3, echo=True, n=2)
    shown = Reader(answer._repr_html_())
    assert shown.tags == {"div", "span"}
    for choice in answer.choices:
        assert choice.text in shown.text
    assert shown.text.count("<script>") == 2
    plain = Reader(llm.complete(HOSTILE, max_tokens=1, echo=True)._repr_html_())
    assert plain.tags == {"div"}
    assert HOSTILE in plain.text
    (score,) = llm.score(HOSTILE)
    page = Reader(score._repr_html_())
    assert page.text.startswith(HOSTILE)
    assert "bits per byte" in page.text
    first = tints.TINTS[tints.step_of(score.token_logprobs[0])]
    assert any(f"background:{first}" in style for style in page.styles)


def test_hostile_names_of_models_and_tokens(llm: LLM) -> None:
    answer = llm.complete("a", max_tokens=1, temperature=0, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    bad = msgspec.structs.replace(logprobs, tokens=[HOSTILE], top_logprobs=[{HOSTILE: -1.0}])
    choice = msgspec.structs.replace(answer.choices[0], logprobs=bad)
    shown = Reader(
        msgspec.structs.replace(answer, model=HOSTILE, choices=[choice])._repr_html_()
    )  # fmt: skip
    assert shown.tags <= {"div", "span"}
    assert HOSTILE in shown.text
    assert "<script>" in shown.titles


def test_tables(llm: LLM) -> None:
    answer = llm.complete(["a", "b"], max_tokens=3, temperature=0, logprobs=2)
    table = answer.to_pandas()
    logprobs = [choice.logprobs for choice in answer.choices]
    assert list(table["choice"]) == [0, 0, 0, 1, 1, 1]
    assert list(table["logprob"]) == [v for each in logprobs if each for v in each.token_logprobs]
    assert table["probability"].between(0, 1).all()
    bare = llm.complete(["a", "b"], max_tokens=3, temperature=0).to_pandas()
    assert list(bare.columns) == ["choice", "text", "finish_reason"]
    (score,) = llm.score("a b")
    assert list(score.to_pandas()["token_id"]) == list(score.token_ids)


def test_tables_without_rows_have_their_columns(llm: LLM) -> None:
    some, none = (llm.complete("a", max_tokens=n, logprobs=1).to_pandas() for n in (1, 0))
    assert (len(none), list(none.columns)) == (0, list(some.columns))
    some, none = (score.to_pandas() for score in llm.score(["a", ""]))
    assert (len(none), list(none.columns)) == (0, list(some.columns))


def test_dollars_are_no_formulas(llm: LLM) -> None:
    """Notebooks typeset what stands between two of them, unless the element has these classes."""
    answer = llm.complete("$5 and $6", max_tokens=1, echo=True, logprobs=0)
    for shown in (answer._repr_html_(), llm.score("$5 and $6")[0]._repr_html_()):
        boxes = re.findall(r"<div[^>]*>", shown)
        assert boxes
        assert all('class="tex2jax_ignore mathjax_ignore"' in box for box in boxes)


def test_a_plot(llm: LLM) -> None:
    answer = llm.complete("$x$ a", max_tokens=6, temperature=0, logprobs=1, echo=True, n=2)
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    figure = afterword.plot(answer, choice=1)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    wanted = [0 if v is None else math.exp(v) for v in logprobs.token_logprobs]
    assert heights == wanted
    assert len(axes.get_xticklabels()) == len(wanted)
    figure.canvas.draw()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert afterword.plot(llm.score("a b")[0]).axes
    assert afterword.plot(answer.choices[0]).axes
    with pytest.raises(InvalidRequest, match="ask with logprobs"):
        afterword.plot(llm.complete("a", max_tokens=1))
    with pytest.raises(InvalidRequest, match="expected 0 to 1, but got 2"):
        afterword.plot(answer, choice=2)
    nothing: Any = "a"
    with pytest.raises(InvalidRequest, match="complete\\(\\) or score\\(\\) returned, but got str"):
        afterword.plot(nothing)
    with pytest.raises(InvalidRequest, match="at most 2000 tokens"):
        afterword.plot(llm.score("a" * 2001, window=256, stride=255)[0])


@pytest.mark.parametrize("name", ["pandas", "matplotlib.figure"])
def test_extras_that_are_missing_say_how_to_get_them(
    llm: LLM, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: TextCompletion = llm.complete("a", max_tokens=1, logprobs=0)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install"):
        _ = answer.to_pandas() if name == "pandas" else afterword.plot(answer)
