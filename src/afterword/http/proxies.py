"""The address of a client behind proxies that the operator trusts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_MOST_HOPS = 32
# A parameter of ``Forwarded`` (RFC 7239): a token, or a string in quotes.
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)


def client_address(
    peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]
) -> str:
    """Returns the address of the nearest hop that is no trusted proxy.

    Each proxy adds the address of its own client at the right, so only what trusted ones wrote is
    believed. ``peer`` is the other end of the connection. A header that names no address at that
    place gives the address of the proxy that passed it on. ``X-Forwarded-For`` counts if both are
    there, because most proxies write it and pass ``Forwarded`` on as it came.
    """
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    given = list(headers)
    hops = _hops(given, b"x-forwarded-for") or _hops_of_forwarded(given)
    client = peer
    for hop in reversed(hops[-_MOST_HOPS:]):
        address = _address_of(hop)
        if address is None:
            return client
        client = str(address)
        if not _is_trusted(client, trusted):
            return client
    return client


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    address = _address_of(text)
    return address is not None and any(address in network for network in trusted)


def _hops(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    """Returns the elements of all headers of a name, in order."""
    values = (value.decode("latin-1") for name, value in headers if name.lower() == wanted)
    return [hop.strip() for value in values for hop in value.split(",")]


def _hops_of_forwarded(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Returns the ``for`` of each element of ``Forwarded``; "" where one has none."""
    found = (_FOR.search(element) for element in _hops(headers, b"forwarded"))
    return ["" if match is None else match[1] or match[2] or "" for match in found]


def _address_of(text: str) -> _Address | None:
    """Returns an address that may have a port and brackets; None if it is none."""
    name = text.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
