"""Opens a GGUF file as an engine: decides slots, threads and memory, and says what it decided."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.protocols import EngineCard
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.probe import is_batch_invariant
from afterword.engine.batching.scheduler import kept_slots
from afterword.engine.llama.binding import (
    CHANGES,
    ContextOptions,
    LlamaModel,
    multiply_row_by_row,
    system_info,
)
from afterword.engine.llama.machine import memory_limit, processor
from afterword.engine.llama.notes import Notes
from afterword.engine.llama.runner import LlamaRunner
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.engine.llama.weights import LIBRARY_VERSION, UNCHANGED, Weights

_log = logging.getLogger("afterword.engine")
BATCH_TOKENS = 512
_ROW_BYTES = 64 * 1024 * 1024
"""Rows of logits that one step may want, as memory."""
_PROBE = 1
"""Raised whenever the probe may answer differently than before."""
_PROBE_SLOTS = 4
_PROBE_TOKENS = 256
_MOST_SLOTS = 8
_MEMORY_SHARE = 8
"""Slots that nobody asked for take at most one in this many parts of the memory that there is."""
_LIBRARY = f"llama-cpp-python {LIBRARY_VERSION}"
_NUMERICS = 3
"""Raised whenever the sampler or the scorer may answer differently than before."""


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


class OpenModel(msgspec.Struct, frozen=True):
    """All that an engine is made of. Closing the runner frees it."""

    runner: LlamaRunner
    tokenizer: LlamaTokenizer
    card: EngineCard


def open_engine(
    path: Path,
    *,
    digest: str,
    name: str,
    options: EngineOptions,
    weights: Weights = UNCHANGED,
) -> BatchingEngine:
    """Open a file and start its engine; see ``open_model``."""
    opened = open_model(path, digest=digest, name=name, options=options, weights=weights)
    return start_engine(opened, options)


def start_engine(opened: OpenModel, options: EngineOptions) -> BatchingEngine:
    """An engine on a model that was opened with these options, and is its own from now on."""
    return BatchingEngine(
        opened.runner,
        opened.tokenizer,
        opened.card,
        max_waiting=options.max_waiting,
        score_budget_bytes=options.score_cache_bytes,
        target_gap_ms=options.target_gap_ms,
        drafts=options.prompt_lookup,
    )


def open_model(
    path: Path,
    *,
    digest: str,
    name: str,
    options: EngineOptions,
    weights: Weights = UNCHANGED,
    notes: Notes | None = None,
) -> OpenModel:
    """Load a GGUF file whose header was checked; ``digest`` is its SHA-256 in hex.

    Where the file was converted, ``weights`` says so, and ``digest`` is that of the file it was
    made from. With ``notes`` the probe is not asked again what it was asked before.

    Raises ``ConfigError`` for a context larger than the model's, for a model that does not
    continue text, and where memory is short.
    """
    origin = f"{digest} {weights.form}"
    loaded = load(path, options, origin=origin, notes=notes)
    model, invariant = loaded.model, loaded.batch_invariant
    try:
        context = _context(model, name, options)
        tokenizer = LlamaTokenizer(model)
        slots = options.slots or _default_slots(model, context)
        made = ContextOptions(
            slots=slots + kept_slots(slots),
            slot_tokens=context,
            batch_tokens=BATCH_TOKENS,
            max_rows=most_rows(model),
            threads=options.compute_threads,
            exact=options.exact,
        )
        kv_bytes = _kv_bytes(model, name, made)
        runner = LlamaRunner(model, model.open_context(made), made)
    except BaseException:
        model.close()
        raise
    _log.info(
        "model %s: %d slots of %d tokens, %.2f GiB of KV memory",
        name,
        made.slots,
        context,
        kv_bytes / 2**30,
    )
    _say(name, options, invariant=invariant)
    card = EngineCard(
        context_tokens=context,
        fingerprint=_fingerprint(origin, made, repack=model.repack),
        batch_invariant=invariant,
        details={
            "format": model.describe(),
            **weights.facts(),
            "slots": slots,
            "threads": made.threads,
            "kv": "exact" if made.exact else "fast",
            "kv_bytes": kv_bytes,
            "library": _LIBRARY,
        },
    )
    return OpenModel(runner, tokenizer, card)


def most_rows(model: LlamaModel) -> int:
    """Rows of logits that one step may want."""
    return max(32, min(BATCH_TOKENS, _ROW_BYTES // (4 * model.vocabulary)))


@contextmanager
def temporary_runner(
    model: LlamaModel, threads: int, *, exact: bool, slots: int, room: int
) -> Iterator[LlamaRunner]:
    """A runner with room for ``room`` tokens a slot at most; the model stays open after it."""
    made = ContextOptions(
        slots=slots,
        slot_tokens=min(room, model.context_tokens),
        batch_tokens=BATCH_TOKENS,
        max_rows=most_rows(model),
        threads=threads,
        exact=exact,
    )
    context = model.open_context(made)
    try:
        yield LlamaRunner(model, context, made)
    finally:
        context.close()


def _context(model: LlamaModel, name: str, options: EngineOptions) -> int:
    if not model.decodes:
        raise ConfigError(f"model {name}: this is an encoder, it cannot continue text")
    context = options.ctx or model.context_tokens
    if context > model.context_tokens:
        raise ConfigError(
            f"model {name}: --ctx {context} is larger than the model's context of "
            f"{model.context_tokens} tokens"
        )
    return context


def _default_slots(model: LlamaModel, context: int) -> int:
    slot_bytes = max(context * model.cell_bytes(), 1)
    return max(1, min(_MOST_SLOTS, memory_limit() // _MEMORY_SHARE // slot_bytes))


def _kv_bytes(model: LlamaModel, name: str, made: ContextOptions) -> int:
    """KV memory of all slots. It is taken as it is used: what is too much has to be said now."""
    kv_bytes, limit = made.slots * made.slot_tokens * model.cell_bytes(), memory_limit()
    if kv_bytes > limit:
        raise ConfigError(
            f"model {name}: {made.slots} slots of {made.slot_tokens} tokens take "
            f"{kv_bytes / 2**30:.1f} GiB of KV memory, and there are {limit / 2**30:.1f}; "
            "try a smaller --ctx or fewer --slots"
        )
    return kv_bytes


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
    about = (origin, _kernels(), processor(), options.compute_threads, _PROBE)
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
    with (
        temporary_runner(
            model, options.compute_threads, exact=True, slots=_PROBE_SLOTS, room=_PROBE_TOKENS
        ) as runner,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        return thread.submit(is_batch_invariant, runner).result()


def _say(name: str, options: EngineOptions, *, invariant: bool) -> None:
    """Log what the promise of D1 is worth here."""
    if invariant:
        _log.info("model %s: answers do not depend on what else is served (probed)", name)
    elif not options.exact:
        _log.info("model %s: answers may depend on what else is served (--kv fast)", name)
    elif options.probe:
        _log.warning(
            "model %s: answers may depend on what else is served: this library computes the "
            "file's formats otherwise in batches of another size",
            name,
        )


def _fingerprint(origin: str, options: ContextOptions, *, repack: bool) -> str:
    """``fp_`` and ten hex digits of everything that may change an answer (D3)."""
    made = msgspec.json.encode(options).decode()
    parts = (origin, f"{_kernels()} {repack}", str(_NUMERICS), made)
    return f"fp_{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}"


def _kernels() -> str:
    """The library, what it was built for, and what this project changed in it."""
    return f"{_LIBRARY} {system_info()} {CHANGES}"
