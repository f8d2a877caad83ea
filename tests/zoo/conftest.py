"""Fixtures for tiny models of many architectures; each model is made once a session."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from afterword.engine.llama.thread_count import ThreadCount
from zoo.architectures import ARCHITECTURES
from zoo.making import make_model
from zoo.serving import Model


@pytest.fixture(scope="module", autouse=True)
def _threads_come_and_go() -> Iterator[None]:
    """Each batch is computed by another number of threads, as beside other programs."""
    numbers = random.Random(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadCount, "for_batch", lambda self, *_: numbers.randint(1, self.most))
        yield


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, zoo: Path) -> Iterator[Model]:
    """Each model in turn, loaded."""
    path = zoo / f"{request.param}.gguf"
    made = Model(path if path.exists() else make_model(request.param, path))
    yield made
    made.close()


@pytest.fixture
def law_examples(request: pytest.FixtureRequest) -> int:
    count = request.config.getoption("--law-examples")
    assert isinstance(count, int)
    return count
