"""The computed memory of a model equals what the library allocates; the largest context fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from afterword.core.errors import ConfigError
from afterword.core.machine import release_pages, resident_bytes
from afterword.engine.llama import engine, memory
from afterword.engine.llama.binding import LlamaModel, convert
from afterword.engine.llama.context import ContextOptions, LlamaContext
from afterword.engine.llama.engine import OpenModel, open_model
from afterword.engine.llama.loading import EngineOptions, load
from afterword.engine.llama.memory import ModelMemory, model_memory, sizes_of
from support.tiny_gguf import CONTEXT, make_gguf
from zoo.making import make_model

ASKED = ContextOptions(
    slots=1, slot_tokens=256, batch_tokens=512, max_rows=32, threads=1, exact=True
)
F16 = 2
HAS_TOKENS = ("llama", "gemma3", "gpt-oss", "deepseek2", "jamba", "falcon-h1", "lfm2", "qwen3next")
IN_BLOCKS = ("llama", "gemma3", "gpt-oss")
HAS_STATE = ("jamba", "falcon-h1", "lfm2", "mamba2", "rwkv7", "qwen3next")
ARCHITECTURES = (*HAS_TOKENS, "mamba2", "rwkv7")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LlamaModel]]:
    name = request.param
    opened = LlamaModel(make_model(name, tmp_path_factory.mktemp("memory") / f"{name}.gguf"))
    yield name, opened
    opened.close()


def test_computed_sizes_equal_what_the_library_allocates(model: tuple[str, LlamaModel]) -> None:
    name, loaded = model
    asked = model_memory(loaded, ASKED)
    assert (asked.token > 0) == (name in HAS_TOKENS)
    assert (asked.sequence > 0) == (name in HAS_STATE)
    assert asked.in_blocks == (name in IN_BLOCKS)
    for slots, tokens in ((1, 768), (3, 512), (5, 1024)):
        made = msgspec.structs.replace(ASKED, slots=slots, slot_tokens=tokens)
        context = LlamaContext(loaded, made)
        assert sizes_of(loaded, context, made).kv == slots * asked.slot_bytes(tokens)
        context.close()


@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_a_saved_state_is_at_most_as_large_as_computed(
    model: tuple[str, LlamaModel], tokens: int
) -> None:
    _, loaded = model
    context = LlamaContext(loaded, ASKED)
    places = np.arange(tokens, dtype=np.int32)
    assert context.decode(places + 3, places, np.zeros(tokens, np.int32), places < 1) == 0
    size = len(context.save(0))
    context.close()
    limit = model_memory(loaded, ASKED).state_bytes(tokens)
    assert size <= limit
    assert limit - size <= 24 * tokens + 1024


def test_bytes_of_a_token_are_those_computed_by_hand(tmp_path: Path) -> None:
    """The model has two layers with two heads for keys and values, each 16 wide."""
    model = LlamaModel(make_gguf(tmp_path / "x.gguf"))
    assert model_memory(model, ASKED) == ModelMemory(
        token=2 * 2 * (16 + 16) * F16, sequence=0, in_blocks=True
    )
    model.close()


def test_more_tokens_than_the_library_can_count_do_not_fit(tmp_path: Path) -> None:
    """Without their upper bits, four times so many are none, and another context is made."""
    model = LlamaModel(make_gguf(tmp_path / "x.gguf"))
    with pytest.raises(ConfigError, match="no memory for 4 sequences of 1073741824 tokens"):
        LlamaContext(model, msgspec.structs.replace(ASKED, slots=4, slot_tokens=2**30))
    model.close()


def test_a_files_name_may_be_any_bytes(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.gguf"))
    make_gguf(tmp_path / "x.gguf").rename(path)
    model = LlamaModel(path)
    assert model.architecture == "llama"
    model.close()
    convert(path, path.with_suffix(".f16"), "f16", 1)
    assert path.with_suffix(".f16").is_file()


class Machine:
    """A machine with ``left`` bytes for a model's context."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        # A sixteenth is left to the system.
        limit = left * 16 // 15
        monkeypatch.setattr(memory, "memory_limit", lambda: limit)
        monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
        monkeypatch.setattr(engine, "memory_limit", lambda: limit)


