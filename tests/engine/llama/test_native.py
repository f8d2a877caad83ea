"""native/include/afterword.h and the types that ctypes has say the same."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from afterword.engine.llama import binding
from afterword.engine.llama.context import BLOCK_TOKENS
from afterword.engine.llama.native import AbortListener, DrawnRow, signatures

HEADER = Path(__file__).parents[3] / "native" / "include" / "afterword.h"
COMMENT = re.compile(r"//.*")
CALL = re.compile(r"(?:LLAMA_API|GGML_BACKEND_API)\s+([^;]*?)(\w+)\(([^)]*)\);")
VALUES = {
    "void": None, "bool": ctypes.c_bool, "float": ctypes.c_float, "double": ctypes.c_double,
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64, "uint8_t": ctypes.c_uint8, "size_t": ctypes.c_size_t,
    "enum ggml_log_level": ctypes.c_int, "llama_token": ctypes.c_int32,
    "llama_seq_id": ctypes.c_int32, "llama_pos": ctypes.c_int32,
    "llama_state_seq_flags": ctypes.c_uint32, "ggml_abort_callback_t": AbortListener,
    "struct llama_model_params": binding.lib.llama_model_params,
    "struct llama_context_params": binding.lib.llama_context_params,
    "struct llama_batch": binding.lib.llama_batch,
}  # fmt: skip
HANDLES = ("ggml_backend_buffer_type_t", "ggml_threadpool_t", "llama_memory_t")


def _kind(spelled: str) -> Any:
    """Returns the ctypes type of a value, and ``c_void_p`` for any pointer."""
    kind = " ".join(spelled.replace("const ", "").split())
    return ctypes.c_void_p if "*" in kind or kind in HANDLES else VALUES[kind]


def _argument(spelled: str) -> Any:
    return _kind(re.sub(r"\w+$", "", spelled.strip()))


def _plain(kind: Any) -> Any:
    """Returns a type of the table, with ``c_void_p`` for any pointer."""
    pointers = (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p)
    is_pointer = isinstance(kind, type) and issubclass(kind, pointers)
    return ctypes.c_void_p if is_pointer else kind


def _declared() -> dict[str, tuple[Any, list[Any]]]:
    text = COMMENT.sub("", HEADER.read_text())
    return {
        name: (
            _kind(result),
            [] if arguments == "void" else [_argument(each) for each in arguments.split(",")],
        )
        for result, name, arguments in CALL.findall(text)
    }


def test_header_and_table_say_the_same() -> None:
    table = {
        name: (_plain(result), [_plain(kind) for kind in arguments])
        for name, (result, arguments) in signatures(binding.lib).items()
    }
    assert table == _declared()


def test_header_and_structure_say_the_same() -> None:
    text = COMMENT.sub("", HEADER.read_text())
    (body,) = re.findall(r"struct afterword_row \{(.*?)\};", text, re.DOTALL)
    fields = []
    for declaration in body.split(";")[:-1]:
        ((kind, names),) = re.findall(r"^\s*((?:const )?\w+)\s+(.*)$", declaration, re.DOTALL)
        fields += [
            (name.strip("* "), ctypes.c_void_p if "*" in name else _kind(kind))
            for name in names.split(",")
        ]
    assert fields == list(DrawnRow._fields_)


def test_header_and_python_have_blocks_of_one_size() -> None:
    (cells,) = re.findall(r"AFTERWORD_BLOCK_CELLS\s*=\s*(\d+),", HEADER.read_text())
    assert int(cells) == BLOCK_TOKENS


def test_every_declaration_was_read() -> None:
    text = COMMENT.sub("", HEADER.read_text())
    assert len(_declared()) == len(re.findall(r"LLAMA_API|GGML_BACKEND_API", text)) > 20


@pytest.mark.skipif(not binding.CHANGES, reason="an unchanged library")
def test_the_library_has_all_of_them() -> None:
    assert binding.additions.keys() == signatures(binding.lib).keys()
