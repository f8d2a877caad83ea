"""Makes the ASGI app from a service and from what the service does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from afterword.completion.service import CompletionService
from afterword.core.ledger import AdminQueries, Ledger
from afterword.http.admin import Administration
from afterword.http.auth import Authentication
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import Metrics
from afterword.http.middleware import Boundary, Observer
from afterword.http.no_ledger import NoLedger
from afterword.http.origins import OriginHeaders, Preflights
from afterword.http.proxies import Network
from afterword.http.routes import Routes
from afterword.http.scope import CacheScope
from afterword.http.upstreams import Upstreams

_OPEN_PATHS = frozenset({"/ready"})
_DISCREET_PATHS = frozenset({"/health"})
_ASKING_PATHS = {"/docs": "/playground/docs.html"}


def is_open(path: str, public: Sequence[Route] = ()) -> bool:
    """Whether a path needs no key: readiness, and every path of a public route."""
    return path in _OPEN_PATHS or any(route.path_regex.match(path) for route in public)


def _no_queries() -> None:
    return None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who may come in.

    ``queries`` gives what operators ask, or None. ``guarded``: a request without a key is
    answered only to programs on this machine. ``origins`` are the sites whose pages a browser
    lets in. ``proxies`` are believed about a client's address. ``cache_scope`` says who shares
    computed prompts.
    """

    ledger: Ledger = NoLedger()
    queries: Callable[[], AdminQueries | None] = _no_queries
    guarded: bool = False
    origins: tuple[str, ...] = ()
    proxies: tuple[Network, ...] = ()
    cache_scope: CacheScope = "key"


def create_app(  # noqa: PLR0913 - what only the composition root knows
    service: CompletionService,
    *,
    lifecycle: Lifecycle,
    clock: Callable[[], float],
    entropy: Callable[[int], bytes],
    keep_alive_s: float = 15.0,
    access: Access | None = None,
    public: Sequence[Route] = (),
    observe: Observer | None = None,
    upstreams: Upstreams = tuple,
) -> ASGIApp:
    """An ASGI 3 app that serves ``service``.

    ``clock`` returns monotonic seconds, ``entropy(n)`` returns n random bytes for request ids.
    A stream that is silent for ``keep_alive_s`` seconds sends a comment. Without ``access`` the app
    asks for no key and keeps no record. ``public`` are further routes, which need no key.
    ``observe`` is called at the end of every request. ``upstreams`` returns the figures of the
    servers behind this one.
    """
    access = access or Access()
    has_page = any(route.path == "/" for route in public)
    metrics = Metrics(service.catalog.engines, access.ledger, upstreams)
    routes = Routes(
        service,
        access.ledger,
        lifecycle=lifecycle,
        metrics=metrics,
        clock=clock,
        keep_alive_s=keep_alive_s,
        cache_scope=access.cache_scope,
        page=has_page,
    )
    administration = Administration(access.queries)
    router = Router([*routes.table(), *public, *administration.table()], redirect_slashes=False)
    known = Authentication(
        router,
        access.ledger,
        is_open=partial(is_open, public=public),
        discreet=_DISCREET_PATHS,
        asking=_ASKING_PATHS if has_page else {},
        guarded=access.guarded,
        origins=access.origins,
    )
    preflights = Preflights(known, access.origins) if access.origins else None
    app = Boundary(
        preflights or known,
        clock=clock,
        entropy=entropy,
        lifecycle=lifecycle,
        metrics=metrics,
        proxies=access.proxies,
        observe=observe,
    )
    return OriginHeaders(app, preflights.cors) if preflights else app
