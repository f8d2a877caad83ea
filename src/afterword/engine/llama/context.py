"""What computes: llama.cpp's contexts, and the process's threads that compute for all of them.

Whoever opens a ``LlamaContext`` closes it. Pointers never leave this file.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import LlamaModel, addition, lib
from afterword.engine.llama.fair_lock import FairLock
from afterword.engine.llama.guard import NativeError, guarded
from afterword.engine.sampler import Row

State: TypeAlias = npt.NDArray[np.uint8]
_log = logging.getLogger("afterword.llama")
THREW = -100
"""What ``decode`` gives for an exception of the library."""
_WHOLE = 1 << 16
"""Asks for cells behind a sliding window, too. A library without our changes leaves them out."""
_GGML_TYPE_F16 = 1
_GGML_TYPE_BF16 = 30

ATTENTION_BY_ROWS = hasattr(lib._lib, "ggml_afterword_attention")  # noqa: SLF001 - no binding has it
"""Whether the library computes attention alike in batches of any size."""
_fork = addition("llama_afterword_fork", ctypes.c_bool)
_sizes = addition("llama_afterword_memory", None)
_ragged = addition("llama_afterword_ragged", ctypes.c_bool)

_new_context = guarded(lib._lib, lib.llama_init_from_model)  # noqa: SLF001 - no binding has it
_decode = guarded(lib._lib, lib.llama_decode)  # noqa: SLF001
_get_logits = guarded(lib._lib, lib.llama_get_logits)  # noqa: SLF001
_remove = guarded(lib._lib, lib.llama_memory_seq_rm)  # noqa: SLF001
_state_size = guarded(lib._lib, lib.llama_state_seq_get_size_ext)  # noqa: SLF001
_state_get = guarded(lib._lib, lib.llama_state_seq_get_data_ext)  # noqa: SLF001
_state_set = guarded(lib._lib, lib.llama_state_seq_set_data_ext)  # noqa: SLF001

_turns = FairLock()
_teams: dict[int, ctypes.c_void_p] = {}
_IDLE_POLL = 1
"""How long a thread without work looks for more before it sleeps: some milliseconds."""

_exponentials = lib._lib.ggml_vec_soft_max_f32  # noqa: SLF001 - ggml's has no binding
_exponentials.restype = ctypes.c_double
_exponentials.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float)


def exponentials(row: Row, largest: float, out: Row) -> float:
    """See ``engine.sampler.Exponentials``: in one pass, the sum in float64."""
    return float(_exponentials(len(row), out.ctypes.data, row.ctypes.data, largest))


class ContextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a context is made with; everything here reaches the kernels.

    With ``exact``, a library without ``ATTENTION_BY_ROWS`` keeps keys and values in different
    formats, which rules out the kernels that compute a row otherwise when its batch or its context
    is large.
    """

    slots: int
    slot_tokens: int
    batch_tokens: int
    max_rows: int
    threads: int
    exact: bool


class _TeamParams(ctypes.Structure):
    """``ggml_threadpool_params``."""

    _fields_ = (
        ("cores", ctypes.c_bool * 512),
        ("threads", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def _team(threads: int) -> ctypes.c_void_p:
    """The process's ``ggml_threadpool`` of that many threads, which it keeps for life."""
    with _turns:
        if threads not in _teams:
            params = _TeamParams()
            lib._lib.ggml_threadpool_params_init(ctypes.byref(params), threads)  # noqa: SLF001
            params.poll = _IDLE_POLL
            make = lib._lib.ggml_threadpool_new  # noqa: SLF001 - ggml's has no binding
            make.restype = ctypes.c_void_p
            _teams[threads] = ctypes.c_void_p(make(ctypes.byref(params)))
        return _teams[threads]


class LlamaContext:
    """KV memory and compute buffers for some sequences. Belongs to one thread at a time."""

    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        self._options = options
        self._vocabulary = model.vocabulary
        self._slack = options.slots if options.slots > 1 else 0
        params = lib.llama_context_default_params()
        params.n_ctx = options.slots * options.slot_tokens
        # Runners may add a token for each slot to a full batch.
        params.n_batch = options.batch_tokens + options.slots
        params.n_ubatch = options.batch_tokens
        params.n_seq_max = options.slots
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        # A stream for each slot: attention reads no cell of others.
        params.kv_unified = False
        two_formats = options.exact and not ATTENTION_BY_ROWS
        params.type_k = _GGML_TYPE_BF16 if two_formats else _GGML_TYPE_F16
        params.type_v = _GGML_TYPE_F16
        params.swa_full = True
        params.no_perf = True
        try:
            self._context: Any = _new_context(model.pointer, params)
        except NativeError as error:
            raise ConfigError(f"llama.cpp cannot make a context: {error}") from error
        if not self._context:
            raise ConfigError(
                f"no memory for {options.slots} slots of {options.slot_tokens} tokens; "
                "try a smaller --ctx or fewer --slots"
            )
        team = _team(options.threads)
        attach = lib._lib.llama_attach_threadpool  # noqa: SLF001 - has no binding
        attach(ctypes.c_void_p(self._context), team, team)
        self._memory: Any = lib.llama_get_memory(self._context)
        self.ragged = _ragged is not None and bool(_ragged(ctypes.c_void_p(self._memory)))
        """Whether tokens of all slots are computed together, however many each has."""
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
        """Bytes of cells and states, of buffers, of packed weights, of weights read in the file.

        What they take once they are used, by the library's own count; None where it has none.
        """
        if _sizes is None:
            return None
        out = (ctypes.c_uint64 * 4)()
        _sizes(ctypes.c_void_p(self._context), out)
        return out[:]

    @property
    def batch_tokens(self) -> int:
        """Tokens that a batch may have besides one for each slot; the context bounds it."""
        return min(self._options.batch_tokens, int(lib.llama_n_batch(self._context)) - self._slack)

    @property
    def slot_tokens(self) -> int:
        """Tokens that a slot has room for, as the library rounded them."""
        return int(lib.llama_n_ctx_seq(self._context))

    def decode(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.bool_],
    ) -> int:
        """Compute a batch; 0, the library's error code or ``THREW``. The GIL is free meanwhile."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._slots[:count] = slots
        self._wanted[:count] = wanted
        self._batch.n_tokens = count
        with _turns:
            try:
                return int(_decode(self._context, self._batch))
            except NativeError as error:
                _log.warning("llama_decode threw: %s", error)
                return THREW

    def rows(self, count: int) -> npt.NDArray[np.float32]:
        """The wanted rows of the last batch: a view that the next batch overwrites."""
        pointer = _get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self._vocabulary))

    def remove(self, slot: int, start: int) -> bool:
        """Forget the tokens of a slot from position ``start`` on."""
        return bool(_remove(self._memory, slot, start, -1))

    def fork(self, source: int, destination: int, tokens: int) -> bool:
        """Make a slot the first ``tokens`` tokens of another; False if cells cannot be copied."""
        memory = ctypes.c_void_p(self._memory)
        return _fork is not None and bool(_fork(memory, source, destination, tokens))

    def save(self, slot: int) -> State:
        """A copy of all that a slot holds; empty if it cannot be had."""
        size = int(_state_size(self._context, slot, _WHOLE))
        state: State = np.empty(size, np.uint8)
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = int(_state_get(self._context, data, size, slot, _WHOLE))
        return state[:written]

    def restore(self, state: State, slot: int) -> bool:
        """Make an empty slot what was saved; False if it does not fit."""
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(_state_set(self._context, data, len(state), slot, _WHOLE))
