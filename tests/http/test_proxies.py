"""The client's address: what a stranger writes into a header is not believed."""

from __future__ import annotations

import ipaddress

import pytest

from afterword.config import resolve
from afterword.core.errors import ConfigError
from afterword.http.proxies import client_address

TRUSTED = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8")))
XFF, FORWARDED = b"x-forwarded-for", b"forwarded"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"203.0.113.9")], "203.0.113.9"),
        # The peer is no proxy of ours.
        ("203.0.113.5", [(XFF, b"203.0.113.9")], "203.0.113.5"),
        ("", [(XFF, b"203.0.113.9")], ""),
        # What the client wrote stands at the left.
        ("10.0.0.1", [(XFF, b"1.1.1.1, 203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(XFF, b"1.1.1.1"), (XFF, b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(XFF, b"203.0.113.9, 192.0.2.7, 10.2.3.4")], "203.0.113.9"),
        ("10.0.0.1", [(XFF, b"10.0.0.9, 10.0.0.8")], "10.0.0.9"),
        # Ports, brackets, IPv6, IPv4 in IPv6.
        ("10.0.0.1", [(XFF, b"203.0.113.9:5000")], "203.0.113.9"),
        ("fd00::1", [(XFF, b"[2001:db8::1]:443")], "2001:db8::1"),
        ("::ffff:10.0.0.1", [(XFF, b"2001:db8::1")], "2001:db8::1"),
        ("10.0.0.1", [(XFF, b"::ffff:203.0.113.9")], "203.0.113.9"),
        # What is no address ends the search at the hop that wrote it.
        ("10.0.0.1", [(XFF, b"203.0.113.9, unknown")], "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"unknown, 10.0.0.7")], "10.0.0.7"),
        ("10.0.0.1", [(XFF, b"")], "10.0.0.1"),
        ("10.0.0.1", [(XFF, b"\xff\xfe, '; drop")], "10.0.0.1"),
        ("10.0.0.1", [(FORWARDED, b"for=203.0.113.9;proto=https")], "203.0.113.9"),
        ("10.0.0.1", [(FORWARDED, b'by=x;For="[2001:db8::1]:80", for=10.1.1.1')], "2001:db8::1"),
        ("10.0.0.1", [(FORWARDED, b"for=1.1.1.1, for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [(FORWARDED, b"for=1.1.1.1, proto=https")], "10.0.0.1"),
        # A proxy that writes the one header passes the other on as the client sent it.
        ("10.0.0.1", [(FORWARDED, b"for=1.1.1.1"), (XFF, b"203.0.113.9")], "203.0.113.9"),
        ("10.0.0.1", [(XFF, b"1.1.1.1," * 10_000 + b"203.0.113.9")], "203.0.113.9"),
    ],
)
def test_the_nearest_hop_that_is_not_trusted(
    peer: str, headers: list[tuple[bytes, bytes]], client: str
) -> None:
    assert client_address(peer, headers, TRUSTED) == client
    assert client_address(peer, headers, ()) == peer


def test_the_setting_takes_addresses_and_networks() -> None:
    settings = resolve({"trusted_proxies": "10.0.0.1, fd00::/8,10.1.2.3/8"}, {}).settings
    assert list(map(str, settings.proxies())) == ["10.0.0.1/32", "fd00::/8", "10.0.0.0/8"]
    assert resolve({}, {}).settings.proxies() == ()
    with pytest.raises(ConfigError, match="'nginx' is neither an address nor a network"):
        resolve({"trusted_proxies": "10.0.0.1,nginx"}, {}).settings.proxies()
