"""Turns exceptions that the library throws into Python exceptions.

So they end a request instead of the process. native/library/guard.cpp catches them; a library
without it is called directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_PREFIX = "llama_"
_GUARDED_PREFIX = "llama_afterword_guarded_"
_UNSPELLABLE = 2


class NativeError(Exception):
    """The library threw an exception; the message is the first line of its own."""


class UnspellableError(NativeError):
    """A text has characters that the vocabulary has no tokens for."""


def guards(library: Any) -> bool:  # noqa: ANN401 - a shared library
    """Whether a library has guarded calls."""
    return hasattr(library, "llama_afterword_message")


def guarded(library: Any, own: Any) -> Callable[..., Any]:  # noqa: ANN401 - C functions of any kind
    """Returns the guarded version of a function; it raises ``NativeError`` if the library throws.

    It has the arguments and result of ``own``, and is found by the name of ``own``. Returns
    ``own`` itself if the library has no guards.
    """
    if not guards(library):
        function: Callable[..., Any] = own
        return function
    call = getattr(library, own.__name__.replace(_PREFIX, _GUARDED_PREFIX, 1))
    call.argtypes = [*own.argtypes, ctypes.POINTER(own.restype)]
    message = library.llama_afterword_message
    message.restype = ctypes.c_char_p
    is_simple = hasattr(own.restype, "value")

    def checked(*arguments: Any) -> Any:  # noqa: ANN401
        result = own.restype()
        code = call(*arguments, ctypes.byref(result))
        if code:
            line = message().decode(errors="replace").partition("\n")[0]
            raise (UnspellableError if code == _UNSPELLABLE else NativeError)(line)
        return result.value if is_simple else result

    return checked
