"""The socket that the server listens on, and its TLS context."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping

from afterword.core.errors import ConfigError

_FIRST_PASSED_DESCRIPTOR = 3
_ADVICE = {
    errno.EADDRINUSE: "; --port names another port, and --port 0 takes a free one",
    errno.EADDRNOTAVAIL: "; --host has to name an address of this machine",
    errno.EACCES: "; ports from 1024 need no rights",
}


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Returns a socket that is bound but does not listen yet.

    Raises ``ConfigError`` if the host is unknown or the port is not free.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"host {host}: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address[0] == "::":
            # Every address, also of IPv4, whatever the system's default is.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError as error:
        bound.close()
        advice = _ADVICE.get(error.errno or 0, "")
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}{advice}"
        ) from error
    return bound


def inherited(environment: Mapping[str, str]) -> socket.socket | None:
    """Returns the socket that systemd passes to this process, or None. It survives a restart."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_PASSED_DESCRIPTOR)


def is_loopback(bound: socket.socket) -> bool:
    """Returns whether only this machine reaches the socket."""
    if bound.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def url_of(bound: socket.socket, *, tls: bool = False) -> str:
    """Returns the URL of the socket for clients on this machine."""
    scheme = "https" if tls else "http"
    if bound.family == socket.AF_UNIX:
        return f"{scheme}+unix://{bound.getsockname()}"
    host, port = bound.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - shown, not bound
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def load_tls(certfile: str | None, keyfile: str | None) -> ssl.SSLContext | None:
    """Returns the TLS context of a certificate and its key; None without them.

    Raises ``ConfigError`` if a file cannot be read or the two do not match.
    """
    if certfile is None:
        if keyfile is not None:
            raise ConfigError("--keyfile without --certfile")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = certfile if keyfile is None else f"{certfile} and {keyfile}"
    try:
        context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS cannot be set up with {files}: {error.strerror or error}"
        ) from error
    return context
