"""Opens a GGUF file as an engine: decides slots, threads and memory, and says what it decided."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.protocols import EngineCard
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.scheduler import kept_slots
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import ContextOptions
from afterword.engine.llama.loading import LIBRARY, EngineOptions, Loaded, kernels, load
from afterword.engine.llama.machine import memory_limit
from afterword.engine.llama.memory import ModelMemory, Opened, model_memory, open_context
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner, most_rows
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.models.notes import Notes

_log = logging.getLogger("afterword.engine")
_MOST_SLOTS = 8
_MEMORY_SHARE = 8
"""Slots that nobody asked for take at most one in this many parts of the memory that there is."""
_CHECKPOINT_SHARE = 16
"""So do the states that are kept of recurrent models, one in this many."""
_NUMERICS = 5
"""Raised whenever the sampler, the scorer or what ends a generation may answer differently."""


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
) -> BatchingEngine:
    """Load a GGUF file whose header was checked, and start its engine; see ``open_model``."""
    loaded = load(path, options)
    opened = open_model(loaded, digest=digest, name=name, options=options)
    return start_engine(opened, options)


def start_engine(opened: OpenModel, options: EngineOptions) -> BatchingEngine:
    """An engine on a model that was opened with these options, and is its own from now on."""
    return BatchingEngine(
        opened.runner,
        opened.tokenizer,
        opened.card,
        max_waiting=options.max_waiting,
        score_budget_bytes=options.score_cache_bytes,
        checkpoint_budget_bytes=_checkpoint_bytes(options),
        target_gap_ms=options.target_gap_ms,
        drafts=options.prompt_lookup,
    )


def open_model(
    loaded: Loaded,
    *,
    digest: str,
    name: str,
    options: EngineOptions,
    notes: Notes | None = None,
) -> OpenModel:
    """What an engine needs of a model that was loaded with these options; it owns the model.

    ``digest`` is the file's SHA-256 in hex. ``notes`` keep what the model takes in memory. Without
    a context in ``options`` the engine gets the largest one that fits.

    Raises ``ConfigError`` for a context larger than the model's, for a model that does not
    continue text, and where memory is short; the model is closed then.
    """
    model, invariant, sharing = loaded.model, loaded.batch_invariant, loaded.sharing
    try:
        context = _context(model, name, options)
        tokenizer = LlamaTokenizer(model)
        wanted = ContextOptions(
            slots=1,
            slot_tokens=context,
            batch_tokens=BATCH_TOKENS,
            max_rows=most_rows(model),
            threads=options.compute_threads,
            exact=options.exact,
        )
        memory = _memory(model, wanted, digest, notes)
        slots = options.slots or _default_slots(memory, context) if loaded.together else 1
        wanted = msgspec.structs.replace(wanted, slots=slots + kept_slots(slots))
        opened = open_context(model, memory, wanted, may_shrink=options.ctx is None, name=name)
        made, sizes = opened.options, opened.sizes
        runner = LlamaRunner(model, opened.context, made, sharing, memory)
    except BaseException:
        model.close()
        raise
    _say_memory(name, wanted, opened)
    _say(name, options, loaded)
    card = EngineCard(
        context_tokens=made.slot_tokens,
        fingerprint=_fingerprint(digest, made, repack=model.repack),
        batch_invariant=invariant,
        prefix_sharing=sharing,
        details={
            "format": model.describe(),
            "slots": slots,
            "threads": made.threads,
            "kv": "exact" if made.exact else "fast",
            "kv_bytes": sizes.kv,
            "weights_bytes": sizes.packed + sizes.mapped,
            "buffer_bytes": sizes.buffers,
            "process_bytes": opened.process_bytes,
            "library": LIBRARY,
        },
    )
    return OpenModel(runner, tokenizer, card)


def _memory(
    model: LlamaModel, options: ContextOptions, digest: str, notes: Notes | None
) -> ModelMemory:
    """What the model takes, asked once for each file and library."""
    about = (digest, kernels(), options.exact)
    known = notes.read("memory", about, ModelMemory) if notes is not None else None
    if known is None:
        known = model_memory(model, options)
        if notes is not None:
            notes.write("memory", about, known)
    return known


def _say_memory(name: str, wanted: ContextOptions, opened: Opened) -> None:
    made, sizes = opened.options, opened.sizes
    if made.slot_tokens < wanted.slot_tokens:
        _log.warning(
            "model %s: a context of %d tokens is the largest that fits into this memory; the "
            "model's own is %d (fewer --slots leave more for each)",
            name,
            made.slot_tokens,
            wanted.slot_tokens,
        )
    _log.info(
        "model %s: %d slots of %d tokens; %.2f GiB of weights, %.2f GiB of KV memory and states, "
        "%.2f GiB of buffers: at most %.2f GiB for the process",
        name,
        made.slots,
        made.slot_tokens,
        (sizes.packed + sizes.mapped) / 2**30,
        sizes.kv / 2**30,
        sizes.buffers / 2**30,
        opened.process_bytes / 2**30,
    )


def _context(model: LlamaModel, name: str, options: EngineOptions) -> int:
    if not model.decodes:
        raise ConfigError(f"model {name}: this is an encoder, it cannot continue text")
    if not model.context_tokens:
        raise ConfigError(f"model {name}: the file says that its context has no tokens")
    context = options.ctx or model.context_tokens
    if context > model.context_tokens:
        raise ConfigError(
            f"model {name}: --ctx {context} is larger than the model's context of "
            f"{model.context_tokens} tokens"
        )
    return context


def _checkpoint_bytes(options: EngineOptions) -> int:
    """Memory for states that are kept; nobody asked for how much: a part of what there is."""
    if options.checkpoint_bytes is not None:
        return options.checkpoint_bytes
    return memory_limit() // _CHECKPOINT_SHARE


def _default_slots(memory: ModelMemory, context: int) -> int:
    slot_bytes = max(memory.slot_bytes(context), 1)
    return max(1, min(_MOST_SLOTS, memory_limit() // _MEMORY_SHARE // slot_bytes))


def _say(name: str, options: EngineOptions, loaded: Loaded) -> None:
    """Log what the promise of D1 is worth here, and what is not shared."""
    if loaded.batch_invariant:
        _log.info("model %s: answers do not depend on what else is served (probed)", name)
    elif not options.exact:
        _log.info("model %s: answers may depend on what else is served (--kv fast)", name)
    elif options.probe:
        _log.warning(
            "model %s: answers may depend on what else is served: rows computed alone and among "
            "others were not found to be the same",
            name,
        )
    if not loaded.together:
        _log.warning(
            "model %s: one sequence is computed at a time: several together were not found to come "
            "out right",
            name,
        )
    if loaded.sharing == "none":
        _log.warning(
            "model %s: every prompt is computed from its start: a prefix of another prompt was not "
            "found to serve as well",
            name,
        )


def _fingerprint(digest: str, options: ContextOptions, *, repack: bool) -> str:
    """``fp_`` and ten hex digits of everything that may change an answer (D3)."""
    made = msgspec.json.encode(options).decode()
    parts = (digest, f"{kernels()} {repack}", str(_NUMERICS), made)
    return f"fp_{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}"
