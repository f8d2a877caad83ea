"""Memory of a model as the library counts it, and the largest context that fits."""

from __future__ import annotations

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.machine import memory_limit, release_pages, resident_bytes
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import (
    BLOCK_TOKENS,
    ROUND,
    ContextOptions,
    LlamaContext,
    context_blocks,
)
from afterword.engine.llama.devices import kv_room

_GIB = 2**30
_SYSTEM_SHARE = 16
"""One part in this many of the memory is left for the system and for later allocations."""
_CELL_BYTES, _HEAD_BYTES = 24, 1024
"""Upper bounds of a saved state's overhead: for each token's cell, and for its header."""
_VALUE_BYTES = 4


class Sizes(msgspec.Struct, frozen=True):
    """Bytes that a context takes once all of it is used.

    ``kv`` counts keys, values and recurrent states, ``packed`` the weights in their own memory,
    ``mapped`` the weights that are read from the mapped file.
    """

    kv: int
    buffers: int
    packed: int
    mapped: int

    @property
    def bytes(self) -> int:
        """What the process takes on top of its memory after the model is loaded."""
        return self.kv + self.buffers + self.mapped


class ModelMemory(msgspec.Struct, frozen=True):
    """Bytes of a model's state over all layers: for each ``token`` and for each ``sequence``.

    ``in_blocks`` tells whether sequences can share one memory of blocks.
    """

    token: int
    sequence: int
    in_blocks: bool = False

    @property
    def block_bytes(self) -> int:
        """Returns the bytes of a block."""
        return BLOCK_TOKENS * self.token

    def kv_bytes(self, options: ContextOptions) -> int:
        """Returns the bytes of the KV memory of a context."""
        if options.blocks:
            return options.blocks * self.block_bytes
        return options.slots * self.slot_bytes(options.slot_tokens)

    def slot_bytes(self, tokens: int) -> int:
        """Returns the bytes of a slot with room for ``tokens`` tokens."""
        return self.sequence + tokens * self.token

    def state_bytes(self, tokens: int) -> int:
        """Returns the most bytes that a saved state of ``tokens`` tokens takes."""
        return self.slot_bytes(tokens) + tokens * _CELL_BYTES + _HEAD_BYTES

    def most_tokens(self, slots: int, room_bytes: int) -> int:
        """Returns how many tokens each slot can have in ``room_bytes``; 0 if no state fits."""
        left = room_bytes // slots - self.sequence
        if left < 0:
            return 0
        return left // self.token if self.token else 2**31 - 1


def sizes_of(model: LlamaModel, context: LlamaContext, options: ContextOptions) -> Sizes:
    """Returns what a context takes, by the library's own count if it has one."""
    told = context.sizes()
    if told is None:
        return Sizes(options.slots * options.slot_tokens * _cell_bytes(model), 0, 0, 0)
    kv, buffers, packed, mapped = told
    if model.offload.layers:
        # Pages of mapped weights are the system's to drop, and the room may be a device's.
        packed, mapped = packed + mapped, 0
    # The library's buffers have room for a row of logits for each token of a batch. A step wants
    # ``max_rows`` at most, but the library keeps a second copy of these.
    row = model.vocabulary * _VALUE_BYTES
    unused = max(options.batch_tokens - 2 * options.max_rows, -options.max_rows) * row
    return Sizes(kv, max(buffers - unused, 0), packed, mapped)


def model_memory(model: LlamaModel, options: ContextOptions) -> ModelMemory:
    """Measure two small contexts, whose KV memory differs only in the number of tokens."""
    (few, in_blocks), (many, _) = (
        _kv_bytes(
            model, msgspec.structs.replace(options, slots=1, slot_tokens=tokens, blocks=blocks)
        )
        for tokens, blocks in (
            (ROUND, context_blocks(ROUND)),
            (2 * ROUND, context_blocks(2 * ROUND)),
        )
    )
    token = (many - few) // ROUND
    return ModelMemory(token, few - ROUND * token, in_blocks)


def _kv_bytes(model: LlamaModel, options: ContextOptions) -> tuple[int, bool]:
    """Returns the bytes of a context's KV memory, and whether it is blocks."""
    context = LlamaContext(model, options)
    try:
        return sizes_of(model, context, options).kv, context.in_blocks
    finally:
        context.close()


def _cell_bytes(model: LlamaModel) -> int:
    """Returns the bytes of a token by the metadata; exact for plain transformers only."""
    arch = model.architecture

    def number(key: str, otherwise: int) -> int:
        text = model.metadata(f"{arch}.{key}") or ""
        return int(text) if text.isdecimal() else otherwise

    heads = max(number("attention.head_count", 1), 1)
    width = number("embedding_length", 0) // heads
    values = number("attention.key_length", width) + number("attention.value_length", width)
    return number("block_count", 0) * number("attention.head_count_kv", heads) * values * 2


