"""Counts that steer a reader: SGLang's and llama-server's, which say how many tokens are new."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from afterword.core.job import (
    NO_TOKEN,
    Counted,
    Ended,
    Event,
    Job,
    Sampled,
    SamplingParams,
)
from afterword.core.wire import LOWEST
from afterword.gateway.dialects.dialect import Reader
from afterword.gateway.dialects.registry import DIALECTS
from afterword.gateway.failures import (
    ClientsFault,
    Overloaded,
    Refused,
    StreamBroke,
    UpstreamFailure,
)
from afterword.gateway.vocabulary import RemoteTokenizer
from standins.server import VOCABULARY

JOB = Job(prompt_ids=(97, 98), n=1, max_tokens=4, sampling=SamplingParams(), seed=1)


def reader_of(dialect: str, job: Job = JOB) -> Reader:
    async def encode(text: str, parse_special: bool) -> list[int]:
        raise NotImplementedError

    tokenizer = RemoteTokenizer(VOCABULARY, chat_template=None, encode=encode)
    return DIALECTS[dialect].reader(0, job, [0], tokenizer)


def read(reader: Reader, *payloads: dict[str, Any]) -> list[Event]:
    events: list[Event] = []
    for payload in payloads:
        events += reader.read(json.dumps(payload).encode())
    return events


def tokens_of(events: list[Event]) -> list[int]:
    return [i for event in events if isinstance(event, Sampled) for i in event.tokens]


def output(ids: list[Any], *, finish: str | None = None, **meta: object) -> dict[str, Any]:
    reason = None if finish is None else {"type": finish}
    return {"output_ids": ids, "meta_info": {"finish_reason": reason, **meta}}


@pytest.mark.parametrize("count", [10**19, 2**62, 3, 5])
def test_sglang_counts_no_more_than_it_sends(count: int) -> None:
    with pytest.raises(StreamBroke, match="counts more"):
        read(reader_of("sglang"), output([99, 100], completion_tokens=count))


@pytest.mark.parametrize("finish", [None, "length"])
def test_tokens_behind_the_limit_are_dropped(finish: str | None) -> None:
    end = min(VOCABULARY.end_ids)
    said = output([99, 100, 101, 102, end], finish=finish, completion_tokens=5)
    events = read(reader_of("sglang"), said)
    assert tokens_of(events) == [99, 100, 101, 102]
    assert [event.reason for event in events if isinstance(event, Ended)] == ["length"]


def test_scores_behind_the_limit_are_dropped() -> None:
    ids = [99, 100, 101, 102, 103]
    scores = [[-1.0, i, None] for i in ids]
    said = output(ids, completion_tokens=5, output_token_logprobs=scores,
                  output_top_logprobs=[[score] for score in scores])  # fmt: skip
    events = read(reader_of("sglang", msgspec.structs.replace(JOB, logprobs=1)), said)
    (sampled,) = [event for event in events if isinstance(event, Sampled)]
    assert sampled.tokens.tolist() == sampled.top_ids.tolist() == ids[:4]
    assert sampled.logprobs.tolist() == sampled.top_logprobs.tolist() == [-1.0] * 4


@pytest.mark.parametrize("count", [-5, 0, None])
def test_sglang_counts_nothing(count: object) -> None:
    reader = reader_of("sglang")
    events = read(reader, output([99, 100], completion_tokens=count))
    assert tokens_of(events) == []
    with pytest.raises(StreamBroke):
        reader.done(said=True)


@pytest.mark.parametrize("given", [10**19, -1, "2", None, 2.0, 1.5, 1])
def test_sglang_s_prompt_is_counted_here(given: object) -> None:
    reader = reader_of("sglang")
    done = output([99.0, 100], finish="length", completion_tokens=2.0, prompt_tokens=given,
                  cached_tokens=given)  # fmt: skip
    events = read(reader, done)
    assert tokens_of(events) == [99, 100]
    (counted,) = [event for event in events if isinstance(event, Counted)]
    assert counted.prompt_tokens == 2
    assert 0 <= counted.cached_tokens <= 2


@pytest.mark.parametrize(
    ("code", "kind"), [(503, Overloaded), (400, ClientsFault), (500, Refused), (None, Refused)]
)
def test_sglang_says_why_it_aborts(code: int | None, kind: type[UpstreamFailure]) -> None:
    """It answers 200 to all of these: its line is full, or the request's grammar is not one."""
    said = output([], completion_tokens=0)
    said["meta_info"]["finish_reason"] = {
        "type": "abort", "message": "It is too long.", "status_code": code,
    }  # fmt: skip
    with pytest.raises(kind) as caught:
        read(reader_of("sglang"), said)
    assert type(caught.value) is kind
    if isinstance(caught.value, ClientsFault):
        assert caught.value.said == "It is too long."


