"""Measures one file as the server would run it: speeds, memory, the promise, and fidelity.

It runs in a child process, since the library ends the process where it gives up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from afterword.engine.batching.runner import Batch, Trim
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.child import Effort, Survey
from afterword.engine.llama.fidelity import (
    Comparison,
    Rows,
    log_softmax,
    passage,
    segments,
)
from afterword.engine.llama.loading import EngineOptions, load
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner, temporary_runner
from afterword.engine.llama.verdict import PASSAGE_TOKENS, Fidelity, Figures, Speeds

Tokens: TypeAlias = npt.NDArray[np.int32]

MANY = 32
_FEW = 8
_SLOT_TOKENS = 128
"""Room for each of many streams; they are measured at their begin."""


def survey(path: Path, request: Survey) -> Figures:
    """Measure a file as a request asks."""
    threads, exact, effort = request.threads, request.exact, request.effort
    loaded = load(path, EngineOptions(threads=threads, exact=exact))
    model = loaded.model
    try:
        if request.promised and not loaded.batch_invariant:
            return Figures()
        tokens = np.array(passage_ids(model), np.int32)
        with temporary_runner(model, threads, exact=exact, slots=MANY, room=_SLOT_TOKENS) as runner:
            one, many = (_streams(runner, tokens, n, effort) for n in (1, MANY))
            few = _streams(runner, tokens, _FEW, effort) if effort.full else None
            memory_bytes = _resident_bytes()
        room = min(effort.prompt_tokens, model.context_tokens)
        with temporary_runner(model, threads, exact=exact, slots=1, room=room) as runner:
            prompt = tokens[: min(room, runner.max_batch_tokens)]
            prefill = _prompt(runner, prompt, effort, rows=False)
            scored = tokens[: min(room, runner.max_rows)]
            scoring = _prompt(runner, scored, effort, rows=True) if effort.full else None
        speeds = Speeds(prefill=prefill, one=one, many=many, few=few, scoring=scoring)
        return Figures(
            batch_invariant=loaded.batch_invariant,
            speeds=speeds,
            memory_bytes=memory_bytes,
            file_bytes=path.stat().st_size,
        )
    finally:
        model.close()


def write_reference(path: Path, rows_file: Path, threads: int) -> None:
    """Keep a float32 file's log-probabilities over the passage."""
    model = LlamaModel(path)
    try:
        count = min(len(passage_ids(model)), PASSAGE_TOKENS)
        kept = np.memmap(rows_file, np.float32, "w+", shape=(count, model.vocabulary))
        for at, rows in _passage_rows(model, threads, exact=False):
            kept[at : at + len(rows)] = log_softmax(rows)
        kept.flush()
    finally:
        model.close()


def fidelity(path: Path, rows_file: Path, threads: int, *, exact: bool) -> Fidelity:
    """Compare a file, on the kernels that would serve it, with what ``write_reference`` kept."""
    model = load(path, EngineOptions(threads=threads, exact=exact)).model
    try:
        reference = np.memmap(rows_file, np.float32, "r").reshape(-1, model.vocabulary)
        comparison = Comparison()
        for at, rows in _passage_rows(model, threads, exact=exact):
            comparison.add(reference[at : at + len(rows)], rows)
        return comparison.result()
    finally:
        model.close()


def passage_ids(model: LlamaModel) -> list[int]:
    """The passage in the model's vocabulary."""
    return model.encode(passage().encode(), parse_special=False)


def _passage_rows(model: LlamaModel, threads: int, *, exact: bool) -> Iterator[tuple[int, Rows]]:
    """Rows of logits of the passage, each with the position of the first; valid until the next."""
    at = 0
    ids = passage_ids(model)
    with temporary_runner(model, threads, exact=exact, slots=1, room=BATCH_TOKENS) as runner:
        for segment in segments(ids, runner.context_tokens):
            runner.apply([Trim(0, 0)])
            for start in range(0, len(segment), runner.max_rows):
                part = np.array(segment[start : start + runner.max_rows], np.int32)
                yield at, runner.decode(_of_one(part, start, rows=True))
                at += len(part)


def _streams(runner: LlamaRunner, tokens: Tokens, count: int, effort: Effort) -> float:
    """Tokens a second of sequences that get a token in each step."""
    slots = np.arange(count, dtype=np.int32)
    wanted = np.ones(count, np.bool_)
    runner.apply([Trim(slot, 0) for slot in range(runner.slots)])
    position = 0

    def steps() -> None:
        nonlocal position
        for _ in range(effort.steps):
            positions = np.full(count, position, np.int32)
            runner.decode(Batch(tokens[position : position + count], positions, slots, wanted))
            position += 1

    return count * effort.steps / best_s(steps, effort.repeats)


def _prompt(runner: LlamaRunner, prompt: Tokens, effort: Effort, *, rows: bool) -> float:
    """Tokens a second of a prompt; with ``rows``, every token's log-probabilities too."""

    def compute() -> None:
        runner.apply([Trim(0, 0)])
        logits = runner.decode(_of_one(prompt, 0, rows=rows))
        if rows:
            log_softmax(logits)

    return len(prompt) / best_s(compute, effort.repeats)


def _of_one(tokens: Tokens, start: int, *, rows: bool) -> Batch:
    """Tokens of slot 0 from a position on; a row for each, or for the last."""
    wanted = np.full(len(tokens), rows)
    wanted[-1] = True
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    return Batch(tokens, positions, np.zeros(len(tokens), np.int32), wanted)


def best_s(compute: Callable[[], object], repeats: int) -> float:
    """Seconds of the quickest of some runs; the first of all warms up and may be it too."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        compute()
        best = min(best, time.perf_counter() - started)
    return best


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
