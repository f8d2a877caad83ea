"""Turns exceptions that the library throws into Python exceptions.

So they end a request instead of the process. native/library/guard.cpp catches them; a library
without it is called directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from afterword.engine.llama.native import Functions, guarded_name

_UNSPELLABLE = 2


class NativeError(Exception):
    """The library threw an exception; the message is the first line of its own."""


class UnspellableError(NativeError):
    """A text has characters that the vocabulary has no tokens for."""


def returning(functions: Functions, name: str, kind: Any) -> Callable[..., Any] | None:  # noqa: ANN401
    """Returns a function that returns its result, of a C type, and raises ``NativeError``.

    The C function leaves the result where its last argument points, and returns a code. Returns
    None if ``functions`` have no function of this name.
    """
    call = functions.get(name)
    if call is None:
        return None
    message = functions["llama_afterword_message"]
    is_simple = hasattr(kind, "value")

    def checked(*arguments: Any) -> Any:  # noqa: ANN401
        result = kind()
        code = call(*arguments, ctypes.byref(result))
        if code:
            line = message().decode(errors="replace").partition("\n")[0]
            raise (UnspellableError if code == _UNSPELLABLE else NativeError)(line)
        return result.value if is_simple else result

    return checked


def guarded(functions: Functions, own: Any) -> Callable[..., Any]:  # noqa: ANN401 - C functions of any kind
    """Returns the guarded version of a function; it raises ``NativeError`` if the library throws.

    It has the arguments and result of ``own``, and is found by the name of ``own``. Returns
    ``own`` itself if the library has no guards.
    """
    return returning(functions, guarded_name(own.__name__), own.restype) or own