@pytest.mark.parametrize(("more", "kind"), [({}, ClientsFault), ({"code": 500}, Refused)])
def test_sglang_says_what_is_wrong_with_a_request(
    more: dict[str, Any], kind: type[UpstreamFailure]
) -> None:
    """It answers 200 to that as well. With a message alone, the request is at fault."""
    with pytest.raises(kind) as caught:
        read(reader_of("sglang"), {"error": {"message": "It is too long."} | more})
    assert type(caught.value) is kind


def test_sglang_writes_null_for_what_is_no_number() -> None:
    said = output([99], finish="length", completion_tokens=1,
                  output_token_logprobs=[[None, 99, None]],
                  output_top_logprobs=[[[-1.0, 98, None], [-3.4e38, 99, None]]])  # fmt: skip
    (sampled,) = [
        event
        for event in read(reader_of("sglang", replace(JOB, logprobs=2)), said)
        if isinstance(event, Sampled)
    ]
    assert sampled.logprobs.tolist() == [LOWEST]
    assert sampled.top_ids.tolist() == [98, 99]
    assert sampled.top_logprobs.tolist() == [-1.0, LOWEST]


@pytest.mark.parametrize("why", ["", "none"])
def test_an_end_without_a_reason_is_an_end(why: str) -> None:
    sglang, llamacpp = reader_of("sglang"), reader_of("llamacpp")
    read(sglang, output([99], finish=why, completion_tokens=1))
    read(llamacpp, partial([99], "c", stop=True, stop_type=why, tokens_predicted=1))
    assert sglang.over
    assert llamacpp.over


def partial(ids: list[int], content: str = "", **more: object) -> dict[str, Any]:
    return {"tokens": ids, "content": content, **more}


@pytest.mark.parametrize("count", [10**19, 2**62, 5])
@pytest.mark.parametrize("stop", [False, True])
def test_llama_server_counts_no_more_than_was_asked_for(count: int, stop: bool) -> None:
    """Each uncounted token would become one here: memory without end."""
    with pytest.raises(StreamBroke, match="counts more"):
        read(reader_of("llamacpp"), partial([], tokens_predicted=count, stop=stop))


@pytest.mark.parametrize("count", [-5, 0, None, 1.0])
def test_llama_server_s_ids_are_its_tokens(count: object) -> None:
    reader = reader_of("llamacpp")
    events = read(
        reader,
        partial([99], "c", tokens_predicted=count),
        partial([], stop=True, stop_type="limit", tokens_predicted=count,
                tokens_evaluated=10**19, timings={"cache_n": -3}),
    )  # fmt: skip
    assert tokens_of(events) == [99]
    (counted,) = [event for event in events if isinstance(event, Counted)]
    assert (counted.prompt_tokens, counted.cached_tokens) == (2, 0)
    (end,) = [event for event in events if isinstance(event, Ended)]
    assert (end.reason, end.completion_tokens) == ("length", 1)


def test_a_plain_answer_of_llama_server_without_ids() -> None:
    reader = reader_of("llamacpp")
    events = read(reader, partial([], "cd", stop=True, stop_type="limit", tokens_predicted=2))
    assert tokens_of(events) == [99, 100]
    assert reader.over


