"""Addresses of upstreams with their dialect, such as ``vllm+http://host:8000/v1#model``."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

import msgspec

from afterword.core.errors import ConfigError

DIALECTS = ("afterword", "vllm", "sglang", "llamacpp", "openai")
_SCHEME = re.compile(r"([a-z]+)\+(https?)://")
_AUTHORITY = re.compile(r"^.*?://([^/?#]*).*$", re.DOTALL)
_PORTS = {"http": 80, "https": 443}
_PATH_CHARACTERS = "/%:@!$&'()*+,;="
"""What a path may have as it is, besides letters, digits and ``-._~`` (RFC 3986, 3.3)."""


class Address(msgspec.Struct, frozen=True):
    """The address of one upstream.

    ``base`` is the path of the base URL that an SDK takes, without a trailing slash. ``host`` and
    ``base`` are ASCII, as they are sent. ``model`` is the upstream's name for the model, or None if
    the address gives no name.
    """

    dialect: str
    tls: bool
    host: str
    port: int
    base: str
    model: str | None = None

    @property
    def authority(self) -> str:
        """Host and port, as the Host header has them.

        The interface of a link-local address is this machine's alone (RFC 6874, 1).
        """
        return self._at(self.host.partition("%")[0])

    @property
    def origin(self) -> str:
        """Scheme, host and port, for logs and error texts. It holds no secret."""
        return f"{'https' if self.tls else 'http'}://{self._at(self.host)}"

    @property
    def url(self) -> str:
        """The whole address, different for every upstream. It holds no secret."""
        return self.origin + self.base + (f"#{self.model}" if self.model else "")

    @property
    def root(self) -> str:
        """The path prefix of routes outside ``/v1``."""
        return self.base.removesuffix("/v1")

    def _at(self, host: str) -> str:
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def is_remote(source: str) -> bool:
    """Returns whether a model's source names upstreams rather than a file."""
    return _SCHEME.match(source) is not None


def parse_addresses(source: str) -> tuple[Address, ...]:
    """Returns the upstreams of a source: addresses of one dialect, separated by spaces.

    Raises ``ConfigError`` if an address is malformed or given twice, or if dialects differ.
    """
    addresses = tuple(_parse(text) for text in source.split())
    if len({address.dialect for address in addresses}) > 1:
        raise ConfigError(f"{source!r}: all upstreams of one model must speak one dialect")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"{source!r}: an address is given twice")
    return addresses


def _parse(text: str) -> Address:
    # First of all, because every other message shows the address.
    if "@" in _AUTHORITY.sub(r"\1", text):
        raise ConfigError("an upstream's address takes no user or password: set upstream_keys")
    found = _SCHEME.match(text)
    if found is None or found[1] not in DIALECTS:
        raise ConfigError(f"{text!r} does not begin with {'+, '.join(DIALECTS)}+ and http(s)://")
    try:
        parts = urlsplit(text[len(found[1]) + 1 :])
        port = _PORTS[found[2]] if parts.port is None else parts.port
        # Raises for names that no resolver takes.
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        raise ConfigError(f"{text!r}: the host or the port is invalid") from None
    if not host or not port or parts.query or not text.isprintable():
        raise ConfigError(f"{text!r} is not {found[1]}+{found[2]}://HOST:PORT/v1")
    return Address(
        found[1],
        found[2] == "https",
        host,
        port,
        quote(parts.path.rstrip("/"), safe=_PATH_CHARACTERS),
        parts.fragment or None,
    )
