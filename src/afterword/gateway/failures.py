"""Failures of upstreams, named by their consequence for the request and for the upstream."""

from __future__ import annotations

from afterword.core.errors import ApiError, EngineFailed, EngineUnavailable, UpstreamFailed


class UpstreamFailure(Exception):
    """Root. The text is for logs and clients: it contains no key, no prompt and no path."""


class ConnectFailed(UpstreamFailure):
    """The connection failed: the upstream is down."""


class StreamBroke(UpstreamFailure):
    """The upstream disconnected or sent what cannot be read: down if that happens repeatedly."""


class Silent(StreamBroke):
    """The upstream fell silent. A probe that meets silence finds it down."""


class Incapable(StreamBroke):
    """The upstream left out what one request asked for. Other requests do not suffer from that."""


class Refused(UpstreamFailure):
    """The upstream answered with an error that another upstream may not give: 5xx, 401, 404."""


class Overloaded(UpstreamFailure):
    """The upstream is healthy but full (429, 503) and takes no request for ``rest_s`` seconds."""

    def __init__(self, status: int, *, rest_s: float) -> None:
        super().__init__(f"it is full ({status})")
        self.status = status
        self.rest_s = rest_s


class ClientsFault(UpstreamFailure):
    """The upstream refused the request itself (400): every other upstream would refuse it too.

    ``said`` is the upstream's own text, which no client may see as it is; so the exception's text
    is another one.
    """

    def __init__(self, said: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__("it refused the request")
        self.said = said
        self.param = param
        self.code = code


def nobody_left(last: UpstreamFailure | None) -> ApiError:
    """Returns the error of a request without an upstream left, after its ``last`` failure."""
    if last is None or isinstance(last, ConnectFailed):
        return EngineUnavailable("No server of this model can be reached.", retry_after_s=1)
    return error_of(last, "failed")


def error_of(failure: UpstreamFailure, what: str) -> ApiError:
    """Returns an error: the upstream's own is passed on as ours (H10), nonsense is a 502."""
    if isinstance(failure, Refused):
        return EngineFailed(f"The server of this model {what}.")
    return UpstreamFailed(f"The server of this model {what}: {failure}.")
