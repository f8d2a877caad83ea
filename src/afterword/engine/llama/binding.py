"""The only file that imports the library: llama.cpp's C interface, typed and owned.

Whoever opens a ``LlamaModel`` or a ``LlamaContext`` closes it. Pointers never leave this file.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.errors import ConfigError
from afterword.engine.llama.team import Turns
from afterword.engine.sampler import Row

if TYPE_CHECKING:
    import llama_cpp.llama_cpp as lib
else:

    def _bindings() -> Any:  # noqa: ANN401 - a module
        """The package's bindings alone: chat formats and servers are a twelfth of a start."""
        package = "llama_cpp"
        if package in sys.modules or (found := importlib.util.find_spec(package)) is None:
            return importlib.import_module(f"{package}.llama_cpp")
        bare = ModuleType(package)
        bare.__path__ = found.submodule_search_locations
        sys.modules[package] = bare
        try:
            return importlib.import_module(f"{package}.llama_cpp")
        finally:
            # Whoever wants the package imports the whole of it.
            del sys.modules[package]

    lib = _bindings()

log = logging.getLogger("afterword.llama")

_GGML_TYPE_F16 = 1
_GGML_TYPE_BF16 = 30
_ADD_NOTHING = False
_BY_NAME = True
_CONTROL, _END = 1, 2
"""What a token is, to ``llama_afterword_pieces``."""
_LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


_FILE_TYPES = {
    "f32": lib.LLAMA_FTYPE_ALL_F32,
    "f16": lib.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": lib.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
}


_exponentials = lib._lib.ggml_vec_soft_max_f32  # noqa: SLF001 - ggml's has no binding
_exponentials.restype = ctypes.c_double
_exponentials.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float)


def exponentials(row: Row, largest: float, out: Row) -> float:
    """See ``engine.sampler.Exponentials``: in one pass, the sum in float64."""
    return float(_exponentials(len(row), out.ctypes.data, row.ctypes.data, largest))


def _addition(name: str, result: Any) -> Any:  # noqa: ANN401 - a C function of any kind
    """A function that scripts/llama adds to the library, or None where it is missing."""
    function = getattr(lib._lib, name, None)  # noqa: SLF001 - no binding has it
    if function is not None:
        function.restype = result
    return function


def _added(name: str, result: Any) -> Any:  # noqa: ANN401 - whatever the function returns
    """What an addition without arguments gives; None where it is missing."""
    function = _addition(name, result)
    return None if function is None else function()


ATTENTION_BY_ROWS = hasattr(lib._lib, "ggml_afterword_attention")  # noqa: SLF001 - no binding has it
"""Whether the library computes attention alike in batches of any size."""
PACKS_WEIGHTS = bool(_added("ggml_afterword_packed_buffer_type", ctypes.c_void_p))
"""Whether the library packs quantised weights in panels on this processor."""
_pieces = _addition("llama_afterword_pieces", ctypes.c_int64)
_grave_lines = _addition("llama_afterword_log_grave", None)
_fork = _addition("llama_afterword_fork", ctypes.c_bool)
_ragged = _addition("llama_afterword_ragged", ctypes.c_bool)
CHANGES = (_added("ggml_afterword_changes", ctypes.c_char_p) or b"").decode()
"""What this project changed in the library, as a digest; empty for a library as it comes."""

_turns = Turns()
_teams: dict[int, ctypes.c_void_p] = {}
_IDLE_POLL = 1
"""How long a thread without work looks for more before it sleeps: some milliseconds."""

_complaints: list[str] | None = None
"""What the library says is wrong with a file while it loads it; None at other times."""


@lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _log_callback(level: int, text: bytes, _user: object) -> None:
    line = text.decode(errors="replace").rstrip()
    severity = _LEVELS.get(level, logging.DEBUG)
    if _complaints is not None and severity >= logging.ERROR:
        _complaints.append(line)
        severity = logging.DEBUG
    log.log(severity, "%s", line)


def multiply_row_by_row() -> None:
    """Have K-quants multiplied alike in batches of any size, at some cost in prefill.

    For the whole process; only before its first batch.
    """
    os.environ["GGML_CPU_TILED_MM"] = "0"


def _load(path: Path, *, repack: bool) -> Any:  # noqa: ANN401 - a pointer of the binding
    """Load a file's weights. Raises ``ConfigError`` with the library's first complaint."""
    global _complaints  # noqa: PLW0603 - the library has one log for the process
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = repack
    _complaints = []
    try:
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            reason = _complaints[0].rsplit("error loading model: ", 1)[-1] if _complaints else ""
            raise ConfigError(f"{path}: llama.cpp cannot load it: {reason or 'it gives no reason'}")
    finally:
        _complaints = None
    return model


