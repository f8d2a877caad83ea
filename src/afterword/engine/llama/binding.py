"""llama.cpp's C interface, and models with types and an owner. Only this file imports the library.

The code that opens a ``LlamaModel`` closes it. Only ``context`` sees its pointers.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from afterword.core.errors import ConfigError, EngineUnavailable, UnspellableText
from afterword.core.machine import memory_limit
from afterword.core.protocols import PrefixSharing
from afterword.engine.llama.guard import NativeError, UnspellableError, guarded
from afterword.engine.llama.native import AbortListener, declare
from afterword.engine.llama.offload import ON_PROCESSOR, Offload
from afterword.models.parts import part_paths

try:
    import afterword_native
    from afterword_native import llama_cpp
except ImportError as error:
    raise ConfigError(
        f"the native half of Afterword cannot be loaded ({error}): "
        "install a wheel, or run make install in the checkout"
    ) from error

lib = llama_cpp
"""The functions of llama.h."""
LLAMA = afterword_native.LIBRARY
"""libllama itself."""
BUILD = afterword_native.BUILD
"""Digest of all that the library was built from."""
LIBRARY = f"{afterword_native.BASE}, {afterword_native.VARIANT}"
"""The package that the library was built from, and the processors that this build is for."""
log = logging.getLogger("afterword.llama")

_MAPPED_FROM = 2
"""A file larger than one part in this many of the memory is mapped instead of read."""
_BY_NAME = True
_CONTROL, _END, _USER_DEFINED = 1, 2, 4
"""Bits by which ``llama_afterword_pieces`` tells the kind of a token."""
_TEXT_ATTRIBUTES = lib.LLAMA_TOKEN_ATTR_NORMAL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
"""A token keeps these even if the library makes it a control token because of its name."""
_LEVELS = {2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


_FILE_TYPES = {
    "f32": lib.LLAMA_FTYPE_ALL_F32,
    "f16": lib.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": lib.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
}


additions = declare(lib)
"""The functions that native/ adds to the library; none for an unchanged library."""


def _told(name: str) -> Any:  # noqa: ANN401 - whatever the function returns
    """Returns the result of an added function without arguments; None if it is missing."""
    function = additions.get(name)
    return None if function is None else function()


CHANGES = (_told("llama_afterword_changes") or b"").decode()
"""Digest of this project's changes to the library; empty for an unchanged library."""
_tokenize = guarded(additions, lib.llama_tokenize)
_load_file = guarded(additions, lib.llama_model_load_from_file)
_quantize = guarded(additions, lib.llama_model_quantize)
_pieces: Any = additions.get("llama_afterword_pieces")
_grave_lines = additions.get("llama_afterword_log_grave")
_on_abort = additions.get("llama_afterword_on_abort")
_window = additions.get("llama_afterword_window")

_ASKED_FOR = "using full-size SWA cache"
"""A warning about what we ask for on purpose, for every model with sliding windows."""


class _Complaints(threading.local):
    """Error lines of the library while this thread loads or converts a file, else None."""

    lines: list[str] | None = None

    @contextmanager
    def gathered(self) -> Iterator[list[str]]:
        """Gather this thread's error lines, in place of logging them, while the block runs."""
        lines: list[str] = []
        self.lines = lines
        try:
            yield lines
        finally:
            self.lines = None


_complaints = _Complaints()


def _reason(complaints: Sequence[str], prefix: str) -> str:
    """Returns what the first complaint says behind a prefix of the library's."""
    said = complaints[0].rsplit(prefix, 1)[-1] if complaints else ""
    return said or "it gives no reason"


@lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _log_callback(level: int, text: bytes, _user: object) -> None:
    line = text.decode(errors="replace").rstrip()
    severity = _LEVELS.get(level, logging.DEBUG)
    if _complaints.lines is not None:
        # ``_load`` reports errors in one line; ``ends`` handles what vocabularies are warned of.
        if severity >= logging.ERROR:
            _complaints.lines.append(line)
        severity = logging.DEBUG
    if _ASKED_FOR in line:
        severity = logging.DEBUG
    log.log(severity, "%s", line)


def multiply_row_by_row() -> None:
    """Make products with K-quants independent of the batch size; prefill becomes slower.

    Affects the whole process. Call it before the first batch.
    """
    os.environ["GGML_CPU_TILED_MM"] = "0"


