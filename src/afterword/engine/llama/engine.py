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
from afterword.engine.llama.context import ContextOptions, LlamaContext
from afterword.engine.llama.loading import LIBRARY, EngineOptions, Loaded, kernels, load
from afterword.engine.llama.machine import memory_limit
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner, most_rows
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.engine.llama.weights import UNCHANGED, Weights

_log = logging.getLogger("afterword.engine")
_MOST_SLOTS = 8
_MEMORY_SHARE = 8
"""Slots that nobody asked for take at most one in this many parts of the memory that there is."""
_CHECKPOINT_SHARE = 16
"""So do the states that are kept of recurrent models, one in this many."""
_NUMERICS = 4
"""Raised whenever the sampler or the scorer may answer differently than before."""


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
    """Load a GGUF file whose header was checked, and start its engine; see ``open_model``."""
    loaded = load(path, options)
    opened = open_model(loaded, digest=digest, name=name, options=options, weights=weights)
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
    loaded: Loaded, *, digest: str, name: str, options: EngineOptions, weights: Weights = UNCHANGED
) -> OpenModel:
    """What an engine needs of a model that was loaded with these options; it owns the model.

    ``digest`` is the file's SHA-256 in hex. Where the file was converted, ``weights`` says so,
    and ``digest`` is that of the file it was made from.

    Raises ``ConfigError`` for a context larger than the model's, for a model that does not
    continue text, and where memory is short; the model is closed then.
    """
    model, invariant, sharing = loaded.model, loaded.batch_invariant, loaded.sharing
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
        runner = LlamaRunner(model, LlamaContext(model, made), made, sharing)
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
    _say(name, options, loaded)
    card = EngineCard(
        context_tokens=context,
        fingerprint=_fingerprint(weights.origin(digest), made, repack=model.repack),
        batch_invariant=invariant,
        prefix_sharing=sharing,
        details={
            "format": model.describe(),
            **weights.facts(),
            "slots": slots,
            "threads": made.threads,
            "kv": "exact" if made.exact else "fast",
            "kv_bytes": kv_bytes,
            "library": LIBRARY,
        },
    )
    return OpenModel(runner, tokenizer, card)


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


def _checkpoint_bytes(options: EngineOptions) -> int:
    """Memory for states that are kept; nobody asked for how much: a part of what there is."""
    if options.checkpoint_bytes is not None:
        return options.checkpoint_bytes
    return memory_limit() // _CHECKPOINT_SHARE


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


def _say(name: str, options: EngineOptions, loaded: Loaded) -> None:
    """Log what the promise of D1 is worth here, and what is not shared."""
    if loaded.batch_invariant:
        _log.info("model %s: answers do not depend on what else is served (probed)", name)
    elif not options.exact:
        _log.info("model %s: answers may depend on what else is served (--kv fast)", name)
    elif options.probe:
        _log.warning(
            "model %s: answers may depend on what else is served: this library computes the "
            "file's formats otherwise in batches of another size",
            name,
        )
    if loaded.sharing == "none":
        _log.warning(
            "model %s: every prompt is computed from its start: here a prefix of another prompt "
            "would change answers",
            name,
        )


def _fingerprint(origin: str, options: ContextOptions, *, repack: bool) -> str:
    """``fp_`` and ten hex digits of everything that may change an answer (D3)."""
    made = msgspec.json.encode(options).decode()
    parts = (origin, f"{kernels()} {repack}", str(_NUMERICS), made)
    return f"fp_{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}"
