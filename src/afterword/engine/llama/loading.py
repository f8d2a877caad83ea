"""Loads weights, on kernels whose answers do not depend on the rest of a batch where it is asked.

What computes is not needed for that, and is imported only to probe.
"""

from __future__ import annotations

import importlib.metadata
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from afterword.core.protocols import PrefixSharing
from afterword.engine.llama.binding import CHANGES, LlamaModel, multiply_row_by_row, system_info
from afterword.engine.llama.machine import processor
from afterword.models.notes import Notes

if TYPE_CHECKING:
    from afterword.engine.batching.runner import ModelRunner

LIBRARY = f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
_PROBE = 2
"""Raised whenever the probe may answer differently than before."""
_MOST_ROUNDING = 1.0
"""Nats. A row that is farther from its own in another batch is no matter of rounding."""
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
    checkpoint_bytes: int | None = None
    target_gap_ms: int = 200
    prompt_lookup: bool = True

    @property
    def compute_threads(self) -> int:
        """The threads given, or one for each core that this process may use."""
        return self.threads or len(os.sched_getaffinity(0))


class Probed(msgspec.Struct, frozen=True):
    """What the probe answered of a model on some kernels.

    Whether the promise of D1 is kept, how prefixes are shared without changing an answer, and
    whether several sequences can be computed together at all.
    """

    repack: bool
    batch_invariant: bool
    sharing: PrefixSharing
    together: bool = True


class Loaded(msgspec.Struct, frozen=True):
    """A model in memory, and what is known of it.

    Whether answers depend on what else is served (D1), how prefixes may be shared, and whether
    several sequences may be computed ``together``. Without a probe the first is unknown, and the
    second is what the kind of model allows.
    """

    model: LlamaModel
    batch_invariant: bool
    sharing: PrefixSharing
    together: bool = True


def load(
    path: Path, options: EngineOptions, *, digest: str = "", notes: Notes | None = None
) -> Loaded:
    """The model on the fastest kernels that keep the promise of D1, and whether it is kept.

    With ``notes`` the probe runs once for each ``digest`` (the file's SHA-256 in hex), library,
    processor and number of threads. Its answer depends on nothing else.
    """
    if not options.exact:
        return _unproven(LlamaModel(path))
    multiply_row_by_row()
    about = (digest, kernels(), processor(), options.compute_threads, _PROBE)
    known = notes.read("probe", about, Probed) if notes is not None else None
    if known is None and not options.probe:
        return _unproven(LlamaModel(path))
    if known is None:
        model, found = _load_and_probe(path, options)
        if notes is not None:
            notes.write("probe", about, found)
        return _loaded(model, found)
    return _loaded(LlamaModel(path, repack=known.repack), known)


def _loaded(model: LlamaModel, found: Probed) -> Loaded:
    return Loaded(model, found.batch_invariant, found.sharing, found.together)


def _unproven(model: LlamaModel) -> Loaded:
    return Loaded(model, batch_invariant=False, sharing=model.unproven_sharing)


def _load_and_probe(path: Path, options: EngineOptions) -> tuple[LlamaModel, Probed]:
    model = LlamaModel(path)
    found = _probe(model, options)
    if not found.batch_invariant:
        model.close()
        model = LlamaModel(path, repack=False)
        found = _probe(model, options)
    return model, found


def _probe(model: LlamaModel, options: EngineOptions) -> Probed:
    """Ask in a small context of its own; the answer does not depend on the size.

    A sliding window is narrowed for it, so that a look behind one takes no minutes.

    It is done on a thread that ends, for the sake of libraries that were built with OpenMP: there,
    a thread that has computed once keeps its team for life, and with more threads in teams than
    there are cores none of them may spin. Every step would take twice as long.
    """
    from afterword.engine.batching import probe  # noqa: PLC0415
    from afterword.engine.llama.runner import temporary_runner  # noqa: PLC0415

    def ask(runner: ModelRunner) -> Probed:
        difference = probe.batch_difference(runner)
        if difference:
            # Where rows depend on their batch, a prefix from elsewhere changes them, too.
            return Probed(
                model.repack,
                batch_invariant=False,
                sharing="none",
                together=difference <= _MOST_ROUNDING,
            )
        return Probed(model.repack, batch_invariant=True, sharing=probe.proven_sharing(runner))

    with (
        model.narrowed(probe.WINDOW_TOKENS),
        temporary_runner(
            model, options.compute_threads, exact=True, slots=_PROBE_SLOTS, room=_PROBE_TOKENS
        ) as runner,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        return thread.submit(ask, runner).result()


def kernels() -> str:
    """The library, what it was built for, and what this project changed in it."""
    return f"{LIBRARY} {system_info()} {CHANGES}"
