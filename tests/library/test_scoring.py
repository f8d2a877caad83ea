"""Scores: every token once, windows over long texts, continuations as lm-eval defines them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword import LLM, ContextLengthExceeded, InvalidRequest
from afterword.completion.old_tokens import OldTokens
from afterword.core.alias import Alias
from afterword.engine.toy import toy_engine
from afterword.library.windows import Window, WindowPlan, window_plan
from properties.requests import TEXT
from support.examples import examples
from support.library import LIMITS, served

START, BOS = "<|endoftext|>", "<|im_start|>"
PARTS = ["The sea", " was the", " of", "\n\n", "é中文🙂", " 👩‍👩‍👧", "a"]


def echoed(llm: LLM, ids: list[int]) -> list[float]:
    """The log-probability of each token but the first, by a plain request."""
    answer = llm.complete(ids, max_tokens=0, echo=True, logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return [value for value in logprobs.token_logprobs if value is not None]


def test_a_score_is_that_of_a_request_behind_the_start(either: LLM) -> None:
    texts = ["".join(PARTS), "", "a", "".join(reversed(PARTS))]
    scores = either.score(texts)
    (start,) = either.tokenize(START)
    for text, score in zip(texts, scores, strict=True):
        ids = either.tokenize(text) if text else []
        assert list(score.token_ids) == ids
        wanted = echoed(either, [start, *ids]) if ids else []
        assert list(score.token_logprobs) == wanted
        assert score.total_logprob == sum(wanted)
        assert score.windows == (1 if ids else 0)
        assert [text[offset:] for offset in score.text_offset[:1]] == ([text] if text else [])
    score = scores[0]
    mean = score.total_logprob / len(score.tokens)
    assert score.mean_logprob == mean
    assert score.perplexity == math.exp(-mean)
    size = len(score.text.encode())
    assert score.bits_per_byte == pytest.approx(-score.total_logprob / size / math.log(2))
    assert (scores[1].mean_logprob, scores[1].perplexity, scores[1].bits_per_byte) == (0, 1, 0)


def test_alternatives(llm: LLM) -> None:
    (score,) = llm.score("a b", top=3)
    assert all(len(top) in {3, 4} for top in score.top_logprobs)
    assert all(
        top[token] == value
        for token, value, top in zip(
            score.tokens, score.token_logprobs, score.top_logprobs, strict=True
        )
    )


def test_a_perplexity_beyond_all_floats_is_infinite(llm: LLM) -> None:
    (score,) = llm.score("a b")
    never = msgspec.structs.replace(score, token_logprobs=(-9999.0,) * len(score.tokens))
    assert never.perplexity == math.inf
    assert "perplexity inf" in never._repr_html_()


@given(tokens=st.integers(1, 60), length=st.integers(2, 20), data=st.data())
def test_windows_score_every_token_once(tokens: int, length: int, data: Any) -> None:
    stride = data.draw(st.integers(1, length - 1))
    windows = list(WindowPlan(length, stride).over(tokens))
    scored = [at for window in windows for at in range(window.scored, window.end)]
    assert scored == list(range(1, tokens))
    for window in windows:
        assert 0 <= window.first < window.end <= tokens
        assert window.end - window.first == min(length, tokens)
    # From the second window on, a scored token has at least the overlap before it.
    assert all(w.scored - w.first >= length - stride for w in windows[1:])


def test_a_long_text_in_windows(either: LLM) -> None:
    text = "".join(PARTS) * 12
    (score,) = either.score(text, window=50, stride=20)
    (start,) = either.tokenize(START)
    ids = [start, *either.tokenize(text)]
    wanted = echoed(either, ids[:50])
    place = 50
    while place < len(ids):
        end = min(place + 20, len(ids))
        wanted += echoed(either, ids[end - 50 : end])[place - end :]
        place = end
    assert list(score.token_logprobs) == wanted
    assert (score.window_tokens, score.stride_tokens, score.overlap_tokens) == (50, 20, 30)
    assert score.windows == 1 + math.ceil((len(ids) - 50) / 20)
    # Offsets go through all windows.
    whole = either.score(text[:30])[0]
    assert score.text_offset[: len(whole.tokens) - 1] == whole.text_offset[:-1]
    for token, offset in zip(score.tokens, score.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token


@pytest.mark.parametrize("window", [2, 3, 5, 17])
def test_windows_that_begin_inside_a_character(llm: LLM, window: int) -> None:
    """Each has one token of overlap, which may be a part of a character."""
    text = "a🙃b\u20ac 🙃🙃é " * 4
    (whole,) = llm.score(text)
    (score,) = llm.score(text, window=window, stride=window - 1)
    assert any(token.startswith("bytes:") for token in score.tokens)
    assert score.text_offset == whole.text_offset


def test_more_text_than_a_request_can_hold(llm: LLM) -> None:
    line = "The sea was the.\n"
    text = line * 400
    (score,) = llm.score(text, window=256, stride=255)
    assert list(score.token_ids) == llm.tokenize(line) * 400
    (unbroken,) = llm.score("a" * 9000, window=256, stride=255)
    assert len(unbroken.tokens) == 9000


def test_more_text_than_a_body_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a server's bodies can be less than what its context might hold."""
    monkeypatch.setattr("afterword.library.scoring._REQUEST_TOKENS", 1024)
    line = "The sea was the.\n"
    limits = msgspec.structs.replace(LIMITS, max_body_bytes=1 << 14)
    with served(limits=limits) as url, LLM.connect(url) as llm:
        (score,) = llm.score(line * 1000, window=256, stride=255)
        assert list(score.token_ids) == llm.tokenize(line) * 1000