class Opened(msgspec.Struct, frozen=True):
    """A context with its options and sizes, and the bytes of the whole process."""

    context: LlamaContext
    options: ContextOptions
    sizes: Sizes
    process_bytes: int


def open_context(
    model: LlamaModel, memory: ModelMemory, wanted: ContextOptions, *, may_shrink: bool, name: str
) -> Opened:
    """Open the ``wanted`` context, or the largest that fits if it ``may_shrink``.

    If memory is short, there are fewer blocks than wanted, but always enough for one sequence.
    Raises ``ConfigError`` if it does not fit; the message names the largest that does.
    """
    # Packed weights are not read from the file again; the library counts those that are.
    release_pages(model.files)
    taken, limit = resident_bytes(), memory_limit()
    room = limit - limit // _SYSTEM_SHARE - taken
    on_devices = kv_room(model.offload)
    if on_devices is not None:
        room = min(room, on_devices)
    opened = _try(model, memory, wanted, room)
    fitting = opened if isinstance(opened, Opened) else _largest(model, memory, wanted, room)
    if fitting is not None and (may_shrink or isinstance(opened, Opened)):
        # The resident memory now includes what the library itself allocates for a context.
        process_bytes = resident_bytes() + fitting.sizes.bytes
        return msgspec.structs.replace(fitting, process_bytes=process_bytes)
    largest = "no context fits"
    if fitting is not None:
        fitting.context.close()
        largest = f"the largest --ctx that fits is {fitting.options.slot_tokens}"
        if wanted.slots > 1 and not wanted.blocks:
            largest += ", with fewer --max-sequences a larger one"
    slots = 1 if wanted.blocks else wanted.slots
    raise ConfigError(
        f"model {name}: sequences of {wanted.slot_tokens} tokens, at least {slots}, take "
        f"{memory.slot_bytes(wanted.slot_tokens) * slots / _GIB:.1f} GiB of KV memory, but "
        f"only {max(room, 0) / _GIB:.1f} of {limit / _GIB:.1f} GiB are free for that: {largest}"
    )


def _largest(
    model: LlamaModel, memory: ModelMemory, wanted: ContextOptions, room: int
) -> Opened | None:
    """Search for the largest context that fits, between one that fits and one that does not.

    Buffers grow roughly in proportion to the context, but only the library knows by how much. A
    context that the library cannot make does not fit.
    """

    def takes(tokens: int) -> int | None:
        made = _of_length(wanted, tokens)
        try:
            context = LlamaContext(model, made)
        except ConfigError:
            return None
        try:
            return sizes_of(model, context, made).bytes
        finally:
            context.close()

    slots = 1 if wanted.blocks else wanted.slots
    high = min(memory.most_tokens(slots, room), wanted.slot_tokens) // ROUND * ROUND
    low = min(2 * ROUND, high)
    if not low or (least := takes(low)) is None or least > room:
        return None
    most = takes(high)
    if most is not None and most <= room:
        low = high
    while high - low > ROUND:
        middle = (low + high) // 2
        if most is not None:
            middle = low + (high - low) * (room - least) // (most - least)
        middle = min(max(middle // ROUND * ROUND, low + ROUND), high - ROUND)
        taken = takes(middle)
        if taken is not None and taken <= room:
            low, least = middle, taken
        else:
            high, most = middle, taken
    opened = _try(model, memory, _of_length(wanted, low), room)
    return opened if isinstance(opened, Opened) else None


def _of_length(options: ContextOptions, tokens: int) -> ContextOptions:
    """Returns options for shorter sequences; with blocks, for as many as one sequence takes."""
    blocks = context_blocks(tokens) if options.blocks else 0
    return msgspec.structs.replace(options, slot_tokens=tokens, blocks=blocks)


def _try(
    model: LlamaModel, memory: ModelMemory, options: ContextOptions, room: int
) -> Opened | int:
    """Returns a context if it fits, else a lower bound of the bytes that are missing.

    It has fewer blocks if that is enough to make it fit.
    """
    excess = memory.kv_bytes(options) - room
    least = context_blocks(options.slot_tokens)
    if excess > 0 and options.blocks > least:
        fewer = max(options.blocks - -(-excess // memory.block_bytes), least)
        return _try(model, memory, msgspec.structs.replace(options, blocks=fewer), room)
    if excess > 0:
        return excess
    try:
        context = LlamaContext(model, options)
    except ConfigError:
        return 1
    sizes = sizes_of(model, context, options)
    excess = sizes.bytes - room
    if excess > 0:
        context.close()
        if options.blocks > least:
            fewer = max(options.blocks - -(-excess // memory.block_bytes), least)
            return _try(model, memory, msgspec.structs.replace(options, blocks=fewer), room)
        return excess
    return Opened(context, options, sizes, 0)
