"""An event loop on a thread of its own, and the backend that lives in it."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from afterword.core.errors import EngineUnavailable
from afterword.library.backend import Backend, Opener

T = TypeVar("T")
_CLOSED = "This model is closed."
_FORKED = "This model was opened before a fork, and its threads stayed behind: open it here."


class Session:
    """Opens a backend on a thread, and runs work there for any thread or event loop.

    The backend is opened at once, in the background, and closed in the task that opened it. A
    program that forgets to close ends as if it had: a thread that computes while the interpreter
    goes would crash.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._ready: Future[Backend] = Future()
        self._closing = False
        self._process = os.getpid()
        # The collector may drop a stream, and so submit its end, while this thread submits.
        self._lock = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        # The interpreter waits for other threads before it asks any of them to end.
        self._thread = threading.Thread(target=self._run, name="afterword-library", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def ready(self) -> Future[Backend]:
        """The backend, or the error that opening it gave."""
        return self._ready

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run work in the session's loop. Cancelling the future cancels it.

        Raises the error that opening gave, and ``EngineUnavailable`` after ``close`` and in a
        process that was forked since.
        """
        if self._is_elsewhere():
            work.close()
            raise EngineUnavailable(_FORKED)
        if self._ready.done() and self._ready.exception() is not None:
            work.close()
            self._ready.result()
        with self._lock:
            if not self._closing:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise EngineUnavailable(_CLOSED)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of work. If the caller is interrupted, the work is cancelled.

        Raises ``RuntimeError`` in the session's own thread, which cannot wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a callback of the library may not wait for the library")
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError:
            raise EngineUnavailable(_CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    async def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of work to another event loop. Cancelling the caller cancels it."""
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing and (task is None or not task.cancelling()):
                raise EngineUnavailable(_CLOSED) from None
            raise

    def leave(self) -> None:
        """Begin to close, without waiting. Idempotent."""
        if self._is_elsewhere():
            return
        with self._lock:
            if not self._closing:
                self._closing = True
                self._loop.call_soon_threadsafe(self._stop.set)

    def close(self) -> None:
        """End running work, close the backend, end the thread. Idempotent."""
        self.leave()
        if threading.current_thread() is not self._thread and not self._is_elsewhere():
            self._thread.join()

    def _is_elsewhere(self) -> bool:
        """Whether this is a forked process: it has a copy of the loop, and no thread runs it."""
        return os.getpid() != self._process

    def _run(self) -> None:
        executor = LastingExecutor(thread_name_prefix="afterword-library")
        self._loop.set_default_executor(executor)
        try:
            self._loop.run_until_complete(self._live())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            executor.shutdown()
            self._loop.close()
            # A program may open many models; none is kept until its end.
            atexit.unregister(self.close)

    async def _live(self) -> None:
        try:
            async with self._opener() as backend:
                self._ready.set_result(backend)
                await self._stop.wait()
                await _end_others()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
            with self._lock:
                self._closing = True


class LastingExecutor(ThreadPoolExecutor):
    """Threads for blocking calls; at the interpreter's end, when there are none, no thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - of the base
        """Returns the future of a call."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the future has it
                done.set_exception(error)
            return done


async def _end_others() -> None:
    """Cancel all other tasks, and wait until they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
