"""The address of a server that a program or a command asks, and the key for it."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from afterword.core.errors import ConfigError


def server_address(url: str) -> SplitResult:
    """Returns the parts of a server's address. Raises ``ConfigError`` for what is none."""
    if "@" in url:
        # It is not shown, because it may have a password.
        raise ConfigError("the address of a server takes no user or password: give a key instead")
    try:
        parts = urlsplit(url)
        # A port that is none is an error only when it is read.
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is no address of a server, as in http://127.0.0.1:8000")
    return parts


def authorization(key: str | None) -> dict[str, str]:
    """Returns the headers that a key needs. Raises ``ConfigError`` for what cannot be a key."""
    if not key:
        return {}
    # Clients of HTTP would quote it.
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("a key has letters, digits and signs of ASCII only")
    return {"Authorization": f"Bearer {key}"}