@pytest.mark.parametrize("limit", ["max_prompts", "max_choices"])
def test_more_texts_than_a_server_takes_at_once(llm: LLM, limit: str) -> None:
    texts = [f"The sea was {i}" for i in range(11)]
    limits = msgspec.structs.replace(LIMITS, **{limit: 3})
    with served(limits=limits) as url, LLM.connect(url) as model:
        assert model.score(texts) == llm.score(texts)
        wanted = llm.score_continuations("The sea", texts)
        assert model.score_continuations("The sea", texts) == wanted
        with pytest.raises(InvalidRequest, match="'top': expected"):
            model.score(texts, top=99)
        with pytest.raises(ContextLengthExceeded):
            model.score_continuations("a " * 300, texts)


def test_progress_adds_up(llm: LLM) -> None:
    seen: list[tuple[int, int]] = []
    scores = llm.score(["a b c"] * 70, advance=lambda done, total: seen.append((done, total)))
    total = sum(len(score.tokens) for score in scores)
    assert sum(done for done, _ in seen) == total
    assert {each for _, each in seen} == {total}
    assert len(seen) == 2


def test_an_alias_for_old_tokens_is_scored_by_the_models_own(llm: LLM) -> None:
    """Its requests have OpenAI's ids, and these are other texts."""
    old = OldTokens("cl100k_base", dict.fromkeys(range(1000), b"x"))
    aliases = {"old": Alias("toy", tokens="cl100k_base")}
    there = served(aliases=aliases, vocabularies={"cl100k_base": old})
    with there as url, LLM.connect(url, model="old") as model:
        assert model.complete([1, 2], max_tokens=0, echo=True).text == "xx"
        assert model.score("a b") == llm.score("a b")
        for context in ("a", ""):
            wanted = llm.score_continuations(context, [" b", " c"])
            assert model.score_continuations(context, [" b", " c"]) == wanted
        assert model.detokenize(model.tokenize("a b")) == "a b"


def test_an_alias_that_answers_in_a_chat_scores_no_texts() -> None:
    engine = toy_engine()
    tokenizer: Any = engine.tokenizer
    tokenizer.chat_template = "{{ messages[0].content }}|"
    there = served(engine, aliases={"chat": Alias("toy", "chat")})
    with there as url, LLM.connect(url, model="chat") as model:
        for ask in (partial(model.score, "a"), partial(model.score_continuations, "a", ["b"])):
            with pytest.raises(InvalidRequest, match=r"chat answers .* ask for toy\.") as refused:
                ask()
            assert refused.value.param == "model"


