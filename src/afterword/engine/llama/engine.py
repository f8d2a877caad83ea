"""Opens a GGUF file as an engine: chooses slots, threads and memory, and logs the choice."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.fingerprint import fingerprint
from afterword.core.machine import memory_limit
from afterword.core.protocols import EngineCard
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.scheduler import kept_slots
from afterword.engine.llama.binding import LIBRARY, LlamaModel
from afterword.engine.llama.context import MOST_SEQUENCES, ContextOptions, context_blocks
from afterword.engine.llama.devices import backends, kv_room
from afterword.engine.llama.loading import EngineOptions, Loaded, falls_back, kernels, load
from afterword.engine.llama.memory import ModelMemory, Opened, model_memory, open_context
from afterword.engine.llama.offload import Offload
from afterword.engine.llama.runner import BATCH_TOKENS, LlamaRunner, most_rows
from afterword.engine.llama.vocab import LlamaTokenizer
from afterword.models.notes import Notes

_log = logging.getLogger("afterword.engine")
_MOST_SLOTS = 8
"""By default, as many sequences of models whose memory is not blocks."""
_MEMORY_SHARE = 8
"""By default, KV takes at most one part in this many of the memory."""
_GPU_SHARE = 2
"""By default, KV takes at most one part in this many of the room that a GPU has for it."""
_CHECKPOINT_SHARE = 16
"""By default, checkpoints take at most one part in this many of the memory."""
_ON_GPU = (
    "; kernels of GPUs seldom are: --gpu-layers 0 keeps the promise, and --kv fast gives it up and "
    "shares prefixes"
)
_NUMERICS = 6
"""Increase it when a change of sampling, scoring or end tokens may change an answer."""


class OpenModel(msgspec.Struct, frozen=True):
    """The parts of an engine. Closing the runner frees the model."""

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
    """Load a GGUF file with a checked header, and start its engine; see ``open_model``."""
    loaded = load(path, options)
    opened = open_model(loaded, digest=digest, name=name, options=options)
    return start_engine(opened, options)


def start_engine(opened: OpenModel, options: EngineOptions) -> BatchingEngine:
    """Start the engine of a model that was opened with these options. The engine owns it."""
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
    """Open a context and a tokenizer for a model that was loaded with these options.

    The result owns the model. ``digest`` is the file's SHA-256 in hex. ``notes`` remember the
    model's memory. Without ``options.ctx`` the context is the largest one that fits.

    If a GPU has no room for the context, and nobody named a number of layers, the model is loaded
    anew and all layers run on the processor.

    Raises ``ConfigError`` if the context is larger than the model's, if the model does not
    continue text, or if memory is short; the model is closed then.
    """
    offload, path = loaded.model.offload, loaded.model.files[0]
    try:
        return _open(loaded, digest, name, options, notes)
    except ConfigError as error:
        if not falls_back(offload, options):
            raise
        instead = Offload(why_not=str(error))
    loaded = load(path, options, digest=digest, notes=notes, offload=instead)
    return _open(loaded, digest, name, options, notes)


def _open(
    loaded: Loaded, digest: str, name: str, options: EngineOptions, notes: Notes | None
) -> OpenModel:
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
        slots = _sequences(memory, loaded, options, context)
        wanted = msgspec.structs.replace(
            wanted,
            slots=min(slots + kept_slots(slots), MOST_SEQUENCES),
            max_rows=max(wanted.max_rows, slots + 1),
            blocks=_blocks(memory, loaded, options, context, name),
        )
        opened = open_context(model, memory, wanted, may_shrink=options.ctx is None, name=name)
        made, sizes = opened.options, opened.sizes
        runner = LlamaRunner(model, opened.context, made, sharing, memory)
    except BaseException:
        model.close()
        raise
    _say_offload(name, model.offload)
    _say_memory(name, slots, wanted, opened)
    _say_fewer(name, slots, loaded, options)
    _say(name, options, loaded)
    card = EngineCard(
        context_tokens=made.slot_tokens,
        fingerprint=_fingerprint(digest, made, model.offload, repack=model.repack),
        batch_invariant=invariant,
        prefix_sharing=sharing,
        details={
            "format": model.describe(),
            "max_sequences": slots,
            "threads": made.threads,
            "kv": "exact" if made.exact else "fast",
            "kv_bytes": sizes.kv,
            "weights_bytes": sizes.packed + sizes.mapped,
            "buffer_bytes": sizes.buffers,
            "process_bytes": opened.process_bytes,
            "library": LIBRARY,
            **(model.offload.details() if backends() or model.offload.why_not else {}),
        },
    )
    return OpenModel(runner, tokenizer, card)


def _memory(
    model: LlamaModel, options: ContextOptions, digest: str, notes: Notes | None
) -> ModelMemory:
    """Returns the model's memory, measured once for each file and library."""
    about = (digest, kernels(), options.exact, *model.offload.origin)
    known = notes.read("memory", about, ModelMemory) if notes is not None else None
    if known is None:
        known = model_memory(model, options)
        if notes is not None:
            notes.write("memory", about, known)
    return known


def _say_offload(name: str, offload: Offload) -> None:
    if offload.why_not:
        _log.warning("model %s: all layers run on the processor: %s", name, offload.why_not)
    elif offload.layers:
        _log.info("model %s: %s", name, offload)


