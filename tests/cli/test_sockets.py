"""The socket that the server listens on."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from afterword.cli.sockets import bind, is_loopback, load_tls, url_of
from afterword.core.errors import ConfigError


class Strict(socket.socket):
    """A socket of a system where IPv6 does not include IPv4 unless a program asks for it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.family == socket.AF_INET6 and not named.get("fileno"):
            self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def test_every_address_is_also_every_address_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Strict)
        bound = bind("::", 0)
    with bound:
        bound.listen()
        port = bound.getsockname()[1]
        # What the start says works.
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()
        assert not is_loopback(bound)


def test_one_address_of_ipv6() -> None:
    with bind("::1", 0) as bound:
        assert url_of(bound, tls=True) == f"https://[::1]:{bound.getsockname()[1]}"
        assert is_loopback(bound)


def test_what_to_do_about_a_taken_port() -> None:
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: .*; --port names another port"):
            bind("127.0.0.1", port)
    # Of a network that is for documents only.
    with pytest.raises(ConfigError, match="; --host has to name an address of this machine"):
        bind("192.0.2.1", 0)


def test_a_certificate_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"set up with none\.pem and key\.pem: No"):
        load_tls("none.pem", "key.pem")
