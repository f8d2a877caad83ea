"""Where an upstream is and what it speaks: ``vllm+http://host:8000/v1#model``."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from afterword.core.errors import ConfigError

DIALECTS = ("afterword", "vllm", "sglang", "llamacpp", "openai")
_SCHEME = re.compile(r"([a-z]+)\+(https?)://")
_PORTS = {"http": 80, "https": 443}


class Address(msgspec.Struct, frozen=True):
    """One upstream. ``base`` is the path of the URL that an SDK would be given, without a slash.

    ``model`` is the name that the model has there, None where it need not be said.
    """

    dialect: str
    tls: bool
    host: str
    port: int
    base: str
    model: str | None = None

    @property
    def origin(self) -> str:
        """How people are told of the upstream: scheme, host and port, nothing secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address: no two upstreams have the same. It cannot hold a key."""
        return self.origin + self.base + (f"#{self.model}" if self.model else "")

    @property
    def root(self) -> str:
        """The path in which routes beside ``/v1`` stand."""
        return self.base.removesuffix("/v1")


def is_remote(source: str) -> bool:
    """Whether a model's source names other servers rather than a file."""
    return _SCHEME.match(source) is not None


def parse_addresses(source: str) -> tuple[Address, ...]:
    """The upstreams of a source: addresses of one dialect, with spaces between. ``ConfigError``."""
    addresses = tuple(_parse(text) for text in source.split())
    if len({address.dialect for address in addresses}) > 1:
        raise ConfigError(f"{source!r}: the upstreams of one model speak one dialect")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"{source!r}: an address is given twice")
    return addresses


def _parse(text: str) -> Address:
    found = _SCHEME.match(text)
    if found is None or found[1] not in DIALECTS:
        raise ConfigError(f"{text!r} does not begin with {'+, '.join(DIALECTS)}+ and http(s)://")
    try:
        parts = urlsplit(text[len(found[1]) + 1 :])
        port = parts.port or _PORTS[found[2]]
    except ValueError:
        raise ConfigError(f"{text!r}: the address has no such port") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("an upstream's address has no user or password: see upstream_keys")
    if not parts.hostname or parts.query:
        raise ConfigError(f"{text!r} is not {found[1]}+{found[2]}://HOST:PORT/v1")
    return Address(
        found[1],
        found[2] == "https",
        parts.hostname,
        port,
        parts.path.rstrip("/"),
        parts.fragment or None,
    )
