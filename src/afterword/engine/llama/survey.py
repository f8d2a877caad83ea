"""Measures one file as the server would run it: speeds, memory, the promise, and fidelity.

It runs in a child process, since the library ends the process where it gives up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.engine.batching.runner import Batch, Trim
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.child import Survey
from afterword.engine.llama.fidelity import (
    Comparison,
    Rows,
    log_softmax,
    passage,
    segments,
)
from afterword.engine.llama.loading import EngineOptions, Loaded, load
from afterword.engine.llama.machine import resident_bytes
from afterword.engine.llama.parts import part_paths
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner, temporary_runner
from afterword.engine.llama.verdict import PASSAGE_TOKENS, Fidelity, Figures, Speeds

Tokens: TypeAlias = npt.NDArray[np.int32]

MANY = 32
_FEW = 8
_SLOT_TOKENS = 128
"""Room for each of many streams; they are measured at their begin."""
_REPEATS = 3
_LEAST_PAIRS = 3
_MOST_PAIRS = 9
_PAIRS_S = 1.0
"""After this long no more pairs than the least begin."""


class _Workload(msgspec.Struct, frozen=True):
    """A run, and how many tokens it computes."""

    tokens: int
    run: Callable[[], object]


def survey(path: Path, request: Survey) -> Figures:
    """Measure a file as a request asks."""
    with ExitStack() as opened:
        loaded = opened.enter_context(_loaded(path, request))
        if request.promised and not loaded.batch_invariant:
            return Figures()
        workloads = opened.enter_context(_workloads(loaded.model, request))
        workloads["many"].run()
        memory_bytes = resident_bytes()
        if request.beside is None:
            rates = {name: it.tokens / best_s(it.run, _REPEATS) for name, it in workloads.items()}
        else:
            other = opened.enter_context(_loaded(Path(request.beside.path), request))
            others = opened.enter_context(_workloads(other.model, request))
            known = msgspec.structs.asdict(request.beside.speeds)
            rates = {
                name: known[name] * times_as_fast(it.run, others[name].run)
                for name, it in workloads.items()
            }
    return Figures(
        batch_invariant=loaded.batch_invariant,
        speeds=Speeds(**rates),
        memory_bytes=memory_bytes,
        file_bytes=sum(part.stat().st_size for part in part_paths(path)),
    )


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


@contextmanager
def _loaded(path: Path, request: Survey) -> Iterator[Loaded]:
    loaded = load(path, EngineOptions(threads=request.threads, exact=request.exact))
    try:
        yield loaded
    finally:
        loaded.model.close()


@contextmanager
def _workloads(model: LlamaModel, request: Survey) -> Iterator[Mapping[str, _Workload]]:
    """What is measured, by the names of ``Speeds``."""
    effort = request.effort
    tokens = np.array(passage_ids(model), np.int32)
    room = min(effort.prompt_tokens, model.context_tokens)
    opened = partial(temporary_runner, model, request.threads, exact=request.exact)
    with (
        opened(slots=MANY, room=_SLOT_TOKENS) as streams,
        opened(slots=1, room=room) as single,
    ):
        found = {
            "one": _streams(streams, tokens, 1, effort.steps),
            "many": _streams(streams, tokens, MANY, effort.steps),
            "prefill": _prompt(single, tokens[: min(room, single.max_batch_tokens)], rows=False),
        }
        if effort.full:
            found["few"] = _streams(streams, tokens, _FEW, effort.steps)
            found["scoring"] = _prompt(single, tokens[: min(room, single.max_rows)], rows=True)
        yield found


def _streams(runner: LlamaRunner, tokens: Tokens, count: int, steps: int) -> _Workload:
    """Sequences that get a token in each step."""
    slots = np.arange(count, dtype=np.int32)
    wanted = np.ones(count, np.bool_)

    def run() -> None:
        runner.apply([Trim(slot, 0) for slot in range(runner.slots)])
        for position in range(steps):
            positions = np.full(count, position, np.int32)
            runner.decode(Batch(tokens[position : position + count], positions, slots, wanted))

    return _Workload(count * steps, run)


def _prompt(runner: LlamaRunner, prompt: Tokens, *, rows: bool) -> _Workload:
    """A prompt; with ``rows``, every token's log-probabilities too."""

    def run() -> None:
        runner.apply([Trim(0, 0)])
        logits = runner.decode(_of_one(prompt, 0, rows=rows))
        if rows:
            log_softmax(logits)

    return _Workload(len(prompt), run)


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


def times_as_fast(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """How many times as fast one is as the other, where both run in turn: the median of pairs.

    Whatever slows the machine for longer than a pair takes slows both. A run of each warms up.
    """
    ours()
    theirs()
    began = clock()
    ratios: list[float] = []
    while len(ratios) < _LEAST_PAIRS or (len(ratios) < _MOST_PAIRS and clock() - began < _PAIRS_S):
        # Each is first as often as the other.
        seconds = {}
        for run in (ours, theirs) if len(ratios) % 2 else (theirs, ours):
            started = clock()
            run()
            seconds[run] = clock() - started
        ratios.append(seconds[theirs] / seconds[ours])
    return statistics.median(ratios)
