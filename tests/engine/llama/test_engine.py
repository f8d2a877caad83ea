"""The embedded engine on a tiny file: vocabulary, memory, sharing, the probe."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterword.core.errors import ConfigError
from afterword.core.job import Ended, Event, Job, Prefilled, Sampled, SamplingParams
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama import binding
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions, Probed, load
from afterword.models.notes import Notes
from afterword.models.parts import read_header
from support.tiny_gguf import CONTEXT, make_gguf


def open_tiny(path: Path, *, slots: int = 4, exact: bool = True, ctx: int | None = None,
              threads: int = 1) -> BatchingEngine:  # fmt: skip
    options = EngineOptions(ctx=ctx, slots=slots, threads=threads, exact=exact)
    return open_engine(path, digest="0" * 64, name="tiny", options=options)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[BatchingEngine]:
    engine = open_tiny(make_gguf(tmp_path / "tiny.gguf"))
    yield engine
    await engine.aclose()


async def events_of(engine: BatchingEngine, *jobs: Job) -> list[Event]:
    async with engine.open(jobs) as generation:
        return [event async for events in generation for event in events]


def normal_form(events: list[Event]) -> list[object]:
    """Returns an answer independent of how it was cut into events and of what was cached."""
    heads = sorted((e.job, e.prompt_tokens, repr(e.scored)) for e in events
                   if isinstance(e, Prefilled))  # fmt: skip
    tokens: dict[tuple[int, int], list[list[float]]] = {}
    for event in events:
        if isinstance(event, Sampled):
            mine = tokens.setdefault((event.job, event.seq), [[], [], [], []])
            mine[0].extend(event.tokens)
            mine[1].extend(event.logprobs)
            mine[2].extend(event.top_ids)
            mine[3].extend(event.top_logprobs)
    ends = sorted((e.job, e.seq, e.reason, e.completion_tokens) for e in events
                  if isinstance(e, Ended))  # fmt: skip
    return [heads, sorted(tokens.items()), ends]


def test_slots_that_the_memory_cannot_hold_are_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system allocates KV memory as it is used, so it would end the process much later."""
    path = make_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("afterword.engine.llama.memory.memory_limit", lambda: 2**20)
    with pytest.raises(
        ConfigError, match=r"sequences of \d+ tokens, at least 1, take .* GiB of KV"
    ):
        open_tiny(path, slots=64)


async def test_a_scored_prefix_is_not_computed_again(engine: BatchingEngine) -> None:
    job = Job(prompt_ids=tuple(range(10, 90)), n=1, max_tokens=0, sampling=SamplingParams(),
              seed=0, prompt_logprobs=2)  # fmt: skip
    first = await events_of(engine, job)
    before = engine.stats()
    second = await events_of(engine, job)
    assert normal_form(first) == normal_form(second)
    assert engine.stats().prefilled_tokens == before.prefilled_tokens
    head = second[0]
    assert isinstance(head, Prefilled)
    assert head.cached_tokens == 80


async def test_siblings_share_one_prefill(engine: BatchingEngine) -> None:
    job = Job(prompt_ids=tuple(range(100)), n=4, max_tokens=4,
              sampling=SamplingParams(ignore_eos=True), seed=1)  # fmt: skip
    await events_of(engine, job)
    # Each sibling but the first computes the last prompt token again, to draw from its row.
    assert engine.stats().prefilled_tokens == 100 + 3


async def test_a_long_prompt_does_not_stop_a_stream(tmp_path: Path) -> None:
    """While 4,000 tokens are prefilled in chunks, the stream gets a token with each chunk."""
    path = make_gguf(tmp_path / "tiny.gguf", context=8192)
    options = EngineOptions(slots=2, threads=1)
    engine = open_engine(path, digest="0" * 64, name="tiny", options=options)
    sampling = SamplingParams(ignore_eos=True)
    running = Job(prompt_ids=(1,), n=1, max_tokens=8000, sampling=sampling, seed=0)
    arriving = Job(prompt_ids=tuple(range(200)) * 20, n=1, max_tokens=1, sampling=sampling, seed=0)
    async with engine.open([running]) as stream:
        await anext(aiter(stream))
        before = engine.stats().generated_tokens
        await events_of(engine, arriving)
        assert engine.stats().generated_tokens - before > len(arriving.prompt_ids) // 512
    await engine.aclose()


