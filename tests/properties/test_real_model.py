"""One meaning, two deliveries, for hundreds of random requests to the real model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from properties.laws import delivered_alike
from properties.requests import bodies
from support.asgi import Client
from support.examples import examples

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def real(embedded_model: Path) -> Iterator[Client]:
    options = EngineOptions(ctx=256, slots=4)
    engine = open_engine(embedded_model, digest="0" * 64, name="m", options=options)
    yield make_client({"real": engine})
    asyncio.run(engine.aclose())


@given(
    body=st.booleans().flatmap(lambda greedy: bodies(greedy=greedy)),
    max_tokens=st.integers(0, 8),
    usage=st.booleans(),
)
@settings(max_examples=examples(300), deadline=None)
async def test_one_meaning_two_deliveries(
    real: Client, body: dict[str, Any], max_tokens: int, usage: bool
) -> None:
    short = {**body, "model": "real", "max_tokens": max_tokens}
    if "min_tokens" in body:
        short["min_tokens"] = min(body["min_tokens"], max_tokens)
    await delivered_alike(real, short, usage=usage)
