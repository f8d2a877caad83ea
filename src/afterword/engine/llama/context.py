"""llama.cpp's contexts, and the thread pool that computes for all contexts of the process.

The code that opens a ``LlamaContext`` closes it. Pointers never leave this file.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.errors import ConfigError
from afterword.engine.arrays import Row
from afterword.engine.llama.binding import CHANGES, LlamaModel, additions, lib
from afterword.engine.llama.fair_lock import FairLock
from afterword.engine.llama.guard import NativeError, guarded, returning
from afterword.engine.llama.native import Sizes
from afterword.engine.llama.offload import Offload
from afterword.engine.llama.thread_count import ThreadCount
from afterword.engine.sampler import Exponentials
from afterword.engine.sampler import exponentials as _by_numpy

State: TypeAlias = npt.NDArray[np.uint8]
_log = logging.getLogger("afterword.llama")
THREW = -100
"""The code that ``decode`` returns for an exception of the library."""
_WHOLE = 1 << 16
"""Flag: a saved state includes cells behind a sliding window. Unchanged libraries ignore it."""
ROUND = 256
"""The library rounds the tokens of a sequence up to a multiple of this."""
_GGML_TYPE_F16 = 1
_GGML_TYPE_BF16 = 30

BLOCK_TOKENS = 64
"""Tokens of a block of KV memory, as the library has it: the tile of attention."""
_MOST_CELLS = 2**32 - 1
"""The library counts the tokens of all sequences in 32 bits."""
MOST_SEQUENCES = 256
"""The library's limit for the sequences of a batch."""

ATTENTION_BY_ROWS = bool(CHANGES)
"""Whether the library's attention gives identical rows in batches of any size."""
_fork = returning(additions, "llama_afterword_fork", ctypes.c_bool)
_sizes = returning(additions, "llama_afterword_memory", Sizes)
_ragged = additions.get("llama_afterword_ragged")
_want_blocks = additions.get("llama_afterword_want_blocks")
_has_blocks = additions.get("llama_afterword_has_blocks")
_bind: Any = additions.get("llama_afterword_bind")
_copy_cells: Any = additions.get("llama_afterword_copy_cells")
_make_pool = additions.get("ggml_afterword_thread_pool")
_attach_pool = additions.get("llama_afterword_attach_thread_pool")
_exponentials: Any = additions.get("ggml_afterword_exponentials")

_new_context = guarded(additions, lib.llama_init_from_model)
_decode = guarded(additions, lib.llama_decode)
_get_logits = guarded(additions, lib.llama_get_logits)
_remove = guarded(additions, lib.llama_memory_seq_rm)
_state_size = guarded(additions, lib.llama_state_seq_get_size_ext)
_state_get = guarded(additions, lib.llama_state_seq_get_data_ext)
_state_set = guarded(additions, lib.llama_state_seq_set_data_ext)

_compute_lock = FairLock()
_thread_pools: dict[int, int] = {}
_IDLE_POLL = 1
"""ggml's polling level: an idle thread looks for work for some milliseconds before it sleeps."""


def _by_library(row: Row, largest: float, out: Row) -> float:
    """Implements ``engine.sampler.Exponentials`` in one pass, with the sum in float64."""
    return float(_exponentials(len(row), out.ctypes.data, row.ctypes.data, largest))


exponentials: Exponentials = _by_numpy if _exponentials is None else _by_library


