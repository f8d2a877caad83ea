"""A grammar that stops at its bounds ends its request, by what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afterword.core.errors import InvalidRequest
from afterword.core.job import Constraint, Event, Job, OutputGrammar, SamplingParams
from afterword.core.protocols import Generation
from afterword.engine.row_query import GrammarError
from afterword.engine.toy import ToyTokenizer, toy_engine


class Costly:
    """A compiled grammar that stops at its bounds behind the third token."""

    def __init__(self) -> None:
        self.tokens = 0

    def follow(self) -> Costly:
        return Costly()

    def mask(self) -> Any:
        if self.tokens == 3:
            raise GrammarError("too many items")
        return np.ones(len(ToyTokenizer().pieces), np.bool_)

    def accept(self, token: int) -> None:
        self.tokens += 1

    def valid(self, tokens: list[int]) -> int:
        return 0


async def _all(generation: Generation) -> list[Event]:
    return [event async for events in generation for event in events]


async def test_R17_a_grammar_that_costs_too_much_is_a_bad_request() -> None:
    """A 500 would be tried again."""
    engine = toy_engine()
    job = Job(
        prompt_ids=(1, 2), n=1, max_tokens=9, sampling=SamplingParams(ignore_eos=True), seed=1,
        constraint=Constraint(OutputGrammar("grammar", ""), Costly(), "response_format"),
    )  # fmt: skip
    async with engine.open([job]) as generation:
        with pytest.raises(InvalidRequest, match=r"any further: too many items") as raised:
            await _all(generation)
    assert raised.value.param == "response_format"
    await engine.aclose()
