"""The keys in memory: whose a secret is, without asking the database; and guessing, slowed down."""

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
    """A key as servers need it: how it is recognised, what it allows, until when."""

    digest: bytes
    id: str
    terms: KeyTerms
    expires_at: float | None


class Keyring:
    """Every key that is good, as it was when the database was last looked at. Immutable.

    ``needed``: a key was ever made, so nobody gets in without one.
    """

    def __init__(self, version: int, held: Iterable[HeldKey], *, needed: bool) -> None:
        self.version = version
        self.needed = needed
        self._by_digest = {key.digest: key for key in held}
        self._terms = {key.id: key.terms for key in self._by_digest.values()}

    def terms(self, key_id: str) -> KeyTerms | None:
        """What a key allows now; None where it is revoked."""
        return self._terms.get(key_id)

    def find(self, secret: str, now_s: float) -> HeldKey | None:
        """The key of a secret, unless it has expired.

        The lookup is by a hash, whose bits tell nothing of the secret's; what is found is then
        compared in constant time.
        """
        digest = digest_of(secret)
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        if key.expires_at is not None and key.expires_at <= now_s:
            return None
        return key


class Failures:
    """Wrong keys by source: each makes the next wait longer, until a quiet minute.

    Others are not held up, and memory is bounded: the sources that failed last are remembered.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.count = 0

    def wait_s(self, source: str, now_s: float) -> float:
        """Count a failure, and say how long its answer is to wait."""
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
    """A source as one who may guess: of IPv6 whoever has one address has 2^64."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)
