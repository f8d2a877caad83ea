"""Toy models that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afterword import LLM
from support.library import served, toy


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.opened_by(toy()) as opened:
        yield opened


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as there:
        yield there


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[LLM]:
    with LLM.connect(url) as opened:
        yield opened


@pytest.fixture(params=["llm", "remote"])
def either(request: pytest.FixtureRequest) -> LLM:
    """A model in this process, and one behind HTTP."""
    opened: LLM = request.getfixturevalue(request.param)
    return opened
