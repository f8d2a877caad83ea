"""R4 to R17: what a plan makes of a field that is not given, and of one that is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from afterword.completion.fields import declared
from afterword.completion.request import CompletionRequest
from afterword.core.job import Repetition
from afterword.engine.toy import toy_engine
from support.planning import toy_service

DEFAULTS = {
    name: field.default
    for name, field in declared(CompletionRequest).items()
    if not (callable(field.default) or field.default is None or field.default is msgspec.UNSET)
}


async def planned(**body: Any) -> dict[str, Any]:
    """The jobs of a plan, and what the answer shows."""
    engine = toy_engine()
    plan = await toy_service(engine).plan(
        msgspec.json.encode({"model": "toy", "prompt": "a b", "seed": 1, "max_tokens": 9, **body})
    )
    await engine.aclose()
    return {name: getattr(plan, name) for name in ("jobs", "shown", "n", "candidates", "stream")}


@pytest.mark.parametrize("name", DEFAULTS)
async def test_a_default_is_what_the_document_says(name: str) -> None:
    """Whatever else is on: some fields mean nothing alone."""
    more: dict[str, Any] = {
        "dry_multiplier": 0.8, "xtc_probability": 0.5, "repetition_penalty": 1.2, "stop": "x",
        "logprobs": 2, "echo": True,
    }  # fmt: skip
    for body in ({}, {key: value for key, value in more.items() if key != name}):
        assert await planned(**body, **{name: DEFAULTS[name]}) == await planned(**body)


@pytest.mark.parametrize(
    ("given", "window"), [(None, 256), (-1, 256), (1, 1), (7, 7), (256, 256), (2**60, 256)]
)
async def test_R17_dry_looks_at_the_last_tokens(given: int | None, window: int) -> None:
    made = await planned(
        dry_multiplier=0.5, dry_base=3, dry_allowed_length=4, dry_penalty_last_n=given,
        dry_sequence_breakers=[],
    )  # fmt: skip
    assert made["jobs"][0].sampling.repetition == Repetition(
        multiplier=0.5, base=3, allowed_length=4, window=window, breakers={}, breaker_texts=()
    )


@pytest.mark.parametrize("off", [{"dry_multiplier": 0}, {"dry_penalty_last_n": 0}])
async def test_R17_dry_is_off(off: dict[str, Any]) -> None:
    made = await planned(**{"dry_multiplier": 0.5, **off})
    assert made["jobs"][0].sampling.repetition is None