@pytest.mark.parametrize("top", [None, True, "3", 1.0])
def test_alternatives_that_are_no_number(llm: LLM, top: Any) -> None:
    with pytest.raises(InvalidRequest, match="Invalid type for 'top': expected an integer"):
        llm.score("a", top=top)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (1, None, "'window': expected 2 to 256"),
        (257, None, "'window': expected 2 to 256"),
        (9, 9, "'stride': expected 1 to 8"),
        (9, 0, "'stride'"),
        ("9", None, "'window': expected an integer, but got str"),
        (9, True, "'stride': expected an integer, but got bool"),
        (9, 4.5, "'stride': expected an integer, but got float"),
    ],
)
def test_windows_that_cannot_be(
    llm: LLM, window: Any, stride: Any, message: str
) -> None:  # fmt: skip
    with pytest.raises(InvalidRequest, match=message):
        llm.score("a", window=window, stride=stride)


def test_the_usual_window() -> None:
    assert window_plan(256, None, None) == WindowPlan(256, 128)
    assert list(window_plan(4, None, None).over(7)) == [
        Window(0, 1, 4), Window(2, 4, 6), Window(3, 6, 7),
    ]  # fmt: skip


def lm_eval_pair(llm: LLM, context: str, continuation: str) -> tuple[list[int], int]:
    """``TemplateLM._encode_pair`` and ``loglikelihood`` of lm-evaluation-harness, in its words.

    Returns the tokens of both, and how many are the context's.
    """
    if context == "":
        return llm.tokenize(BOS) + llm.tokenize(continuation), 1
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole_enc = llm.tokenize(context + continuation)
    return whole_enc, len(llm.tokenize(context))


@given(context=TEXT, continuations=st.lists(TEXT.filter(bool), min_size=1, max_size=3))
@settings(max_examples=examples(60), deadline=None)
def test_continuations_are_lm_evals(llm: LLM, context: str, continuations: list[str]) -> None:
    if context and not context.rstrip():
        # lm-eval cannot take these.
        return
    found = llm.score_continuations(context, continuations)
    for text, score in zip(continuations, found, strict=True):
        ids, begin = lm_eval_pair(llm, context, text)
        answer = llm.complete(ids, max_tokens=1, echo=True, logprobs=1)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        # ``OpenAICompletionsAPI.parse_logprobs``.
        values = logprobs.token_logprobs[begin:-1]
        tops = logprobs.top_logprobs[begin:-1]
        pairs = zip(values, tops, strict=True)
        assert score.logprob == sum(value for value in values if value is not None)
        assert score.is_greedy == all(
            top is not None and v == max(top.values()) for v, top in pairs
        )
        assert score.tokens == len(values)
        assert score.text == text


def test_a_continuation_without_a_token_of_its_own_is_refused(either: LLM) -> None:
    """It is part of its context's last token, and would win over every other with 0 nats."""
    whole, context = "on", "o"
    assert len(either.tokenize(whole)) == len(either.tokenize(context)) == 1
    with pytest.raises(InvalidRequest, match="'n' has no token of its own") as refused:
        either.score_continuations(context, [" the", "n"])
    assert refused.value.param == "continuations"


def test_a_vocabulary_with_bos(either: LLM) -> None:
    with served(toy_engine(adds_bos=True)) as url, LLM.connect(url) as llm:
        (score,) = llm.score("a b")
        assert list(score.token_ids) == either.tokenize("a b")
        bos, *ids = llm.tokenize("a b")
        assert list(score.token_logprobs) == echoed(llm, [bos, *ids])
        (found,) = llm.score_continuations("a", [" b"])
        assert found.logprob == score.token_logprobs[-2] + score.token_logprobs[-1]


def test_what_is_no_text(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="'texts': expected text, but got int"):
        llm.score([1])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="'text': expected text, but got int"):
        llm.tokenize(1)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="'context': expected text, but got list"):
        llm.score_continuations(["a"], ["b"])  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="'top': expected an integer from 0 to") as refused:
        llm.score("a", top=-1)
    assert refused.value.param == "top"
    assert llm.score([]) == []
    assert llm.score_continuations("a", []) == []


def test_what_is_neither_a_text_nor_several(either: LLM) -> None:
    for value, kind in ((3, "int"), (b"a", "bytes"), (None, "NoneType")):
        with pytest.raises(InvalidRequest, match=f"expected text, but got {kind}"):
            either.score(value)  # type: ignore[arg-type]
    half = "a\ud83d"
    for call in (
        lambda: either.score(half),
        lambda: either.tokenize(half),
        lambda: either.score_continuations(half, ["a"]),
        lambda: either.score_continuations("a", [half]),
    ):
        with pytest.raises(InvalidRequest, match="surrogates not allowed at character 1"):
            call()
