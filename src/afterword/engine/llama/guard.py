"""Native calls that can throw: what the library throws ends a request, not the process.

scripts/llama/guard.cpp catches it. A library without that is called as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_PREFIX = "llama_"
_GUARDED_PREFIX = "llama_afterword_guarded_"
_UNSPELLABLE = 2


class NativeError(Exception):
    """The library threw; the message is its own, in one line."""


class UnspellableError(NativeError):
    """A text has characters that the vocabulary has no tokens for."""


def guards(library: Any) -> bool:  # noqa: ANN401 - a shared library
    """Whether a library has guarded calls."""
    return hasattr(library, "llama_afterword_message")


def guarded(library: Any, own: Any) -> Callable[..., Any]:  # noqa: ANN401 - C functions of any kind
    """A function of the library that raises ``NativeError`` where the library throws.

    It takes and gives what the ``own`` one does, by whose name it is found.
    """
    if not guards(library):
        function: Callable[..., Any] = own
        return function
    call = getattr(library, own.__name__.replace(_PREFIX, _GUARDED_PREFIX, 1))
    call.argtypes = [*own.argtypes, ctypes.POINTER(own.restype)]
    message = library.llama_afterword_message
    message.restype = ctypes.c_char_p
    gives_value = hasattr(own.restype, "value")

    def checked(*arguments: Any) -> Any:  # noqa: ANN401
        result = own.restype()
        code = call(*arguments, ctypes.byref(result))
        if code:
            line = message().decode(errors="replace").partition("\n")[0]
            raise (UnspellableError if code == _UNSPELLABLE else NativeError)(line)
        return result.value if gives_value else result

    return checked
