"""Opens a GGUF file as an engine: decides slots, threads and memory, and says what it decided."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.protocols import EngineCard
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama.binding import ContextOptions, LlamaModel, system_info
from afterword.engine.llama.runner import LlamaRunner
from afterword.engine.llama.vocab import LlamaTokenizer

_BATCH_TOKENS = 512
_ROW_BYTES = 32 * 1024 * 1024
"""Rows of logits that one step may want, as memory."""
_MOST_SLOTS = 8
_MEMORY_SHARE = 8
"""Slots that nobody asked for take at most one in this many parts of the machine's memory."""
_LIBRARY = "llama-cpp-python 0.3.36"
_NUMERICS = 1
"""Raised whenever the sampler or the scorer may answer differently than before."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may say of an engine; None is decided here.

    ``exact`` promises that answers do not depend on what else is being served (D1).
    """

    ctx: int | None = None
    slots: int | None = None
    threads: int | None = None
    exact: bool = True
    max_waiting: int = 256
    target_gap_ms: int = 200


def open_engine(path: Path, *, digest: str, name: str, options: EngineOptions) -> BatchingEngine:
    """Load a GGUF file whose header was checked; ``digest`` is its SHA-256 in hex.

    Raises ``ConfigError`` for a context larger than the model's, for a model that does not
    continue text, and where memory is short.
    """
    model = LlamaModel(path)
    try:
        context = _context(model, name, options)
        tokenizer = LlamaTokenizer(model)
        made = ContextOptions(
            slots=options.slots or _default_slots(model, context),
            slot_tokens=context,
            batch_tokens=_BATCH_TOKENS,
            max_rows=max(32, min(_BATCH_TOKENS, _ROW_BYTES // (4 * model.vocabulary))),
            threads=options.threads or len(os.sched_getaffinity(0)),
            exact=options.exact,
        )
        runner = LlamaRunner(model, made)
    except BaseException:
        model.close()
        raise
    kv_bytes = made.slots * context * model.cell_bytes()
    card = EngineCard(
        context_tokens=context,
        fingerprint=_fingerprint(digest, made),
        details={
            "format": model.describe(),
            "slots": made.slots,
            "threads": made.threads,
            "kv": "exact" if made.exact else "fast",
            "kv_bytes": kv_bytes,
            "library": _LIBRARY,
        },
    )
    return BatchingEngine(
        runner,
        tokenizer,
        card,
        max_waiting=options.max_waiting,
        target_gap_ms=options.target_gap_ms,
    )


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    slot_bytes = max(context * model.cell_bytes(), 1)
    return max(1, min(_MOST_SLOTS, memory // _MEMORY_SHARE // slot_bytes))


def _fingerprint(digest: str, options: ContextOptions) -> str:
    """``fp_`` and ten hex digits of everything that may change an answer (D3)."""
    parts = (digest, _LIBRARY, system_info(), str(_NUMERICS), msgspec.json.encode(options).decode())
    return f"fp_{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}"
