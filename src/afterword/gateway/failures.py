"""Failures of upstreams, named by their consequence for the request and for the upstream."""

from __future__ import annotations

from afterword.core.errors import ApiError


class UpstreamFailure(Exception):
    """Root. The text is for logs and clients: it contains no key, no prompt and no path."""


class ConnectFailed(UpstreamFailure):
    """The connection failed: the upstream is down."""


class StreamBroke(UpstreamFailure):
    """The upstream fell silent, disconnected or sent nonsense: a probe has to find it up."""


class Refused(UpstreamFailure):
    """The upstream answered with an error that another upstream may not give: 5xx, 401, 404."""


class Overloaded(UpstreamFailure):
    """The upstream is healthy but full (429, 503) and takes no request for ``rest_s`` seconds."""

    def __init__(self, status: int, *, rest_s: float) -> None:
        super().__init__(f"it is full ({status})")
        self.status = status
        self.rest_s = rest_s


class ClientsFault(UpstreamFailure):
    """The upstream refused the request itself (400): every other upstream would refuse it too."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error
