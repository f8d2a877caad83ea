"""The keys in memory: finds a key by its secret without the database, and slows down guessing."""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from afterword.core.account import KeyTerms
from afterword.ledger.secret import digest_of

_MOST_SOURCES = 4096
_FORGIVEN_S = 60.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0


class HeldKey(msgspec.Struct, frozen=True):
    """A good key: the hash of its secret, its terms, its end (Unix seconds)."""

    digest: bytes
    id: str
    terms: KeyTerms
    expires_at: float | None


class Keyring:
    """All good keys, as of the last look at the database. Immutable.

    ``needed``: a key was once made, so every request needs one.
    """

    def __init__(self, version: int, held: Iterable[HeldKey], *, needed: bool) -> None:
        self.version = version
        self.needed = needed
        self._by_digest = {key.digest: key for key in held}
        self._terms = {key.id: key.terms for key in self._by_digest.values()}

    def terms(self, key_id: str) -> KeyTerms | None:
        """Returns the terms of a key, or None if it is revoked."""
        return self._terms.get(key_id)

    def find(self, secret: str, now_s: float) -> HeldKey | None:
        """Returns the key of a secret, or None if there is none or it has expired.

        The lookup is by a hash, whose timing tells nothing about the secret. The comparison takes
        constant time.
        """
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        if key.expires_at is not None and key.expires_at <= now_s:
            return None
        return key


class Failures:
    """Wrong keys by source. Each makes the source's next wait longer, until a quiet minute.

    Other sources do not wait. Memory is bounded: only the latest sources are remembered.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.count = 0

    def wait_s(self, source: str, now_s: float) -> float:
        """Count a failure. Returns how long its answer has to wait, in seconds."""
        self.count += 1
        network = _network(source)
        failed, last_s = self._sources.pop(network, (0, now_s))
        if now_s - last_s > _FORGIVEN_S:
            failed = 0
        self._sources[network] = (failed + 1, now_s)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)
        return min(_FIRST_WAIT_S * (1 << min(failed, 16)), _LONGEST_WAIT_S)


def _network(source: str) -> str:
    """Returns what counts as one source: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            # A socket of IPv6 shows clients of IPv4 so, all of them in one network.
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)