async def test_idle_slots_between_active_ones_keep_their_cells(tmp_path: Path) -> None:
    """The runner computes through slots in a gap; their cells must not change."""
    engine = open_tiny(make_gguf(tmp_path / "tiny.gguf"), slots=4)
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    lengths = (40, 3, 30, 50)
    jobs = [Job(prompt_ids=tuple(range(i * 7, i * 7 + 20)), n=1, max_tokens=n, sampling=greedy,
                seed=0) for i, n in enumerate(lengths)]  # fmt: skip
    together = await events_of(engine, *jobs)
    again = await events_of(engine, *jobs)
    assert normal_form(together) == normal_form(again)
    await engine.aclose()


async def test_vocabulary_round_trips(engine: BatchingEngine) -> None:
    tokenizer = engine.tokenizer
    for text in ("the thing = the", "naïve 🙂 \x00 中文", "def f():\n\treturn 1"):
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.pieces[i] for i in ids).decode() == text
    named = tokenizer.encode("<|endoftext|>")
    assert named == [tokenizer.document_start_id]
    assert named[0] in tokenizer.end_ids
    assert len(tokenizer.encode("<|endoftext|>", parse_special=False)) > 1
    assert tokenizer.bos_id is None
    assert tokenizer.infill is None


@pytest.mark.parametrize(
    ("family", "names", "order"),
    [
        ("starcoder", ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "psm"),
        ("qwen", ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "psm"),
        ("deepseek", ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "psm"),  # noqa: RUF001
        ("codestral", ("[PREFIX]", "[SUFFIX]", None), "spm"),
    ],
)
async def test_F2_infill_tokens_are_found(
    tmp_path: Path, family: str, names: tuple[str | None, ...], order: str
) -> None:
    engine = open_tiny(make_gguf(tmp_path / "fim.gguf", family))
    infill = engine.tokenizer.infill
    assert infill is not None
    ids = (infill.prefix_id, infill.suffix_id, infill.middle_id)
    pieces = engine.tokenizer.pieces
    assert tuple(None if i is None else pieces[i].decode() for i in ids) == names
    assert infill.order == order
    await engine.aclose()


async def test_bos_is_added_if_the_model_wants_it(tmp_path: Path) -> None:
    engine = open_tiny(make_gguf(tmp_path / "bos.gguf", adds_bos=True))
    tokenizer = engine.tokenizer
    assert tokenizer.bos_id is not None
    assert tokenizer.pieces[tokenizer.bos_id] == b"<s>"
    assert tokenizer.document_start_id == tokenizer.bos_id
    await engine.aclose()


def test_a_context_larger_than_the_models_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match=f"--ctx {CONTEXT + 1} is larger"):
        open_tiny(path, ctx=CONTEXT + 1)


