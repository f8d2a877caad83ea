"""The server's signals: what SIGHUP asks for is done, whenever it comes."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner
from starlette.types import Receive, Scope, Send

from afterword.cli import serve
from afterword.cli.server import Server, ServerOptions
from afterword.cli.terminal import Terminal
from afterword.http.lifecycle import Lifecycle
from afterword.http.server.connection import Timeouts


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An app that nobody asks."""


@asynccontextmanager
async def running(on_reload: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[Server]:
    """A server that is ready."""
    ready = asyncio.Event()
    server = Server(
        nothing,
        ServerOptions(grace_s=1, timeouts=Timeouts(), max_connections=1),
        lifecycle=Lifecycle(),
        on_ready=ready.set,
        on_reload=on_reload,
    )
    with socket.create_server(("127.0.0.1", 0)) as bound:
        serving = asyncio.create_task(server.serve([bound]))
        await ready.wait()
        yield server
        server.stop()
        await serving


async def test_what_is_asked_for_during_a_reload_is_done_after_it() -> None:
    """The first one may have read the settings before they were changed again."""
    begun: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def reload() -> None:
        begun.put_nowait(None)
        await go_on.wait()

    async with running(reload) as server:
        signal.raise_signal(signal.SIGHUP)
        await begun.get()
        signal.raise_signal(signal.SIGHUP)
        while not server._asked_again:
            await asyncio.sleep(0)
        go_on.set()
        await begun.get()


async def test_a_reload_during_the_start_is_done_after_it() -> None:
    reloaded = asyncio.Event()

    async def reload() -> None:
        reloaded.set()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.raise_signal(signal.SIGHUP)
    async with running(reload):
        await reloaded.wait()
    # It would end a process that still writes its ledger.
    assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_start_holds_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def start(*_: object) -> None:
        held.append(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    monkeypatch.setattr(serve, "_serve", start)
    monkeypatch.setattr(serve, "open_log", lambda *_: Terminal())
    monkeypatch.setattr(serve, "return_freed_memory", lambda: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    done = CliRunner().invoke(serve.serve, ["--port", "0"], catch_exceptions=False)
    assert (done.exit_code, held) == (0, [True])
