"""The routes. An endpoint makes a few calls; other modules decide what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from afterword import __version__
from afterword.completion.service import CompletionService
from afterword.core import wire
from afterword.core.errors import (
    ApiError,
    EngineUnavailable,
    InvalidRequest,
    LedgerUnavailable,
)
from afterword.core.ledger import Ledger
from afterword.http import pages
from afterword.http.completions import Completions
from afterword.http.errors import error_body
from afterword.http.exchange import MOUNTED_AT, exchange_of
from afterword.http.fim import FimReading
from afterword.http.health import Health, Readiness, engine_health
from afterword.http.infill import InfillReading
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import CONTENT_TYPE, Metrics
from afterword.http.openapi import document
from afterword.http.query import AZURES_VERSION, check_query
from afterword.http.scope import CacheScope
from afterword.http.shapes import CompletionReading
from afterword.http.tokenizing import Tokenizing
from afterword.http.uploads import Uploads

_encode = msgspec.json.Encoder().encode
_SWITCH = {"": False, "false": False, "true": True}
"""The values of a switch in a query."""
_NO_MODEL = "MODEL"
"""In the examples of a key that may use no model."""


class Routes:
    """All endpoints of a service. ``page``: the server has the playground."""

    def __init__(  # noqa: PLR0913 - what only the composition root knows
        self,
        service: CompletionService,
        ledger: Ledger,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        clock: Callable[[], float],
        keep_alive_s: float,
        cache_scope: CacheScope,
        page: bool,
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._page = page
        uploads = Uploads()
        self._completions, self._fim, self._infill = (
            Completions(
                reading,
                service,
                ledger,
                uploads,
                lifecycle=lifecycle,
                clock=clock,
                keep_alive_s=keep_alive_s,
                cache_scope=cache_scope,
            )
            for reading in (CompletionReading(), FimReading(), InfillReading())
        )
        self._tokenizing = Tokenizing(service, ledger, uploads, clock=clock)

    def table(self) -> Sequence[BaseRoute]:
        """Returns the routes. ``HEAD`` works wherever ``GET`` does."""
        post, get = ["POST"], ["GET"]
        return [
            Route("/v1/completions", self._completions, methods=post),
            Route("/v1/engines/{model:path}/completions", self._completions, methods=post),
            Route("/v1/engines", self.models, methods=get),
            Route("/v1/engines/{model}", self.model, methods=get),
            Route("/v1/fim/completions", self._fim, methods=post),
            Route("/infill", self._infill, methods=post),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{model:path}", self.model, methods=get),
            Route("/tokenize", self._tokenizing.tokenize, methods=post),
            Route("/detokenize", self._tokenizing.detokenize, methods=post),
            Route("/apply-template", self._tokenizing.apply_template, methods=post),
            Route("/tokenizer_info", self.tokenizer_info, methods=get),
            Route("/health", self.health, methods=get),
            Route("/ready", self.ready, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/openapi.json", self.openapi, methods=get),
            Route("/docs", self.docs, methods=get),
        ]

    async def models(self, request: Request) -> Response:
        """List every name and alias that the key may use."""
        service = self._for(request)
        return _json(wire.ModelList(service.catalog.listing(service.limits)))

    async def model(self, request: Request) -> Response:
        """Describe one model. Its id may contain slashes."""
        name: str = request.path_params["model"]
        exchange_of(request.scope).asked_model = name
        service = self._for(request)
        return _json(service.catalog.describe(name, service.limits))

    async def tokenizer_info(self, request: Request) -> Response:
        """Describe the tokenizer of the first model, or of the one that ``?model=`` names.

        ``?vocabulary=true`` adds all tokens.
        """
        check_query(request.scope, AZURES_VERSION, "model", "vocabulary")
        query = request.query_params
        # Python's libraries write True.
        whole = query.get("vocabulary", "").lower()
        if whole not in _SWITCH:
            raise InvalidRequest(
                "Invalid value for 'vocabulary': expected true or false.",
                param="vocabulary",
                code="invalid_value",
            )
        exchange_of(request.scope).asked_model = query.get("model")
        return _json(
            self._for(request).tokenizer_info(query.get("model"), vocabulary=_SWITCH[whole])
        )

    async def health(self, request: Request) -> Response:
        """200 while every engine can compute and the server takes new work, else 503."""
        principal = exchange_of(request.scope).principal
        engines = [engine_health(model, principal) for model in self._service.catalog.engines]
        status, error = "ok", None
        if self._lifecycle.draining:
            status, error = "draining", EngineUnavailable("The server is shutting down.")
        elif not all(engine.healthy for engine in engines):
            status, error = "unhealthy", EngineUnavailable("An engine cannot compute.")
        first = engines[0]
        health = Health(
            status=status, model=first.model, fingerprint=first.fingerprint, engines=engines
        )
        if error is None:
            return _json(health)
        body = error_body(error, exchange_of(request.scope))
        return _json(msgspec.structs.replace(health, error=body), status=error.status)

    async def ready(self, request: Request) -> Response:
        """200 while the server takes requests and can record them, else 503."""
        error: ApiError | None = None
        if self._lifecycle.leaving or self._lifecycle.draining:
            error = EngineUnavailable("The server is shutting down.")
        elif not all(model.engine.healthy() for model in self._service.catalog.engines):
            error = EngineUnavailable("An engine cannot compute.")
        elif not self._ledger.ready():
            error = LedgerUnavailable("Requests cannot be recorded.")
        reachable = "reachable" if self._ledger.figures().reachable else "unreachable"
        if error is None:
            return _json(Readiness("ready", reachable))
        body = error_body(error, exchange_of(request.scope))
        return _json(Readiness("not_ready", reachable, body), status=error.status)

    async def metrics(self, _: Request) -> Response:
        """The metrics in Prometheus' text format."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return _json(await asyncio.to_thread(self._document, request))

    async def docs(self, request: Request) -> Response:
        """The OpenAPI document as a page."""

        def make() -> str:
            return pages.docs(self._document(request))

        # Milliseconds of Python, which need no key.
        return pages.page(await asyncio.to_thread(make))

    def _document(self, request: Request) -> Mapping[str, Any]:
        """Returns the document with the limits that hold now, and a model that the key may use."""
        catalog = self._for(request).catalog
        model = next((one.id for one in catalog.listing(self._service.limits)), _NO_MODEL)
        found = document(self._service.limits, model=model, version=__version__, page=self._page)
        mounted_at = request.scope.get(MOUNTED_AT)
        return {**found, "servers": [{"url": mounted_at}]} if mounted_at else found

    def _for(self, request: Request) -> CompletionService:
        """Returns the service as the request's key sees it."""
        return self._service.restricted_to(exchange_of(request.scope).principal.models)


def _json(value: object, *, status: int = 200) -> Response:
    return Response(_encode(value), status_code=status, media_type="application/json")
