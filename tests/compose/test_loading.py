"""Loading of models: who owns them, and what happens to models that are not taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.cli.terminal import Terminal
from afterword.compose.loading import Loading
from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.engine.llama.engine import OpenModel, open_model
from afterword.engine.llama.loading import Loaded
from afterword.engine.llama.runner import LlamaRunner
from afterword.models.gguf import Header
from afterword.models.parts import read_header
from support.tiny_gguf import make_gguf


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    files = {name: str(make_gguf(tmp_path / f"{name}.gguf")) for name in ("a", "b")}
    return Settings(models=files, models_dir=str(tmp_path / "models"), threads=1)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[LlamaRunner]:
    """The closed runners, in order."""
    runners: list[LlamaRunner] = []
    close = LlamaRunner.close

    def remembered(runner: LlamaRunner) -> None:
        runners.append(runner)
        close(runner)

    monkeypatch.setattr(LlamaRunner, "close", remembered)
    return runners


async def test_what_nobody_took_is_freed(settings: Settings, closed: list[LlamaRunner]) -> None:
    with Loading(settings, Terminal()) as models:
        models.begin()
        path, model = await models.take("b")
    assert path.name == "b.gguf"
    assert len(closed) == 1
    assert model.runner not in closed
    assert model.card.batch_invariant
    model.runner.close()


def test_nothing_is_loaded_before_it_begins(settings: Settings, closed: list[LlamaRunner]) -> None:
    with Loading(settings, Terminal()):
        pass
    assert closed == []


async def test_an_error_is_raised_when_the_model_is_taken(
    settings: Settings, closed: list[LlamaRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_one(loaded: Loaded, *, name: str, **more: object) -> OpenModel:
        if name == "b":
            loaded.model.close()
            raise ConfigError("b: no")
        return open_model(loaded, name=name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("afterword.engine.llama.engine.open_model", refuse_one)
    with Loading(settings, Terminal()) as models:
        models.begin()
        with pytest.raises(ConfigError, match="b: no"):
            await models.take("b")
    assert len(closed) == 1


def test_what_is_wrong_is_said_before_anything_is_loaded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterword.compose.loading.load", None)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with Loading(settings, Terminal()) as models, pytest.raises(ConfigError, match="truncated"):
        models.begin()
    wrong = Settings(models={"x": "vllm+http://host:port"}, aliases={})
    with pytest.raises(ConfigError, match="host:port"):
        Loading(wrong, Terminal())


def test_a_header_is_read_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*, fresh: bool = False) -> list[Path]:
        looked_at: list[Path] = []

        def remembered(path: Path) -> Header:
            looked_at.append(path)
            return read_header(path)

        with monkeypatch.context() as patch, Loading(settings, Terminal(), fresh=fresh) as models:
            patch.setattr("afterword.models.store.read_header", remembered)
            models.begin()
        return looked_at

    # Both files have the same content, so the second one needs no reading.
    assert begin() == [tmp_path / "a.gguf"]
    assert begin() == []
    make_gguf(tmp_path / "b.gguf", context=128)
    assert begin() == [tmp_path / "b.gguf"]
