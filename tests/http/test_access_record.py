"""What the record of a request says, and the times in its headers."""

from __future__ import annotations

import pytest

from afterword.engine.toy import ToyTokenizer, toy_engine
from afterword.http.middleware import AccessRecord, _span
from conftest import make_client

NO_END = {str(i): -100 for i in ToyTokenizer().end_ids}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_record_has_what_was_used_and_when(stream: bool) -> None:
    records: list[AccessRecord] = []
    engine = toy_engine()
    client = make_client({"toy": engine}, observe=lambda record, _: records.append(record))
    body = {"model": "toy", "prompt": [9] * 8, "max_tokens": 3, "logit_bias": NO_END}
    for _ in range(2):
        await client.post("/v1/completions", {**body, "stream": stream})
    await engine.aclose()
    for record, cached in zip(records, (0, 7), strict=True):
        assert (record.method, record.status, record.outcome) == ("POST", 200, "answered")
        assert (record.path, record.route) == ("/v1/completions", "/v1/completions")
        assert (record.model, record.stream, record.client) == ("toy", stream, "127.0.0.1")
        assert (record.prompt_tokens, record.completion_tokens) == (8, 3)
        assert record.cached_tokens == cached
        # The clock goes on by a millisecond each time that it is read.
        assert record.first_token_ms is not None
        assert 0 < record.first_token_ms < record.duration_ms


async def test_a_record_has_the_name_that_was_asked_for() -> None:
    records: list[AccessRecord] = []
    engine = toy_engine()
    client = make_client({"toy": engine}, observe=lambda record, _: records.append(record))
    for model in ("gpt-3.5-turbo-instruct", "nobody"):
        await client.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 0})
    await client.get("/health")
    await engine.aclose()
    assert [record.model for record in records] == ["gpt-3.5-turbo-instruct", "nobody", None]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, b"0ms"), (0.02, b"20ms"), (0.0201, b"21ms"), (0.9991, b"1s"), (1, b"1s"), (7.5, b"7.5s"),
     (59.9999, b"1m0s"), (60, b"1m0s"), (61.2, b"1m2s")],
)  # fmt: skip
def test_spans_are_openais(seconds: float, written: bytes) -> None:
    """Rounded up: who waits so long is let in."""
    assert _span(seconds) == written