SCORED = msgspec.structs.replace(JOB, logprobs=2)
HEAD, TAIL = map(VOCABULARY.pieces.index, (b"\xf0\x9f", b"\x98\x80"))
NO_END = VOCABULARY.pieces.index(b"<|fim_pad|>")
"""A token without text that the vocabulary does not declare as an end."""


def scored(token: int, logprob: float, *tops: tuple[int, float]) -> dict[str, Any]:
    return {"id": token, "logprob": logprob,
            "top_logprobs": [{"id": i, "logprob": value} for i, value in tops]}  # fmt: skip


def test_scores_of_llama_server() -> None:
    """Half a character comes with the next token, without a score; -9999.0 is the least one."""
    reader = reader_of("llamacpp", SCORED)
    (_, first, second) = read(
        reader,
        partial([99], "c", tokens_predicted=1, completion_probabilities=[
            scored(99, -1e30, (98, -0.5), (97, -1e30), (96, -1e30)),
        ]),
        partial([TAIL], "😀", tokens_predicted=3, completion_probabilities=[
            scored(TAIL, -1.0, (TAIL, -1.0), (98, -2.0)),
        ]),
    )  # fmt: skip
    assert isinstance(first, Sampled)
    assert (first.tokens.tolist(), first.logprobs.tolist()) == ([99], [-9999.0])
    assert first.top_ids.tolist() == [98, 96]
    assert first.top_logprobs.tolist() == [-0.5, -9999.0]
    assert isinstance(second, Sampled)
    assert (second.tokens.tolist(), second.logprobs.tolist()) == ([HEAD, TAIL], [-9999.0, -1.0])
    assert second.top_ids.tolist() == [NO_TOKEN, NO_TOKEN, TAIL, 98]
    with pytest.raises(StreamBroke, match="one log-probability"):
        read(reader, partial([99], "c", tokens_predicted=4))


def test_llama_server_names_an_end_token_before_the_end() -> None:
    reader = reader_of("llamacpp")
    silent = partial([NO_END], tokens_predicted=1)
    assert tokens_of(read(reader, silent)) == []
    went_on = read(reader, partial([99], "c", tokens_predicted=2))
    assert tokens_of(went_on) == [NO_END, 99]
    silent["tokens_predicted"] = 3
    ended = read(reader, silent, partial([], stop=True, stop_type="eos", tokens_predicted=3))
    (token,) = tokens_of(ended)
    assert token >= len(VOCABULARY.pieces)
    assert [event.reason for event in ended if isinstance(event, Ended)] == ["stop"]


@pytest.mark.parametrize("why", ["limit", "eos"])
def test_llama_server_never_names_the_last_half_of_a_character(why: str) -> None:
    reader = reader_of("llamacpp")
    events = read(
        reader,
        partial([99], "c", tokens_predicted=1),
        partial([], stop=True, stop_type=why, tokens_predicted=3),
    )
    ids = tokens_of(events)
    assert (len(ids), ids[0]) == (3, 99)
    assert (ids[-1] in VOCABULARY.end_ids) == (why == "eos")


@pytest.mark.parametrize("dialect", ["sglang", "llamacpp"])
@pytest.mark.parametrize("token", [-1, 10**6, 2**31, 2**80])
def test_ids_outside_the_vocabulary(dialect: str, token: int) -> None:
    said = {"sglang": output([token], completion_tokens=1), "llamacpp": partial([token], "x")}
    with pytest.raises(StreamBroke):
        read(reader_of(dialect), said[dialect])


@pytest.mark.parametrize("dialect", ["sglang", "llamacpp"])
@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"5", b'{"error": "x"}', b"\xff", b'{"tokens": 5, "output_ids": 5}',
     b"[" * 100_000],
)  # fmt: skip
def test_events_that_cannot_be_read(dialect: str, payload: bytes) -> None:
    with pytest.raises(UpstreamFailure):
        reader_of(dialect).read(payload)
