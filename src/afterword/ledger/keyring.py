"""The keys in memory: finds a key by its secret without the database, and slows down guessing."""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from afterword.core.account import KeyTerms
from afterword.ledger.secret import digest_of

_PARTS = 256
"""As many as a byte has values."""
_MOST_SOURCES = 4096
_FORGIVEN_S = 60.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0


class HeldKey(msgspec.Struct, frozen=True, gc=False):
    """A good key by one of its secrets: the hash of that, its end (Unix seconds), the key's terms.

    ``reading`` is the reading of all keys that found it, ``other`` the next secret of the key.
    The garbage collector leaves keys out, because a visit of a million takes a twentieth of a
    second.
    """

    digest: bytes
    id: str
    terms: KeyTerms
    expires_at: float | None
    reading: int = 0
    other: HeldKey | None = None

    def all(self) -> Iterator[HeldKey]:
        """Returns this one and the others."""
        one: HeldKey | None = self
        while one is not None:
            yield one
            one = one.other


class Keyring:
    """All good keys, as of the last look at the database.

    ``needed``: a key was once made, so every request needs one.

    One thread changes it, key by key. Others look keys up meanwhile. It is kept in parts, because
    a dictionary of a million keys holds the interpreter for as long as it takes to grow.
    """

    def __init__(self, *, needed: bool) -> None:
        self.needed = needed
        self._by_digest: Sequence[dict[bytes, HeldKey]] = [{} for _ in range(_PARTS)]
        self._by_id: Sequence[dict[str, HeldKey]] = [{} for _ in range(_PARTS)]

    def terms(self, key_id: str) -> KeyTerms | None:
        """Returns the terms of a key, or None if it is revoked."""
        held = self._by_id[hash(key_id) % _PARTS].get(key_id)
        return None if held is None else held.terms

    def find(self, secret: str, now_s: float) -> HeldKey | None:
        """Returns the key of a secret, or None if there is none or it has expired.

        The lookup is by a hash, whose timing tells nothing about the secret. The comparison takes
        constant time.
        """
        digest = digest_of(secret)
        key = self._by_digest[digest[0]].get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        if key.expires_at is not None and key.expires_at <= now_s:
            return None
        return key

    def put(self, key_id: str, held: HeldKey | None) -> None:
        """Replace what is known of a key; None if it is revoked."""
        part = self._by_id[hash(key_id) % _PARTS]
        before = part.get(key_id)
        # In this order: a key that is found has terms unless it is revoked.
        if held is None:
            part.pop(key_id, None)
        else:
            part[key_id] = held
            for key in held.all():
                self._by_digest[key.digest[0]][key.digest] = key
        for old in () if before is None else before.all():
            digests = self._by_digest[old.digest[0]]
            if digests.get(old.digest) is old:
                del digests[old.digest]

    def keep_only(self, reading: int) -> None:
        """Remove the keys that a reading of all keys did not find."""
        for part in self._by_id:
            for key_id in [one for one, held in part.items() if held.reading != reading]:
                self.put(key_id, None)


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
