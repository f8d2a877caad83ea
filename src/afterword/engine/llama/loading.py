"""Loads weights, on kernels whose answers do not depend on the rest of a batch where it is asked.

What computes is not needed for that, and is imported only to probe.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from afterword.engine.llama.binding import CHANGES, LlamaModel, multiply_row_by_row, system_info
from afterword.engine.llama.machine import processor
from afterword.engine.llama.notes import Notes
from afterword.engine.llama.weights import LIBRARY_VERSION

LIBRARY = f"llama-cpp-python {LIBRARY_VERSION}"
_PROBE = 1
"""Raised whenever the probe may answer differently than before."""
_PROBE_SLOTS = 4
_PROBE_TOKENS = 256


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may say of an engine; None is decided here.

    ``exact`` promises that answers do not depend on what else is being served (D1); ``probe``
    has this tried at start. Who serves one request only need not ask.
    """

    ctx: int | None = None
    slots: int | None = None
    threads: int | None = None
    exact: bool = True
    probe: bool = True
    max_waiting: int = 256
    score_cache_bytes: int = 64 * 2**20
    target_gap_ms: int = 200
    prompt_lookup: bool = True

    @property
    def compute_threads(self) -> int:
        """The threads given, or one for each core that this process may use."""
        return self.threads or len(os.sched_getaffinity(0))


class Probed(msgspec.Struct, frozen=True):
    """What the probe answered: on which kernels, and whether the promise of D1 is kept."""

    repack: bool
    batch_invariant: bool


class Loaded(msgspec.Struct, frozen=True):
    """A model in memory; whether answers depend on what else is served (D1), as it was probed."""

    model: LlamaModel
    batch_invariant: bool


def load(
    path: Path, options: EngineOptions, *, origin: str = "", notes: Notes | None = None
) -> Loaded:
    """The model on the fastest kernels that keep the promise of D1, and whether it is kept.

    With ``notes`` the probe is asked once for each ``origin`` (what the weights are), library,
    processor and number of threads: nothing else has a say in its answer.
    """
    if not options.exact:
        return Loaded(LlamaModel(path), batch_invariant=False)
    multiply_row_by_row()
    if not options.probe:
        return Loaded(LlamaModel(path), batch_invariant=False)
    about = (origin, kernels(), processor(), options.compute_threads, _PROBE)
    known = notes.read("probe", about, Probed) if notes is not None else None
    if known is not None:
        return Loaded(LlamaModel(path, repack=known.repack), known.batch_invariant)
    loaded = _load_and_probe(path, options)
    if notes is not None:
        notes.write("probe", about, Probed(loaded.model.repack, loaded.batch_invariant))
    return loaded


def _load_and_probe(path: Path, options: EngineOptions) -> Loaded:
    model = LlamaModel(path)
    if _probe(model, options):
        return Loaded(model, batch_invariant=True)
    model.close()
    model = LlamaModel(path, repack=False)
    return Loaded(model, _probe(model, options))


def _probe(model: LlamaModel, options: EngineOptions) -> bool:
    """Ask in a small context of its own; the answer does not depend on the size.

    This is done on a thread that ends, for the sake of libraries that were built with OpenMP:
    there, a thread that has computed once keeps its team for life, and with more threads in teams
    than there are cores none of them may spin. Every step would take twice as long.
    """
    from afterword.engine.batching.probe import is_batch_invariant  # noqa: PLC0415
    from afterword.engine.llama.runner import temporary_runner  # noqa: PLC0415

    with (
        temporary_runner(
            model, options.compute_threads, exact=True, slots=_PROBE_SLOTS, room=_PROBE_TOKENS
        ) as runner,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        return thread.submit(is_batch_invariant, runner).result()


def kernels() -> str:
    """The library, what it was built for, and what this project changed in it."""
    return f"{LIBRARY} {system_info()} {CHANGES}"
