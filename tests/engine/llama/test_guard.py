"""An exception of the library becomes a Python exception, and the process goes on."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from afterword.core.errors import EngineUnavailable, UnspellableText
from afterword.engine.llama import binding
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.guard import NativeError, UnspellableError, guarded
from afterword.engine.llama.native import Functions
from support.tiny_gguf import make_gguf
from support.tiny_vocab import spm


def _functions(code: int, line: bytes) -> Functions:
    """Returns those of a library whose ``llama_work`` returns a code and a result."""

    def work(number: int, result: ctypes._CArgObject) -> int:
        ctypes.cast(result, ctypes.POINTER(ctypes.c_int))[0] = number + 1
        return code

    return {"llama_afterword_guarded_work": work, "llama_afterword_message": lambda: line}


def _own(number: int) -> int:
    return number - 1


_own.__name__ = "llama_work"
_own.restype, _own.argtypes = ctypes.c_int, [ctypes.c_int]  # type: ignore[attr-defined]


def test_a_call_returns_its_result() -> None:
    assert guarded(_functions(0, b""), _own)(5) == 6


def test_an_unchanged_library_is_called_directly() -> None:
    assert guarded({}, _own)(5) == 4


@pytest.mark.parametrize(("code", "kind"), [(1, NativeError), (2, UnspellableError)])
def test_an_exception_is_raised_with_one_line(code: int, kind: type[NativeError]) -> None:
    with pytest.raises(kind, match=r"^it broke$") as raised:
        guarded(_functions(code, b"it broke\nin two lines"), _own)(5)
    assert type(raised.value) is kind


@pytest.mark.skipif(
    not binding.CHANGES,
    reason="an unchanged library",
)
def test_a_vocabulary_can_be_used_until_it_is_freed(tmp_path: Path) -> None:
    vocabulary = spm(byte_tokens=False, unknown=False)
    model = LlamaModel(make_gguf(tmp_path / "tiny.gguf", vocabulary=vocabulary))
    begun = threading.Event()
    outcomes: list[type[Exception]] = []

    def ask() -> None:
        while not outcomes:
            try:
                model.encode("😀".encode(), parse_special=True)
            except UnspellableText:
                begun.set()
            except EngineUnavailable as error:
                outcomes.append(type(error))

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(60)
    model.close()
    thread.join(60)
    assert outcomes == [EngineUnavailable]