def opened(
    path: Path, *, ctx: int | None = None, slots: int | None = None, kv_bytes: int | None = None
) -> OpenModel:
    given = EngineOptions(threads=1, exact=False, ctx=ctx, slots=slots, kv_bytes=kv_bytes)
    return open_model(load(path, given), digest="0" * 64, name="x", options=given)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context of 65,536 tokens takes 16 MiB a slot."""
    return make_gguf(tmp_path_factory.mktemp("large") / "x.gguf", context=65536)


def test_the_default_context_is_the_largest_that_fits(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "afterword.engine"):
        Machine(monkeypatch, 12 * 2**20)
        one = opened(large)
        context = one.card.context_tokens
        taken = int(one.card.details["process_bytes"])
        one.runner.close()
    assert one.card.details["max_sequences"] == 64
    assert one.card.details["kv_bytes"] == context * 256
    assert context % 256 == 0
    assert 256 <= context < 65536
    assert taken <= 12 * 2**20
    # A context that is a little larger would not fit.
    assert taken > 12 * 2**20 * 0.9
    assert f"a context of {context} tokens is the largest that fits" in caplog.text
    assert "the model's own is 65536" in caplog.text


def test_a_requested_context_fits_or_is_refused(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, 12 * 2**20)
    largest = opened(large)
    context = largest.card.context_tokens
    largest.runner.close()
    exact = opened(large, ctx=context, slots=1)
    assert exact.card.context_tokens == context
    exact.runner.close()
    with pytest.raises(ConfigError, match=rf"the largest --ctx that fits is {context}$"):
        opened(large, ctx=65536, slots=1)
    with pytest.raises(ConfigError, match=r"--kv-mib 1 is too little .* which takes 2 MiB"):
        opened(large, ctx=8192, kv_bytes=2**20)
    Machine(monkeypatch, 2**16)
    with pytest.raises(ConfigError, match=r"no context fits$"):
        opened(large)


def test_a_context_that_the_library_cannot_make_does_not_fit(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocations may fail although the machine has enough memory."""

    class Small(LlamaContext):
        def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
            if options.slots * options.slot_tokens > 5000:
                raise ConfigError("no memory")
            super().__init__(model, options)

    monkeypatch.setattr(memory, "LlamaContext", Small)
    one = opened(large, slots=1)
    assert one.card.context_tokens == 4864
    one.runner.close()
    with pytest.raises(ConfigError, match=r"the largest --ctx that fits is 4864$"):
        opened(large, ctx=65536, slots=1)


def test_a_model_that_fits_has_its_own_context(tmp_path: Path) -> None:
    whole = opened(make_gguf(tmp_path / "x.gguf"), slots=8, kv_bytes=9 * CONTEXT * 256)
    details = whole.card.details
    assert whole.card.context_tokens == CONTEXT
    assert details["max_sequences"] == 8
    assert details["kv_bytes"] == 9 * CONTEXT * 256
    assert int(details["process_bytes"]) > int(details["kv_bytes"])
    whole.runner.close()


def test_blocks_are_fewer_if_memory_is_short(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, 12 * 2**20)
    with caplog.at_level(logging.INFO, "afterword.engine"):
        few = opened(large, ctx=2048, kv_bytes=64 * 2**20)
    assert 2048 * 256 <= int(few.card.details["kv_bytes"]) < 12 * 2**20
    assert int(few.card.details["process_bytes"]) <= 12 * 2**20
    assert "there is memory for" in caplog.text
    few.runner.close()


@pytest.mark.parametrize(("name", "sequences"), [("mamba2", 8), ("llama", 64)])
def test_the_log_says_why_there_are_fewer_sequences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, sequences: int
) -> None:
    path = make_model(name, tmp_path / "x.gguf")
    with caplog.at_level(logging.INFO, "afterword.engine"):
        usual = opened(path)
        more = opened(path, slots=20)
    for one in (usual, more):
        one.runner.close()
    assert usual.card.details["max_sequences"] == sequences
    assert more.card.details["max_sequences"] == 20
    why = (
        "model x: 8 sequences at once, not the 64 of --max-sequences: each has KV memory of its "
        "own; --slots sets more"
    )
    said = [line for line in caplog.messages if "of --max-sequences" in line]
    assert said == ([why] if sequences < 64 else [])


def test_pages_of_a_mapped_file_are_released(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(2**26))
    data = np.memmap(path, np.uint8, "r")
    assert not data[::4096].any()
    before = resident_bytes()
    release_pages([path])
    assert before - resident_bytes() > 2**25
    # Reading loads them again.
    assert not data[::4096].any()