async def test_D3_the_fingerprint_names_file_and_settings(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    prints = []
    for exact, digest in ((True, "a"), (True, "a"), (True, "b"), (False, "a")):
        options = EngineOptions(slots=1, threads=1, exact=exact)
        engine = open_engine(path, digest=digest, name="tiny", options=options)
        prints.append(engine.card.fingerprint)
        await engine.aclose()
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert all(len(p) == 13 and p.startswith("fp_") for p in prints)


def test_the_probe_runs_once_for_all_that_its_result_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, notes = make_gguf(tmp_path / "m.gguf"), Notes(tmp_path / "notes")
    asked: list[tuple[bool, int]] = []

    def probe(model: LlamaModel, options: EngineOptions) -> Probed:
        asked.append((model.repack, options.compute_threads))
        return Probed(model.repack, not model.repack, "cells")

    monkeypatch.setattr("afterword.engine.llama.loading._probe", probe)

    def loaded(*, threads: int = 1, digest: str = "a", kept: Notes | None = notes) -> Probed:
        found = load(path, EngineOptions(threads=threads), digest=digest, notes=kept)
        found.model.close()
        return Probed(found.model.repack, found.batch_invariant, found.sharing)

    for _ in range(2):
        assert loaded() == Probed(repack=False, batch_invariant=True, sharing="cells")
    assert asked == [(True, 1), (False, 1)]
    loaded(threads=2)
    loaded(digest="b")
    assert asked[2:] == [(True, 2), (False, 2), (True, 1), (False, 1)]
    loaded(kept=None)
    assert len(asked) == 8


async def test_sequences_that_fail_together_are_computed_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Probed(repack=True, batch_invariant=False, sharing="none", together=False)
    monkeypatch.setattr("afterword.engine.llama.loading._probe", lambda _model, _options: found)
    path = make_gguf(tmp_path / "tiny.gguf")
    engine = open_engine(path, digest="a", name="tiny", options=EngineOptions(slots=4, threads=1))
    try:
        assert engine.stats().slots == 1
        assert engine.card.prefix_sharing == "none"
    finally:
        await engine.aclose()


def test_a_vocabulary_is_equal_in_one_call_and_token_by_token(
    tmp_path: Path, embedded_model: Path
) -> None:
    for path in (make_gguf(tmp_path / "m.gguf", "qwen"), embedded_model):
        model = LlamaModel(path)
        try:
            tokens = model.tokens()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("afterword.engine.llama.binding._pieces", None)
                assert model.tokens() == tokens
        finally:
            model.close()
        assert len(tokens.pieces) == read_header(path).vocabulary
        assert tokens.end_ids < tokens.control_ids


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"gpt2", b"none", 1))
    with pytest.raises(ConfigError, match="has no vocabulary"):
        LlamaModel(path)


def test_a_load_that_fails_says_no_other_threads_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def log(line: bytes) -> None:
        binding._log_callback(4, line, None)

    def fail(*_: object) -> None:
        other = threading.Thread(target=log, args=(b"of a model that serves",))
        other.start()
        other.join()
        log(b"error loading model: of this one")

    monkeypatch.setattr(binding, "_load_file", fail)
    with pytest.raises(ConfigError, match="cannot load it: of this one"):
        LlamaModel(make_gguf(tmp_path / "m.gguf"))
    assert [line.message for line in caplog.records] == ["of a model that serves"]


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_the_name_of_a_file_may_be_any_bytes(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / os.fsdecode(b"caf\xe9.gguf"))
    converted = path.with_name(os.fsdecode(b"\xff.gguf"))
    binding.convert(path, converted, "q8_0", threads=1)
    LlamaModel(converted).close()


def test_a_load_does_not_log_lines_that_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, lines = make_gguf(tmp_path / "m.gguf"), list[int]()
    monkeypatch.setattr(binding.log, "log", lambda level, *_: lines.append(level))
    for level, some in ((logging.INFO, False), (logging.DEBUG, True)):
        with caplog.at_level(level, binding.log.name):
            LlamaModel(path).close()
        assert (logging.DEBUG in lines) == some


async def test_an_engine_opens_computes_and_closes_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_tiny(make_gguf(tmp_path / "m.gguf"))
    job = Job(prompt_ids=(1, 2, 3), n=1, max_tokens=3, sampling=SamplingParams(), seed=1)
    await events_of(engine, job)
    await engine.aclose()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the kernel's threads")
def test_models_share_one_thread_pool(tmp_path: Path) -> None:
    """More computing threads than cores would wait for each other at every operation."""
    path, options = make_gguf(tmp_path / "m.gguf"), EngineOptions(threads=2)

    def load_one() -> LlamaModel:
        loaded = load(path, options)
        assert loaded.batch_invariant
        return loaded.model

    models = [load_one()]
    count = threads_of_the_process()
    models += [load_one(), load_one()]
    deadline_s = time.monotonic() + 10  # loading threads end by themselves, some time later
    while threads_of_the_process() > count:
        assert time.monotonic() < deadline_s
        os.sched_yield()
    for model in models:
        model.close()


def threads_of_the_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