def context_blocks(tokens: int) -> int:
    """Returns how many blocks one sequence of so many tokens takes, as the library rounds it."""
    return -(-tokens // ROUND) * (ROUND // BLOCK_TOKENS)


class ContextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a context; all of them reach the kernels.

    With ``exact``, a library without ``ATTENTION_BY_ROWS`` keeps keys and values in different
    formats. This rules out kernels that compute a row differently if its batch or context is large.

    A batch has up to ``slots`` sequences, each of up to ``slot_tokens`` tokens. With ``blocks`` (of
    64 tokens) they share one memory, if the model's memory can be blocks; else each has its own.
    """

    slots: int
    slot_tokens: int
    blocks: int = 0
    batch_tokens: int
    max_rows: int
    threads: int
    exact: bool


@contextmanager
def idle_pool(threads: int) -> Iterator[int | None]:
    """The process's pool of ``threads`` threads, for other work than a batch.

    It is None if a batch is computed at the moment, which is not waited for, and if there is no
    such pool. Batches wait until the block ends.
    """
    if not _compute_lock.acquire_if_free():
        yield None
        return
    try:
        yield _thread_pools.get(threads)
    finally:
        _compute_lock.release()


def _attach_threads(context: Any, threads: int) -> None:  # noqa: ANN401 - a pointer of the binding
    """Let a context compute with the process's pool of ``threads`` threads; it is never freed.

    An unchanged library starts its threads anew for each batch.
    """
    if _make_pool is None or _attach_pool is None:
        return
    with _compute_lock:
        if threads not in _thread_pools:
            _thread_pools[threads] = _make_pool(threads, _IDLE_POLL)
        _attach_pool(context, _thread_pools[threads])


def _no_memory(options: ContextOptions) -> ConfigError:
    return ConfigError(
        f"no memory for {options.slots} sequences of {options.slot_tokens} tokens; "
        "try a smaller --ctx or fewer --max-sequences"
    )


def _params(options: ContextOptions, offload: Offload) -> Any:  # noqa: ANN401 - a struct of ctypes
    """Returns the library's parameters of a context. Raises ``ConfigError`` for too many cells."""
    params = lib.llama_context_default_params()
    cells = options.slots * options.slot_tokens
    if cells > _MOST_CELLS:
        # ctypes would pass the number without its upper bits.
        raise _no_memory(options)
    params.n_ctx = cells
    # A runner may add one token for each slot to a full batch.
    params.n_batch = options.batch_tokens + options.slots
    params.n_ubatch = options.batch_tokens
    params.n_seq_max = options.slots
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    # Each slot has its own KV stream, so attention reads no cells of other slots.
    params.kv_unified = False
    two_formats = options.exact and not ATTENTION_BY_ROWS
    params.type_k = _GGML_TYPE_BF16 if two_formats else _GGML_TYPE_F16
    params.type_v = _GGML_TYPE_F16
    params.swa_full = True
    if offload.layers:
        params.offload_kqv = offload.kv
        # Layers stay where they are, whatever the size of the batch.
        params.op_offload = False
    params.no_perf = True
    return params


class LlamaContext:
    """KV memory and compute buffers for some slots. Used by one thread at a time.

    Raises ``ConfigError`` if there is no memory for it, or the library cannot make it.
    """

    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        self._options = options
        self._vocabulary = model.vocabulary
        self._slack = options.slots if options.slots > 1 else 0
        params = _params(options, model.offload)
        if _want_blocks is not None:
            _want_blocks(options.blocks * BLOCK_TOKENS)
        try:
            self._context: Any = _new_context(model.pointer, params)
        except NativeError as error:
            raise ConfigError(f"llama.cpp cannot make a context: {error}") from error
        if not self._context:
            raise _no_memory(options)
        _attach_threads(self._context, options.threads)
        self._thread_count = ThreadCount(options.threads)
        self._memory: Any = lib.llama_get_memory(self._context)
        self.ragged = _ragged is not None and bool(_ragged(self._memory))
        """Whether a batch is computed at once if its slots have different numbers of tokens."""
        self.in_blocks = _has_blocks is not None and bool(_has_blocks(self._memory))
        """Whether the slots share one memory of blocks."""
        size = options.batch_tokens + options.slots
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._slots = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._slot_pointers = self._slots.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._slot_pointers.ctypes.data_as(
                ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
            ),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self._context:
            lib.llama_free(self._context)
            self._context = None

    def sizes(self) -> Sequence[int] | None:
        """Returns the bytes of KV and states, of buffers, of packed and of mapped weights.

        The library counts what they take once all of it is used. Returns None if it cannot count.
        """
        return None if _sizes is None else list(_sizes(self._context))

    @property
    def batch_tokens(self) -> int:
        """Maximum tokens of a batch, without the extra one for each slot."""
        return min(self._options.batch_tokens, int(lib.llama_n_batch(self._context)) - self._slack)

    @property
    def slot_tokens(self) -> int:
        """Tokens that a slot has room for, as rounded by the library."""
        return int(lib.llama_n_ctx_seq(self._context))

    def decode(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.bool_],
    ) -> int:
        """Compute a batch of four arrays [tokens], without the GIL.

        Returns 0, the library's error code, or ``THREW``.
        """
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._slots[:count] = slots
        self._wanted[:count] = wanted
        self._batch.n_tokens = count
        with _compute_lock:
            began, ran = time.perf_counter(), time.thread_time()
            threads = self._thread_count.for_batch(count, began)
            lib.llama_set_n_threads(self._context, threads, threads)
            try:
                code = int(_decode(self._context, self._batch))
            except NativeError as error:
                _log.warning("llama_decode threw: %s", error)
                return THREW
            now = time.perf_counter()
            if code == 0:
                self._thread_count.took(
                    count, threads, now, wall_s=now - began, cpu_s=time.thread_time() - ran
                )
            return code

    def bind(self, tables: npt.NDArray[np.uintp], lengths: npt.NDArray[np.int32]) -> None:
        """Give sequences 0, 1, 2 ... of the next batch their blocks, and so many tokens each.

        ``tables`` [sequences] are addresses of int32 arrays that stay until the batch is computed.
        """
        _bind(self._memory, len(tables), tables.ctypes.data, lengths.ctypes.data)

    def copy_cells(self, source: int, destination: int, tokens: int) -> None:
        """Copy the first cells of a block to another block."""
        _copy_cells(self._memory, source, destination, tokens)

    def rows(self, count: int) -> npt.NDArray[np.float32]:
        """Returns the wanted rows [count, vocabulary] as a view that the next batch overwrites."""
        pointer = _get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self._vocabulary))

    def remove(self, slot: int, start: int) -> bool:
        """Remove the tokens of a slot from position ``start`` on; False if that is impossible."""
        return bool(_remove(self._memory, slot, start, -1))

    def fork(self, source: int, destination: int, tokens: int) -> bool:
        """Copy the first ``tokens`` tokens of a slot to an empty one; False if not possible."""
        return _fork is not None and bool(_fork(self._memory, source, destination, tokens))

    def save(self, slot: int) -> State:
        """Returns a copy of a slot's whole state; empty if it cannot be copied."""
        size = int(_state_size(self._context, slot, _WHOLE))
        state: State = np.empty(size, np.uint8)
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = int(_state_get(self._context, data, size, slot, _WHOLE))
        return state[:written]

    def restore(self, state: State, slot: int) -> bool:
        """Copy a saved state into an empty slot; False if it does not fit."""
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(_state_set(self._context, data, len(state), slot, _WHOLE))
