"""Which path means what. Each endpoint is a few calls; what they mean is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from afterword import __version__
from afterword.completion.service import Answer, CompletionService
from afterword.core import wire
from afterword.core.errors import EngineUnavailable, UnknownUrl
from afterword.http import pages
from afterword.http.client import ClientDisconnected, ClientWatch, read_body, send_whole
from afterword.http.errors import error_body
from afterword.http.exchange import exchange_of
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import CONTENT_TYPE, Metrics
from afterword.http.openapi import document
from afterword.http.stream import EventStream

_encode = msgspec.json.Encoder().encode
_JSON = ((b"content-type", b"application/json"),)
_RETRY_AFTER_S = 5


class EngineHealth(msgspec.Struct, frozen=True):
    """One model's engine; ``batch_invariant`` says whether it was found to keep D1."""

    model: str
    healthy: bool
    fingerprint: str
    batch_invariant: bool


class Health(msgspec.Struct, frozen=True):
    """Whether completions are to be had; ``error`` is there where they are not."""

    status: str
    model: str
    fingerprint: str
    engines: list[EngineHealth]
    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET


class Completions:
    """``POST /v1/completions``: plan, open, then stream or fold.

    Whatever can be refused is refused before the status line. A client that goes away ends the
    work wherever it stands, and leaving the answer frees its slots (S8).
    """

    def __init__(
        self,
        service: CompletionService,
        *,
        lifecycle: Lifecycle,
        clock: Callable[[], float],
        keep_alive_s: float,
    ) -> None:
        self._service = service
        self._lifecycle = lifecycle
        self._clock = clock
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._lifecycle.draining:
            raise EngineUnavailable("The server is shutting down.", retry_after_s=_RETRY_AFTER_S)
        exchange = exchange_of(scope)
        body = await read_body(scope, receive, self._service.limits.max_body_bytes)
        last = b""
        async with ClientWatch(receive) as watch:
            plan = await self._service.plan(body, model=scope["path_params"].get("model"))
            exchange.model, exchange.stream = plan.model, plan.stream
            answer = self._service.open(plan)
            try:
                async with answer:
                    last = await self._deliver(answer, scope, send)
            finally:
                exchange.usage = answer.usage
        if watch.gone:
            raise ClientDisconnected
        if exchange.stream:
            await send({"type": "http.response.body", "body": last, "more_body": False})
        else:
            await send_whole(send, 200, _JSON, last)

    async def _deliver(self, answer: Answer, scope: Scope, send: Send) -> bytes:
        """Deliver all but the end of the body, which is what it gives."""
        if not answer.plan.stream:
            return _encode(await answer.completion())
        stream = EventStream(scope, send, clock=self._clock, keep_alive_s=self._keep_alive_s)
        return await stream.run(answer.chunks())


class Routes:
    """All endpoints of a service."""

    def __init__(
        self,
        service: CompletionService,
        *,
        lifecycle: Lifecycle,
        metrics: Metrics,
        clock: Callable[[], float],
        keep_alive_s: float,
    ) -> None:
        self._service = service
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._completions = Completions(
            service, lifecycle=lifecycle, clock=clock, keep_alive_s=keep_alive_s
        )
        model = service.catalog.default.name
        self._openapi = document(service.limits, model=model, version=__version__)
        self._docs = pages.docs(self._openapi)

    def table(self) -> Sequence[BaseRoute]:
        """Paths, methods, endpoints; ``HEAD`` goes wherever ``GET`` does."""
        post, get = ["POST"], ["GET"]
        return [
            Route("/v1/completions", self._completions, methods=post),
            Route("/v1/engines/{model:path}/completions", self._completions, methods=post),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{model:path}", self.model, methods=get),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
            Route("/tokenizer_info", self.tokenizer_info, methods=get),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/openapi.json", self.openapi, methods=get),
            Route("/docs", self.docs, methods=get),
            Route("/", self.index, methods=get),
        ]

    async def models(self, _: Request) -> Response:
        """Every name and alias."""
        return _json(wire.ModelList(self._service.catalog.listing(self._service.limits)))

    async def model(self, request: Request) -> Response:
        """One model; its id may contain slashes."""
        name: str = request.path_params["model"]
        if not name:
            raise UnknownUrl(f"Invalid URL ({request.method} {request.scope['path']})")
        return _json(self._service.catalog.describe(name, self._service.limits))

    async def tokenize(self, request: Request) -> Response:
        """Text to ids."""
        return _json(await self._service.tokenize(await self._body(request)))

    async def detokenize(self, request: Request) -> Response:
        """Ids to text."""
        return _json(await self._service.detokenize(await self._body(request)))

    async def tokenizer_info(self, request: Request) -> Response:
        """What a remote tokenizer needs to know; ``?model=`` names one that is not the first.

        ``?vocabulary=true`` adds all tokens.
        """
        query = request.query_params
        whole = query.get("vocabulary") == "true"
        return _json(self._service.tokenizer_info(query.get("model"), vocabulary=whole))

    async def health(self, request: Request) -> Response:
        """200 while every engine can compute and new work is taken."""
        served = self._service.catalog.engines
        engines = [
            EngineHealth(
                model.name,
                model.engine.healthy(),
                model.engine.card.fingerprint,
                model.engine.card.batch_invariant,
            )
            for model in served
        ]
        status, error = "ok", None
        if self._lifecycle.draining:
            status, error = "draining", EngineUnavailable("The server is shutting down.")
        elif not all(engine.healthy for engine in engines):
            status, error = "unhealthy", EngineUnavailable("An engine cannot compute.")
        health = Health(status, engines[0].model, engines[0].fingerprint, engines)
        if error is None:
            return _json(health)
        body = error_body(error, exchange_of(request.scope))
        return _json(msgspec.structs.replace(health, error=body), status=error.status)

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        """The OpenAPI document."""
        return _json(self._openapi)

    async def docs(self, _: Request) -> Response:
        """The OpenAPI document for people."""
        return pages.page(self._docs)

    async def index(self, request: Request) -> Response:
        """What this is, and a first request to try."""
        base = pages.base_url(request)
        return pages.page(pages.index(base, self._service.catalog.default.name))

    async def _body(self, request: Request) -> bytes:
        limit_bytes = self._service.limits.max_body_bytes
        return await read_body(request.scope, request.receive, limit_bytes)


def _json(value: object, *, status: int = 200) -> Response:
    return Response(_encode(value), status_code=status, media_type="application/json")
