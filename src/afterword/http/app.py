"""The ASGI app, put together from a service and what it may not know by itself."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Router
from starlette.types import ASGIApp

from afterword.completion.service import CompletionService
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import Metrics
from afterword.http.middleware import Boundary
from afterword.http.routes import Routes


def create_app(
    service: CompletionService,
    *,
    lifecycle: Lifecycle,
    clock: Callable[[], float],
    entropy: Callable[[int], bytes],
    keep_alive_s: float = 15.0,
) -> ASGIApp:
    """An ASGI 3 app that serves ``service``.

    ``clock`` gives seconds that never go back, ``entropy(n)`` n random bytes for request ids.
    A stream that is silent for ``keep_alive_s`` sends a comment.
    """
    metrics = Metrics(service.catalog.engines)
    routes = Routes(
        service, lifecycle=lifecycle, metrics=metrics, clock=clock, keep_alive_s=keep_alive_s
    )
    router = Router(routes.table(), redirect_slashes=False)
    return Boundary(router, clock=clock, entropy=entropy, lifecycle=lifecycle, metrics=metrics)