def _say_memory(name: str, sequences: int, wanted: ContextOptions, opened: Opened) -> None:
    made, sizes = opened.options, opened.sizes
    if made.slot_tokens < wanted.slot_tokens:
        _log.warning(
            "model %s: a context of %d tokens is the largest that fits into this memory; the "
            "model's own is %d",
            name,
            made.slot_tokens,
            wanted.slot_tokens,
        )
    if wanted.blocks > made.blocks >= context_blocks(wanted.slot_tokens):
        _log.warning(
            "model %s: there is memory for %d of %d blocks of KV; fewer prefixes are kept",
            name,
            made.blocks,
            wanted.blocks,
        )
    _log.info(
        "model %s: up to %d sequences of %d tokens; %.2f GiB of weights, %.2f GiB of KV memory and "
        "states, %.2f GiB of buffers: %.2f GiB for the process, and kept scores and graphs",
        name,
        sequences,
        made.slot_tokens,
        (sizes.packed + sizes.mapped) / 2**30,
        sizes.kv / 2**30,
        sizes.buffers / 2**30,
        opened.process_bytes / 2**30,
    )


def _say_fewer(name: str, sequences: int, loaded: Loaded, options: EngineOptions) -> None:
    """Log why fewer sequences than --max-sequences says are computed at once."""
    if not loaded.together or sequences >= options.sequences:
        return
    _log.info(
        "model %s: %d sequences at once, not the %d of --max-sequences: each has KV memory of its "
        "own%s; --slots sets more",
        name,
        sequences,
        options.sequences,
        " with layers on a GPU" if loaded.model.offload.layers else "",
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


def _checkpoint_bytes(options: EngineOptions) -> int:
    """Returns the budget of checkpoints; by default a share of the memory."""
    if options.checkpoint_bytes is not None:
        return options.checkpoint_bytes
    return memory_limit() // _CHECKPOINT_SHARE


def _kv_bytes(options: EngineOptions, offload: Offload) -> int:
    """Returns the bound of KV memory; by default a share of the memory, or of a GPU's room."""
    if options.kv_bytes:
        return options.kv_bytes
    room = kv_room(offload)
    return memory_limit() // _MEMORY_SHARE if room is None else room // _GPU_SHARE


def _in_blocks(memory: ModelMemory, loaded: Loaded) -> bool:
    # States are copied whole, and blocks have none.
    return memory.in_blocks and loaded.sharing != "checkpoints"


def _sequences(memory: ModelMemory, loaded: Loaded, options: EngineOptions, context: int) -> int:
    """Returns how many sequences may run at once, without the one kept for new requests.

    If each has memory of its own, the default is what the bound of KV memory holds.
    """
    if not loaded.together:
        return 1
    if _in_blocks(memory, loaded) or options.slots:
        return options.sequences
    slot_bytes = max(memory.slot_bytes(context), 1)
    kv_bytes = _kv_bytes(options, loaded.model.offload)
    return max(1, min(_MOST_SLOTS, options.max_sequences, kv_bytes // slot_bytes))


def _blocks(
    memory: ModelMemory, loaded: Loaded, options: EngineOptions, context: int, name: str
) -> int:
    """Returns how many blocks the bound of KV memory holds; 0 for a memory that is not blocks.

    By default there are always enough for one sequence. Raises ``ConfigError`` if a bound was
    given that has not enough.
    """
    if not _in_blocks(memory, loaded):
        return 0
    kv_bytes = _kv_bytes(options, loaded.model.offload)
    blocks, least = kv_bytes // memory.block_bytes, context_blocks(context)
    if blocks < least and options.kv_bytes:
        least_mib = -(-least * memory.block_bytes // 2**20)
        raise ConfigError(
            f"model {name}: --kv-mib {options.kv_bytes // 2**20} is too little for one sequence of "
            f"{context} tokens, which takes {least_mib} MiB; a smaller --ctx takes less"
        )
    return max(blocks, least)


def _say(name: str, options: EngineOptions, loaded: Loaded) -> None:
    """Log whether answers are batch invariant (D1), and what is not shared."""
    if loaded.batch_invariant:
        _log.info("model %s: answers do not depend on what else is served (probed)", name)
    elif not options.exact:
        _log.info("model %s: answers may depend on what else is served (--kv fast)", name)
    elif options.probe:
        _log.warning(
            "model %s: answers may depend on what else is served: the probe did not confirm that "
            "rows are identical alone and in a larger batch%s",
            name,
            _ON_GPU if loaded.model.offload.layers else "",
        )
    if not loaded.together:
        _log.warning(
            "model %s: one sequence is computed at a time: the probe did not confirm that several "
            "sequences in one batch give correct rows",
            name,
        )
    if loaded.sharing == "none":
        _log.warning(
            "model %s: every prompt is computed from its start: the probe did not confirm that a "
            "prefix of another prompt gives identical rows",
            name,
        )


def _fingerprint(digest: str, options: ContextOptions, offload: Offload, *, repack: bool) -> str:
    """Returns the fingerprint of all that may change an answer (D3)."""
    # How much memory there is for prefixes changes no answer.
    made = msgspec.json.encode(msgspec.structs.replace(options, blocks=0)).decode()
    return fingerprint(digest, f"{kernels()} {repack}", _NUMERICS, made, *offload.origin)
