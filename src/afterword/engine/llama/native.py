"""The functions that native/ adds to llama.cpp: what native/include/afterword.h says, for ctypes.

A test holds the two to each other. The header says what each function does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, TypeAlias

Signature: TypeAlias = tuple[Any, list[Any]]
"""The type of a function's result (None for void), and of its arguments."""
Functions: TypeAlias = Mapping[str, Any]

AbortListener = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
Sizes = ctypes.c_uint64 * 4


class DrawnRow(ctypes.Structure):
    """``struct afterword_row``."""

    _fields_ = (
        ("logits", ctypes.c_void_p), ("changed", ctypes.c_void_p),
        ("uniform", ctypes.c_double), ("second", ctypes.c_double),
        ("temperature", ctypes.c_double), ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double), ("typical_p", ctypes.c_double),
        ("xtc_probability", ctypes.c_double), ("xtc_threshold", ctypes.c_double),
        ("top_k", ctypes.c_int32), ("top", ctypes.c_int32), ("ranked", ctypes.c_int32),
        ("token", ctypes.c_int32), ("rank", ctypes.c_int32), ("state", ctypes.c_int32),
        ("normaliser", ctypes.c_double), ("logprob", ctypes.c_double),
        ("top_ids", ctypes.c_void_p), ("top_logprobs", ctypes.c_void_p),
    )  # fmt: skip


ROW_DONE, ROW_BROKEN, ROW_NOTHING = range(3)
GUARDED_PREFIX = "llama_afterword_guarded_"
_PREFIX = "llama_"
_GUARDED = (
    "llama_tokenize", "llama_model_load_from_file", "llama_model_quantize",
    "llama_init_from_model", "llama_decode", "llama_get_logits", "llama_memory_seq_rm",
    "llama_state_seq_get_size_ext", "llama_state_seq_get_data_ext",
    "llama_state_seq_set_data_ext",
)  # fmt: skip
"""Functions of llama.h that have a guarded version, with one more argument for the result."""


def guarded_name(name: str) -> str:
    """Returns the name of the guarded version of a function of llama.h."""
    return name.replace(_PREFIX, GUARDED_PREFIX, 1)


def signatures(lib: Any) -> Mapping[str, Signature]:  # noqa: ANN401 - the module of bindings
    """Returns the types of all functions by name; ``lib`` has those of llama.h."""
    own = [getattr(lib, name) for name in _GUARDED]
    return {
        "llama_afterword_changes": (ctypes.c_char_p, []),
        "llama_afterword_message": (ctypes.c_char_p, []),
        "ggml_afterword_packed_buffer_type": (ctypes.c_void_p, []),
        "ggml_afterword_packed_kernels": (ctypes.c_char_p, []),
        "llama_afterword_log_grave": (None, [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]),
        "llama_afterword_on_abort": (None, [AbortListener]),
        "ggml_afterword_thread_pool": (ctypes.c_void_p, [ctypes.c_int32, ctypes.c_uint32]),
        "llama_afterword_attach_thread_pool": (None, [ctypes.c_void_p, ctypes.c_void_p]),
        "ggml_afterword_exponentials": (
            ctypes.c_double,
            [ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float],
        ),
        "ggml_afterword_draw_room": (ctypes.c_int64, [ctypes.c_int32]),
        "ggml_afterword_draw": (
            None,
            [
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_int32,
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_void_p,
            ],
        ),
        "llama_afterword_window": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32]),
        "llama_afterword_pieces": (
            ctypes.c_int64,
            [
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_int64,
                ctypes.POINTER(ctypes.c_int32),
                ctypes.POINTER(ctypes.c_uint8),
            ],
        ),
        "llama_afterword_memory": (ctypes.c_int32, [ctypes.c_void_p, ctypes.POINTER(Sizes)]),
        "llama_afterword_ragged": (ctypes.c_bool, [ctypes.c_void_p]),
        "llama_afterword_want_blocks": (None, [ctypes.c_uint32]),
        "llama_afterword_has_blocks": (ctypes.c_bool, [ctypes.c_void_p]),
        "llama_afterword_bind": (
            None,
            [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p],
        ),
        "llama_afterword_copy_cells": (
            None,
            [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32],
        ),
        "llama_afterword_fork": (
            ctypes.c_int32,
            [
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_int32,
                ctypes.c_int32,
                ctypes.POINTER(ctypes.c_bool),
            ],
        ),
        **{
            guarded_name(function.__name__): (
                ctypes.c_int32,
                [*function.argtypes, ctypes.POINTER(function.restype)],
            )
            for function in own
        },
    }


def declare(lib: Any) -> Functions:  # noqa: ANN401 - the module of bindings
    """Returns the functions by name, with their types; none of them if the library is unchanged."""
    found = {}
    for name, (result, arguments) in signatures(lib).items():
        function = getattr(lib._lib, name, None)  # noqa: SLF001 - no binding has it
        if function is not None:
            function.restype, function.argtypes = result, arguments
            found[name] = function
    return found
