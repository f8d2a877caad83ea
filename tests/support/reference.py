"""llama.cpp by itself, called without any code of this project."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import afterword_native.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from afterword.core.machine import usable_cores

_F32 = 0
"""A ggml_type for which the binding has no name."""
_THREADS = usable_cores()
"""The library's default is four threads; on fewer cores they wait for each other at every step."""


class Reference:
    """llama.cpp by itself: one sequence, one batch, all rows, log-softmax in float64.

    With ``plain``, attention is a product, a softmax and a product in float32.
    """

    def __init__(self, path: Path, *, plain: bool = False) -> None:
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        params = lib.llama_context_default_params()
        params.n_ctx = 1024
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = _THREADS
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if plain:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = _F32
        self._context = lib.llama_init_from_model(self._model, params)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._vocabulary = lib.llama_vocab_n_tokens(self._vocab)

    @property
    def start(self) -> int:
        """The token that begins a document."""
        return int(lib.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """Returns the library's ids of a text; special tokens are parsed and none are added."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 1))()
        count = lib.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, True)  # noqa: FBT003 - C
        return ids[:count]

    def log_softmax(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """Returns rows [tokens, vocabulary] of log-probabilities of the next token."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)  # noqa: FBT003 - C
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        _check(lib.llama_decode(self._context, batch))
        rows = np.ctypeslib.as_array(
            ctypes.cast(lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)),
            (len(ids), self._vocabulary),
        ).astype(np.float64)
        lib.llama_batch_free(batch)
        exact: npt.NDArray[np.float64] = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        return exact

    def greedy(self, text: str, tokens: int) -> str:
        """Returns greedy text; each token is computed from the whole text, without a cache."""
        ids = self.tokenize(text)
        start = len(ids)
        for _ in range(tokens):
            ids.append(int(self.log_softmax(ids)[-1].argmax()))
        return b"".join(self.piece(token) for token in ids[start:]).decode()

    def piece(self, token: int) -> bytes:
        """Returns the bytes of a token."""
        return _piece(self._vocab, token)

    def close(self) -> None:
        """Free model and context."""
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


def _check(code: int) -> None:
    if code:
        message = f"llama_decode gave {code}"
        raise RuntimeError(message)


def _piece(vocabulary: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(64)
    size = lib.llama_token_to_piece(vocabulary, token, buffer, 64, 0, True)  # noqa: FBT003 - C
    return buffer.raw[:size]


def greedy_text(path: Path, prompt: str, tokens: int) -> str:
    """Returns the text of the library's own greedy sampler, with default settings otherwise."""
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_model_get_vocab(model)
    params = lib.llama_context_default_params()
    params.n_threads = params.n_threads_batch = _THREADS
    context = lib.llama_init_from_model(model, params)
    sampler = lib.llama_sampler_init_greedy()
    raw = prompt.encode()
    ids = (ctypes.c_int32 * (len(raw) + 1))()
    count = lib.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), True, True)  # noqa: FBT003 - C
    written = b""
    for _ in range(tokens):
        _check(lib.llama_decode(context, lib.llama_batch_get_one(ids, count)))
        ids[0], count = lib.llama_sampler_sample(sampler, context, -1), 1
        written += _piece(vocabulary, ids[0])
    lib.llama_sampler_free(sampler)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return written.decode()