def _give_up(message: bytes) -> None:
    """The library found itself in a state it cannot go on from, and ends the process after this.

    So it is ended here, with the reason in one line (without the folder it was compiled in).
    """
    reason = re.sub(r"^\S*/", "", message.decode(errors="replace").strip())
    sys.stderr.write(f"afterword: llama.cpp gave up on this model: {reason}\n")
    sys.stderr.flush()
    os._exit(2)


_abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_give_up)


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


def convert(source: Path, destination: Path, form: str, threads: int) -> None:
    """Write a file's weights in another form; norms and other vectors stay as they are.

    Raises ``ConfigError`` with the library's first complaint.
    """
    global _complaints  # noqa: PLW0603 - the library has one log for the process
    _start()
    params = lib.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[form]
    params.allow_requantize = True
    params.nthread = threads
    _complaints = []
    try:
        files = (str(source).encode(), str(destination).encode())
        if lib.llama_model_quantize(*files, ctypes.byref(params)):
            reason = _complaints[0].rsplit("failed to quantize: ", 1)[-1] if _complaints else ""
            raise ConfigError(
                f"{source}: llama.cpp cannot convert it to {form}: {reason or 'it gives no reason'}"
            )
    finally:
        _complaints = None


def _start() -> None:
    """Have the library speak and end by our callbacks. Idempotent."""
    if _grave_lines is None or log.isEnabledFor(logging.DEBUG):
        lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    else:
        # The rest would wait for the interpreter, a thousand times in a load.
        pass_on = ctypes.cast(_grave_lines, lib.llama_log_callback)
        lib.llama_log_set(pass_on, ctypes.cast(_log_callback, ctypes.c_void_p))
    lib._lib.ggml_set_abort_callback(_abort_callback)  # noqa: SLF001 - ggml's has no binding
    lib.llama_backend_init()


def system_info() -> str:
    """The instruction sets and features that the library was built with."""
    return str(lib.llama_print_system_info().decode())


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


class Tokens(msgspec.Struct, frozen=True):
    """The bytes of each token; those that no plain text gives; those that end a generation."""

    pieces: list[bytes]
    control_ids: frozenset[int]
    end_ids: frozenset[int]


def _tokens_one_by_one(vocab: Any) -> Tokens:  # noqa: ANN401 - a pointer of the binding
    to_piece, room = lib.llama_token_to_piece, 256
    buffer = ctypes.create_string_buffer(room)
    ids = range(lib.llama_vocab_n_tokens(vocab))
    pieces: list[bytes] = []
    for token in ids:
        size = to_piece(vocab, token, buffer, room, 0, _BY_NAME)
        if size < 0:
            room = -size
            buffer = ctypes.create_string_buffer(room)
            size = to_piece(vocab, token, buffer, room, 0, _BY_NAME)
        pieces.append(buffer.raw[:size])
    return Tokens(
        pieces,
        frozenset(token for token in ids if lib.llama_vocab_is_control(vocab, token)),
        frozenset(token for token in ids if lib.llama_vocab_is_eog(vocab, token)),
    )


def _tokens_at_once(vocab: Any) -> Tokens:  # noqa: ANN401 - a pointer of the binding
    count = int(lib.llama_vocab_n_tokens(vocab))
    lengths, kinds = np.empty(count, np.int32), np.empty(count, np.uint8)

    def fill(room: int) -> tuple[bytes, int]:
        buffer = ctypes.create_string_buffer(room)
        size = _pieces(
            ctypes.c_void_p(vocab),
            buffer,
            ctypes.c_int64(room),
            ctypes.c_void_p(lengths.ctypes.data),
            ctypes.c_void_p(kinds.ctypes.data),
        )
        return buffer.raw, size

    _, size = fill(0)
    raw, _ = fill(size)
    ends = np.cumsum(lengths).tolist()
    return Tokens(
        [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)],
        frozenset(np.flatnonzero(kinds & _CONTROL).tolist()),
        frozenset(np.flatnonzero(kinds & _END).tolist()),
    )


