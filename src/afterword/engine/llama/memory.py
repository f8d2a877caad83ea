"""What a model takes in memory, as the library itself counts it, and the context that fits."""

from __future__ import annotations

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import ContextOptions, LlamaContext
from afterword.engine.llama.machine import memory_limit, release_pages, resident_bytes

_GIB = 2**30
_ROUND = 256
"""The library rounds the cells of a slot up to a multiple of this."""
_SYSTEM_SHARE = 16
"""One part in this many is left to the system and to what the process takes later."""
_CELL_BYTES, _HEAD_BYTES = 24, 1024
"""Of a saved state, at most: what it says of a token's cell, and of itself."""
_VALUE_BYTES = 4


class Sizes(msgspec.Struct, frozen=True):
    """Bytes that a context takes once all of it is used.

    ``kv`` are keys, values and recurrent states, ``packed`` weights in memory of their own,
    ``mapped`` weights that are read in the file.
    """

    kv: int
    buffers: int
    packed: int
    mapped: int

    @property
    def bytes(self) -> int:
        """What a process takes besides that which it has taken when the model is loaded."""
        return self.kv + self.buffers + self.mapped


class ModelMemory(msgspec.Struct, frozen=True):
    """Bytes of a model's state, over all layers: of each token, and of a sequence of any length."""

    token: int
    sequence: int

    def slot_bytes(self, tokens: int) -> int:
        """Memory of a slot with room for so many tokens."""
        return self.sequence + tokens * self.token

    def state_bytes(self, tokens: int) -> int:
        """The size that a saved state of a sequence has at most."""
        return self.slot_bytes(tokens) + tokens * _CELL_BYTES + _HEAD_BYTES

    def most_tokens(self, slots: int, room_bytes: int) -> int:
        """How many tokens every slot can have in ``room_bytes``; 0 where not even a state fits."""
        left = room_bytes // slots - self.sequence
        if left < 0:
            return 0
        return left // self.token if self.token else 2**31 - 1


def sizes_of(model: LlamaModel, context: LlamaContext, options: ContextOptions) -> Sizes:
    """What a context takes, by the library's own count."""
    told = context.sizes()
    if told is None:
        return Sizes(options.slots * options.slot_tokens * _cell_bytes(model), 0, 0, 0)
    kv, buffers, packed, mapped = told
    # Buffers have room for a row of logits of each token of a batch. No step wants so many; those
    # that it wants have a second place, where the library would copy them to.
    row = model.vocabulary * _VALUE_BYTES
    unused = max(options.batch_tokens - 2 * options.max_rows, -options.max_rows) * row
    return Sizes(kv, max(buffers - unused, 0), packed, mapped)


def model_memory(model: LlamaModel, options: ContextOptions) -> ModelMemory:
    """Asked of two small contexts, whose KV memory differs by their tokens alone."""
    few, many = (
        _kv_bytes(model, msgspec.structs.replace(options, slots=1, slot_tokens=tokens))
        for tokens in (_ROUND, 2 * _ROUND)
    )
    token = (many - few) // _ROUND
    return ModelMemory(token, few - _ROUND * token)


def _kv_bytes(model: LlamaModel, options: ContextOptions) -> int:
    context = LlamaContext(model, options)
    try:
        return sizes_of(model, context, options).kv
    finally:
        context.close()


def _cell_bytes(model: LlamaModel) -> int:
    """What the metadata tells of a plain transformer, for a library that cannot be asked."""
    arch = model.metadata("general.architecture") or ""

    def number(key: str, otherwise: int) -> int:
        text = model.metadata(f"{arch}.{key}") or ""
        return int(text) if text.isdecimal() else otherwise

    heads = max(number("attention.head_count", 1), 1)
    width = number("embedding_length", 0) // heads
    values = number("attention.key_length", width) + number("attention.value_length", width)
    return number("block_count", 0) * number("attention.head_count_kv", heads) * values * 2


class Opened(msgspec.Struct, frozen=True):
    """A context, what it was made with, what it takes, and what the process takes with it."""

    context: LlamaContext
    options: ContextOptions
    sizes: Sizes
    process_bytes: int


def open_context(
    model: LlamaModel, memory: ModelMemory, wanted: ContextOptions, *, may_shrink: bool, name: str
) -> Opened:
    """The context that was wanted, or the largest that fits where it ``may_shrink``.

    Raises ``ConfigError`` where it does not fit; the largest that would is named.
    """
    # Of packed weights the file is read no more; what is read of it is counted by the library.
    release_pages(model.files)
    taken, limit = resident_bytes(), memory_limit()
    room = limit - limit // _SYSTEM_SHARE - taken
    opened = _try(model, memory, wanted, room)
    fitting = opened if isinstance(opened, Opened) else _largest(model, memory, wanted, room)
    if fitting is not None and (may_shrink or isinstance(opened, Opened)):
        # What the library takes for a context besides is taken by now.
        process_bytes = resident_bytes() + fitting.sizes.bytes
        return msgspec.structs.replace(fitting, process_bytes=process_bytes)
    largest = "no context fits"
    if fitting is not None:
        fitting.context.close()
        largest = f"the largest --ctx that fits is {fitting.options.slot_tokens}"
        if wanted.slots > 1:
            largest += ", with fewer --slots a larger one"
    raise ConfigError(
        f"model {name}: {wanted.slots} slots of {wanted.slot_tokens} tokens take "
        f"{memory.slot_bytes(wanted.slot_tokens) * wanted.slots / _GIB:.1f} GiB of KV memory, and "
        f"of {limit / _GIB:.1f} GiB there are {max(room, 0) / _GIB:.1f} for that: {largest}"
    )


def _largest(
    model: LlamaModel, memory: ModelMemory, wanted: ContextOptions, room: int
) -> Opened | None:
    """The largest context that fits, looked for between one that does and one that does not.

    Buffers grow with the context, about evenly, by how much only the library knows. What the
    library cannot make does not fit.
    """

    def takes(tokens: int) -> int | None:
        made = msgspec.structs.replace(wanted, slot_tokens=tokens)
        try:
            context = LlamaContext(model, made)
        except ConfigError:
            return None
        try:
            return sizes_of(model, context, made).bytes
        finally:
            context.close()

    high = min(memory.most_tokens(wanted.slots, room), wanted.slot_tokens) // _ROUND * _ROUND
    low = min(2 * _ROUND, high)
    if not low or (least := takes(low)) is None or least > room:
        return None
    most = takes(high)
    if most is not None and most <= room:
        low = high
    while high - low > _ROUND:
        guess = (low + high) // 2
        if most is not None:
            guess = low + (high - low) * (room - least) // (most - least)
        guess = min(max(guess // _ROUND * _ROUND, low + _ROUND), high - _ROUND)
        taken = takes(guess)
        if taken is not None and taken <= room:
            low, least = guess, taken
        else:
            high, most = guess, taken
    opened = _try(model, memory, msgspec.structs.replace(wanted, slot_tokens=low), room)
    return opened if isinstance(opened, Opened) else None


def _try(
    model: LlamaModel, memory: ModelMemory, options: ContextOptions, room: int
) -> Opened | int:
    """A context if it fits, or the bytes that it takes too many, at least."""
    excess = memory.slot_bytes(options.slot_tokens) * options.slots - room
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
        return excess
    return Opened(context, options, sizes, 0)
