"""The library on the embedded model: what it answers is what a server answers, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from afterword import LLM
from e2e.process import Server
from support.library import comparable

BODIES: list[dict[str, Any]] = [
    {"prompt": "The sea was", "max_tokens": 12, "temperature": 0, "logprobs": 5, "echo": True},
    {"prompt": ["Once upon", "In the"], "max_tokens": 8, "seed": 7, "n": 2, "logprobs": 2},
    {"prompt": "def add(a, b):", "max_tokens": 16, "seed": 1, "best_of": 3, "stop": ["\n\n"]},
    {"prompt": [504, 3426, 436], "max_tokens": 0, "echo": True, "logprobs": 3},
]


@pytest.fixture(scope="module")
def llm(server: Server) -> Iterator[LLM]:
    """The model of the server, with the server's slots."""
    with LLM("smollm2-135m-instruct", slots=4) as opened:
        yield opened


def test_answers_are_the_servers(llm: LLM, server: Server) -> None:
    with LLM.connect(server.url) as remote, ThreadPoolExecutor(len(BODIES)) as threads:
        assert llm.facts == remote.facts
        here = list(threads.map(lambda body: comparable(llm.complete(**body)), BODIES))
        there = [comparable(remote.complete(**body)) for body in BODIES]
        assert here == there
        with llm.stream(**BODIES[0]) as ours, remote.stream(**BODIES[0]) as theirs:
            assert [chunk.choices for chunk in ours] == [chunk.choices for chunk in theirs]
        text = "The harbour was quiet — 🙂 — and nobody had seen the ship. " * 4
        ours_scored, theirs_scored = (
            model.score(text, window=40, stride=20) for model in (llm, remote)
        )
        assert ours_scored == theirs_scored
        choices = [" Paris", " Rome", " of it"]
        context = "The capital of France is"
        assert llm.score_continuations(context, choices) == (
            remote.score_continuations(context, choices)
        )