class LlamaModel:
    """A GGUF file's weights and vocabulary in memory.

    ``repack`` lets the library lay weights out anew for kernels that are faster, and that for some
    formats compute a row alone otherwise than among others. Raises ``ConfigError`` where the
    library cannot load the file; check its header first, since native code does not survive every
    broken file.
    """

    def __init__(self, path: Path, *, repack: bool = True) -> None:
        self.repack = repack
        _start()
        self._model: Any = _load(path, repack=repack)
        self._vocab: Any = lib.llama_model_get_vocab(self._model)

    def close(self) -> None:
        """Free the weights; contexts must be closed before. Idempotent."""
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def open_context(self, options: ContextOptions) -> LlamaContext:
        """Memory and compute buffers for ``options.slots`` sequences."""
        return LlamaContext(self._model, options, vocabulary=self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(lib.llama_vocab_n_tokens(self._vocab))

    @property
    def context_tokens(self) -> int:
        """The context that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self._model))

    @property
    def can_trim(self) -> bool:
        """Whether the end of a sequence can be forgotten: not where state is recurrent."""
        recurrent = lib.llama_model_is_recurrent(self._model)
        return not (recurrent or lib.llama_model_is_hybrid(self._model))

    @property
    def decodes(self) -> bool:
        """Whether this is a model that continues text, and not an encoder."""
        has_decoder = lib.llama_model_has_decoder(self._model)
        return bool(has_decoder and not lib.llama_model_has_encoder(self._model))

    def cell_bytes(self) -> int:
        """Memory of one token in the KV cache, 16 bits a value, keys and values."""
        layers = int(lib.llama_model_n_layer(self._model))
        heads = int(lib.llama_model_n_head_kv(self._model))
        width = int(lib.llama_model_n_embd(self._model)) // max(
            int(lib.llama_model_n_head(self._model)), 1
        )
        arch = self.metadata("general.architecture") or ""
        key = int(self.metadata(f"{arch}.attention.key_length") or width)
        value = int(self.metadata(f"{arch}.attention.value_length") or width)
        return layers * heads * (key + value) * 2

    def describe(self) -> str:
        """Architecture, size and format in a few words."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, 256)
        # The library's own size is a guess by the number of layers: it is counted here.
        family, _, weights = buffer.value.decode(errors="replace").split(" ", 2)
        return f"{family} {lib.llama_model_n_params(self._model) / 1e6:.0f}M {weights}"

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text."""
        room = 512
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, room)
            if size < room:
                return None if size < 0 else buffer.value.decode(errors="replace")
            room = size + 1

    def encode(self, raw: bytes, *, parse_special: bool) -> list[int]:
        """Tokenise UTF-8 without adding anything."""
        room = len(raw) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            special = (_ADD_NOTHING, parse_special)
            count = lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, *special)
            if count >= 0:
                return ids[:count]
            room = -count

    def tokens(self) -> Tokens:
        """What each token of the vocabulary is; special tokens have the bytes of their names."""
        return _tokens_one_by_one(self._vocab) if _pieces is None else _tokens_at_once(self._vocab)

    def named(self, name: str) -> int | None:
        """A token by its role (``bos``, ``eos``, ``fim_pre`` ...), if the vocabulary has it."""
        token = int(getattr(lib, f"llama_vocab_{name}")(self._vocab))
        return None if token < 0 else token

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants a BOS token before text."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab))


class LlamaContext:
    """KV memory and compute buffers. Belongs to one thread at a time."""

    def __init__(self, model: Any, options: ContextOptions, *, vocabulary: int) -> None:  # noqa: ANN401 - a pointer of the binding
        self._options = options
        self._vocabulary = vocabulary
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
        self._context: Any = lib.llama_init_from_model(model, params)
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
        """Compute a batch; 0 or the library's error code. The GIL is free meanwhile."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._slots[:count] = slots
        self._wanted[:count] = wanted
        self._batch.n_tokens = count
        with _turns:
            return int(lib.llama_decode(self._context, self._batch))

    def rows(self, count: int) -> npt.NDArray[np.float32]:
        """The wanted rows of the last batch: a view that the next batch overwrites."""
        pointer = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (count, self._vocabulary))

    def remove(self, slot: int, start: int) -> bool:
        """Forget the tokens of a slot from position ``start`` on."""
        return bool(lib.llama_memory_seq_rm(self._memory, slot, start, -1))

    def fork(self, source: int, destination: int, tokens: int) -> bool:
        """Make a slot the first ``tokens`` tokens of another; False if the state does not fit."""
        memory = ctypes.c_void_p(self._memory)
        if _fork is not None and _fork(memory, source, destination, tokens):
            return True
        size = int(lib.llama_state_seq_get_size(self._context, source))
        state = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(self._context, state, size, source)
        if not lib.llama_state_seq_set_data(self._context, state, size, destination):
            return False
        return self.remove(destination, tokens)
