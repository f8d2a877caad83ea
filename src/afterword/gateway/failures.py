"""What can go wrong with an upstream, and what it means for the request and for the upstream."""

from __future__ import annotations

from afterword.core.errors import ApiError


class UpstreamFailure(Exception):
    """Root. The text is for the log and for clients: it has no key, no prompt and no path."""


class ConnectFailed(UpstreamFailure):
    """No connection: the upstream is down."""


class StreamBroke(UpstreamFailure):
    """The upstream fell silent, went away or sent nonsense: it is down until it is probed."""


class Refused(UpstreamFailure):
    """The upstream answered with an error that another upstream need not give: 5xx, 401, 404."""


class Overloaded(UpstreamFailure):
    """The upstream is healthy and full (429, 503): it wants to be left alone for ``rest_s``."""

    def __init__(self, status: int, *, rest_s: float) -> None:
        super().__init__(f"it is full ({status})")
        self.status = status
        self.rest_s = rest_s


class ClientsFault(UpstreamFailure):
    """The upstream refused the request itself (400): no other upstream would take it."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error
