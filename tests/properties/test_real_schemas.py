"""Structured output of the real model: two hundred schemas of every day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from support.asgi import Client
from support.schemas import SCHEMAS

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def real(embedded_model: Path) -> Iterator[Client]:
    engine = open_engine(
        embedded_model, digest="0" * 64, name="m", options=EngineOptions(ctx=1024, slots=8)
    )
    yield make_client({"real": engine})
    asyncio.run(engine.aclose())


async def test_R17_two_hundred_schemas_give_valid_json(real: Client) -> None:
    """Open objects and lists have no end of their own: an answer may reach its limit instead."""

    async def answer(name: str) -> tuple[str, str]:
        whole = await real.complete(
            model="real",
            prompt=f"An example of JSON for {name}:\n",
            max_tokens=700,
            temperature=0.7,
            seed=7,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMAS[name]},
            },
        )
        (choice,) = whole["choices"]
        return choice["finish_reason"], choice["text"]

    answers = await asyncio.gather(*map(answer, SCHEMAS))
    unended = [name for name, (reason, _) in zip(SCHEMAS, answers, strict=True) if reason != "stop"]
    assert all(name.endswith((", map", ", list")) for name in unended), unended
    checker = FormatChecker()
    for schema, (reason, text) in zip(SCHEMAS.values(), answers, strict=True):
        if reason == "stop":
            Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    assert len(unended) <= len(SCHEMAS) // 40
