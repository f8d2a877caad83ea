"""Runs work that recurses deeply on a thread with a stack for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_STACK_BYTES = 128 * 2**20
"""Memory is taken as the stack grows. A usual thread has 8 MiB, on some systems 128 KiB."""
_starting = threading.Lock()


def on_deep_stack(work: Callable[[], T]) -> T:
    """Returns what ``work`` returns, and raises what it raises.

    A stack that overflows in a compiled library ends the process, so no error would say so.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            done.set_exception(error)

    thread = threading.Thread(target=run, name="afterword-deep-stack", daemon=True)
    with _starting:
        # The size counts for all threads that start now. A larger one does no harm to others.
        usual_bytes = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual_bytes)
    return done.result()
