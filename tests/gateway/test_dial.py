"""Hosts with several addresses: some are silent, some refuse, and one answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from afterword.gateway.address import parse_addresses
from afterword.gateway.failures import ConnectFailed
from afterword.gateway.transport import dial as dialling
from afterword.gateway.transport.client import HttpClient
from afterword.gateway.transport.dial import _in_turn, dial

_Attempt = Callable[[], Awaitable[socket.socket]]
_NEVER_S = 1e6


class Host:
    """A host whose addresses, in order, do what ``attempts`` do."""

    def __init__(self, patch: pytest.MonkeyPatch, *attempts: _Attempt) -> None:
        self.begun = self.cancelled = 0
        self.opened: list[socket.socket] = []
        patch.setattr(asyncio.get_running_loop(), "getaddrinfo", _known)
        patch.setattr(dialling, "_in_turn", lambda _: list(attempts))
        patch.setattr(dialling, "_connected", self._run)

    async def _run(self, attempt: _Attempt) -> socket.socket:
        self.begun += 1
        try:
            self.opened.append(await attempt())
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.opened[-1]


async def _known(*_: object, **__: object) -> list[object]:
    """Returns at once, so that no test waits for a resolver."""
    return []


async def silent() -> socket.socket:
    never: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
    return await never


async def refuses() -> socket.socket:
    raise ConnectionRefusedError(111, "Connection refused")


async def unreachable() -> socket.socket:
    raise OSError(113, "No route to host")


async def answers() -> socket.socket:
    return socket.socket()


async def test_a_silent_address_gets_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_STAGGER_S", 0.001)
    host = Host(monkeypatch, silent, silent, answers, answers)
    with await dial("localhost", 1) as found:
        assert found is host.opened[0]
    await asyncio.sleep(0)
    assert (host.begun, host.cancelled) == (3, 2)


async def test_an_address_that_refuses_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_STAGGER_S", _NEVER_S)
    host = Host(monkeypatch, refuses, unreachable, answers)
    (await dial("localhost", 1)).close()
    assert host.begun == 3


async def test_one_that_answers_late_is_taken_if_others_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialling, "_STAGGER_S", 0.001)
    last_refused = asyncio.Event()

    async def late() -> socket.socket:
        await last_refused.wait()
        return socket.socket()

    async def last() -> socket.socket:
        last_refused.set()
        return await refuses()

    host = Host(monkeypatch, late, refuses, last)
    (await dial("localhost", 1)).close()
    assert host.begun == 3


async def test_of_two_that_answer_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_STAGGER_S", 0.001)
    both = asyncio.Event()

    async def first() -> socket.socket:
        await both.wait()
        return socket.socket()

    async def second() -> socket.socket:
        both.set()
        return socket.socket()

    host = Host(monkeypatch, first, second)
    with await dial("localhost", 1):
        await asyncio.sleep(0)
        assert sum(one.fileno() >= 0 for one in host.opened) == 1


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    Host(monkeypatch, refuses, unreachable)
    with pytest.raises(OSError, match="No route to host"):
        await dial("localhost", 1)


async def test_all_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for connecting is one for all, and nothing goes on after it."""
    monkeypatch.setattr(dialling, "_STAGGER_S", 0.001)
    host = Host(monkeypatch, silent, silent)
    (address,) = parse_addresses("vllm+http://localhost:1/v1")
    with pytest.raises(ConnectFailed, match=r"no connection within 0\.05 s"):
        await HttpClient(address, key=None, connect_s=0.05).connect()
    await asyncio.sleep(0)
    assert host.begun == host.cancelled > 0


async def test_a_real_refusal_is_said_without_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (address,) = parse_addresses(f"vllm+http://127.0.0.1:{port}/v1")
    with pytest.raises(ConnectFailed, match=r"^connection refused$"):
        await HttpClient(address, key=None, connect_s=5).connect()


@pytest.mark.parametrize("host", ["[::1]", "localhost", "127.0.0.1"])
async def test_a_server_on_one_kind_of_address(host: str) -> None:
    """``localhost`` is both, and the server is on one of them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"host: {host}:{port}\r\n".encode() in head
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(answer, "::1" if ":" in host else "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (address,) = parse_addresses(f"vllm+http://{host}:{port}/v1")
    client = HttpClient(address, key=None, connect_s=5)
    head, body = await client.exchange("GET", "/", timeout_s=5)
    assert (head.status, body) == (200, b"hi")
    client.close()
    server.close()
    await server.wait_closed()


async def test_a_machine_that_vanishes_ends_its_connection() -> None:
    """Else a request would wait for its first token as long as for a slow server's.

    A server that leaves a long prompt unread for a while has not vanished.
    """
    server = socket.create_server(("127.0.0.1", 0))
    with server, await dial("127.0.0.1", server.getsockname()[1]) as found:
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert not found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def _link_local() -> str:
    """Returns an address that is one only with its interface; empty if this machine has none."""
    table = Path("/proc/net/if_inet6")
    if not table.exists():
        return ""
    for line in table.read_text(encoding="ascii").splitlines():
        digits, *_, interface = line.split()
        if digits.startswith("fe80"):
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{interface}"
    return ""


@pytest.mark.skipif(not _link_local(), reason="this machine has no link-local address")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_address_keeps_its_interface(run: Callable[..., None]) -> None:
    """Without it the system takes no connection to such an address."""
    ((*_, at),) = socket.getaddrinfo(_link_local(), 0, type=socket.SOCK_STREAM)

    async def connects(port: int) -> None:
        with await dial(_link_local(), port) as dialled:
            assert dialled.getpeername() == (at[0], port, *at[2:])

    with socket.socket(socket.AF_INET6) as server:
        server.bind(at)
        server.listen()
        run(connects(server.getsockname()[1]))


def test_kinds_of_addresses_take_turns() -> None:
    """If a network has no IPv6, or only that, the second attempt already succeeds."""
    kinds = {"6": socket.AF_INET6, "4": socket.AF_INET}
    for found, turns in (("6644", "6464"), ("4446", "4644"), ("44", "44"), ("6", "6")):
        resolved = [
            (kinds[kind], socket.SOCK_STREAM, 6, "", (at,)) for at, kind in enumerate(found)
        ]
        assert [one[0] for one in _in_turn(resolved)] == [kinds[kind] for kind in turns]