def _load(path: Path, *, repack: bool, offload: Offload) -> Any:  # noqa: ANN401 - a pointer
    """Load a file's weights. Raises ``ConfigError`` with the library's first complaint."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = offload.layers
    # A model that knows a device computes in the library's own way, so it knows those it uses.
    used = [device.pointer for device in offload.devices] if offload.layers else []
    pointers = (ctypes.c_void_p * (len(used) + 1))(*used)
    params.devices = ctypes.cast(pointers, ctypes.c_void_p)
    # Memory that a GPU reads would go before our packed weights, for layers of the processor.
    params.no_host = bool(used)
    params.use_extra_bufts = repack
    # A mapped file that is truncated or removed would end the process at the next step.
    file_bytes = sum(part.stat().st_size for part in part_paths(path))
    if file_bytes * _MAPPED_FROM <= memory_limit():
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    with _complaints.gathered() as complaints:
        try:
            model = _load_file(os.fsencode(path), params)
        except NativeError as error:
            raise ConfigError(f"{path}: llama.cpp cannot load it: {error}") from error
    if not model:
        reason = _reason(complaints, "error loading model: ")
        raise ConfigError(f"{path}: llama.cpp cannot load it: {reason}")
    return model


def _give_up(message: bytes) -> None:
    """End the process with the reason in one line, because the library is about to abort."""
    reason = message.decode(errors="replace").strip()
    sys.stderr.write(f"afterword: llama.cpp gave up on this model: {reason}\n")
    sys.stderr.flush()
    os._exit(2)


_abort_listener = AbortListener(_give_up)


def convert(source: Path, destination: Path, quantization: str, threads: int) -> None:
    """Write a file's weights in another quantization, completely or not at all.

    Norms and other vectors keep their format. Raises ``ConfigError`` with the library's first
    error.
    """
    start()
    params = lib.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[quantization]
    params.allow_requantize = True
    params.nthread = threads
    part = destination.with_name(f"{destination.name}.part")
    failed = f"{source}: llama.cpp cannot convert it to {quantization}"
    try:
        files = (os.fsencode(source), os.fsencode(part))
        with _complaints.gathered() as complaints:
            code = _quantize(*files, ctypes.byref(params))
        if code:
            raise ConfigError(f"{failed}: {_reason(complaints, 'failed to quantize: ')}")
        part.replace(destination)
    except NativeError as error:
        raise ConfigError(f"{failed}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def start() -> None:
    """Initialise the library, with our callbacks for its log and its aborts. Idempotent."""
    if _grave_lines is None or log.isEnabledFor(logging.DEBUG):
        lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
    else:
        # Only grave lines call Python: a load logs a thousand others, each waiting for the GIL.
        pass_on = ctypes.cast(_grave_lines, lib.llama_log_callback)
        lib.llama_log_set(pass_on, ctypes.cast(_log_callback, ctypes.c_void_p))
    if _on_abort is not None:
        _on_abort(_abort_listener)
    lib.llama_backend_init()


def system_info() -> str:
    """Returns the instruction sets and features that the library was built with."""
    return str(lib.llama_print_system_info().decode())


def packed_kernels() -> str:
    """Returns the name of the kernels for packed weights; empty for an unchanged library.

    They are the best that this processor runs, or those that ``AFTERWORD_KERNELS`` names.
    """
    return (_told("ggml_afterword_packed_kernels") or b"").decode()


class Tokens(msgspec.Struct, frozen=True):
    """The tokens of a vocabulary: their bytes (``pieces``), and the ids of some kinds.

    Plain text never gives ``control_ids``. ``end_ids`` end a generation. ``user_ids`` are
    user-defined tokens: the library cuts plain text at these before anything else.
    """

    pieces: list[bytes]
    control_ids: frozenset[int]
    end_ids: frozenset[int]
    user_ids: frozenset[int]


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
        frozenset(
            token
            for token in ids
            if lib.llama_vocab_get_attr(vocab, token) & lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        ),
    )


def _tokens_at_once(vocab: Any) -> Tokens:  # noqa: ANN401 - a pointer of the binding
    count = int(lib.llama_vocab_n_tokens(vocab))
    lengths, kinds = (ctypes.c_int32 * count)(), (ctypes.c_uint8 * count)()

    def fill(room: int) -> tuple[bytes, int]:
        buffer = ctypes.create_string_buffer(room)
        size = _pieces(vocab, buffer, room, lengths, kinds)
        return buffer.raw, size

    _, size = fill(0)
    raw, _ = fill(size)
    ends = list(itertools.accumulate(lengths[:], initial=0))
    special = [(token, kind) for token, kind in enumerate(bytes(kinds)) if kind]
    return Tokens(
        [raw[start:end] for start, end in itertools.pairwise(ends)],
        frozenset(token for token, kind in special if kind & _CONTROL),
        frozenset(token for token, kind in special if kind & _END),
        frozenset(token for token, kind in special if kind & _USER_DEFINED),
    )


class LlamaModel:
    """A GGUF file's weights and vocabulary in memory.

    ``repack`` lets the library rearrange weights for faster kernels, which for some formats are
    not batch invariant. ``offload`` says which layers run on a GPU. Raises ``ConfigError`` if the
    library cannot load the file, or if the file has no vocabulary. Check the file's header first,
    because some broken files crash native code.
    """

    def __init__(self, path: Path, *, repack: bool = True, offload: Offload = ON_PROCESSOR) -> None:
        self.repack = repack
        self.offload = offload
        self.files = part_paths(path)
        self._readers = 0
        self._unread = threading.Condition()
        start()
        self.pointer: Any = _load(path, repack=repack, offload=offload)
        self._vocab: Any = lib.llama_model_get_vocab(self.pointer)
        if lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
            self.close()
            raise ConfigError(f"{path}: has no vocabulary")

    def close(self) -> None:
        """Free the weights; contexts must be closed before. Idempotent.

        Waits for running calls of ``encode``; later calls raise.
        """
        with self._unread:
            pointer, self.pointer = self.pointer, None
            self._unread.wait_for(lambda: not self._readers)
        if pointer:
            lib.llama_model_free(pointer)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep the vocabulary in memory. Raises ``EngineUnavailable`` if it was freed already."""
        with self._unread:
            if self.pointer is None:
                raise EngineUnavailable("The engine is not available.")
            self._readers += 1
        try:
            yield
        finally:
            with self._unread:
                self._readers -= 1
                self._unread.notify_all()

    @property
    def vocabulary(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(lib.llama_vocab_n_tokens(self._vocab))

    @property
    def context_tokens(self) -> int:
        """The context in tokens that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.pointer))

    @property
    def architecture(self) -> str:
        """The architecture by its name in ggml, such as llama or qwen2."""
        return self.metadata("general.architecture") or ""

    @property
    def can_trim(self) -> bool:
        """Whether the end of a sequence can be removed; not possible with recurrent state."""
        recurrent = lib.llama_model_is_recurrent(self.pointer)
        return not (recurrent or lib.llama_model_is_hybrid(self.pointer))

    @property
    def unproven_sharing(self) -> PrefixSharing:
        """The kind of sharing that the kind of model allows; the probe has not tested it."""
        return "cells" if self.can_trim else "checkpoints"

    @property
    def decodes(self) -> bool:
        """Whether the model continues text; encoders do not."""
        has_decoder = lib.llama_model_has_decoder(self.pointer)
        return bool(has_decoder and not lib.llama_model_has_encoder(self.pointer))

    @contextmanager
    def narrowed(self, tokens: int) -> Iterator[None]:
        """Limit the sliding window, if any, of contexts made in this block to ``tokens``."""
        window = 0 if _window is None else int(_window(self.pointer, tokens))
        if _window is not None and window <= tokens:
            _window(self.pointer, window)
        try:
            yield
        finally:
            if _window is not None:
                _window(self.pointer, window)

    def describe(self) -> str:
        """Returns architecture, number of parameters and format in a few words."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.pointer, buffer, 256)
        # The library estimates the size from the number of layers, so we count parameters.
        family, _, weights = buffer.value.decode(errors="replace").split(" ", 2)
        return f"{family} {lib.llama_model_n_params(self.pointer) / 1e6:.0f}M {weights}"

    def metadata(self, key: str) -> str | None:
        """Returns a value of the file's metadata as text; None if the key is missing."""
        room = 512
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, room)
            if size < room:
                return None if size < 0 else buffer.value.decode(errors="replace")
            room = size + 1

    def encode(self, raw: bytes, *, parse_special: bool, continues: bool = False) -> list[int]:
        """Returns the ids of UTF-8 text, without special tokens around it. Safe from any thread.

        Text that ``continues`` other text gets no space in front. Raises ``UnspellableText`` if the
        vocabulary cannot spell the text, and ``EngineUnavailable`` after ``close``.
        """
        room = len(raw) + 8
        # Without guards, this argument would ask the library to add special tokens.
        options = (continues and bool(additions), parse_special)
        while True:
            ids = (ctypes.c_int32 * room)()
            try:
                with self._reading():
                    count = _tokenize(self._vocab, raw, len(raw), ids, room, *options)
            except UnspellableError as error:
                raise UnspellableText(str(error)) from error
            if count >= 0:
                return ids[:count]
            room = -count

    def tokens(self) -> Tokens:
        """Returns all tokens of the vocabulary; the piece of a special token is its name."""
        return _tokens_one_by_one(self._vocab) if _pieces is None else _tokens_at_once(self._vocab)

    def typed_as_text(self, ids: Iterable[int]) -> frozenset[int]:
        """Returns those ``ids`` that the file declares as text, even if the library does not."""
        attribute = lib.llama_vocab_get_attr
        return frozenset(i for i in ids if attribute(self._vocab, i) & _TEXT_ATTRIBUTES)

    def named(self, name: str) -> int | None:
        """Returns a token by its role (``bos``, ``eos``, ``fim_pre`` ...); None if missing."""
        token = int(getattr(lib, f"llama_vocab_{name}")(self._vocab))
        return None if token < 0 else token

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants a BOS token before text."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab))
