"""The routes. An endpoint makes a few calls; other modules decide what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from afterword import __version__
from afterword.completion.catalog import ServedModel
from afterword.completion.plan import Plan
from afterword.completion.service import Caller, CompletionService
from afterword.completion.stream import CompletionStream
from afterword.core import wire
from afterword.core.account import Ask, Principal, Spent, UsageStatus
from afterword.core.errors import (
    ApiError,
    EngineUnavailable,
    InvalidRequest,
    LedgerUnavailable,
)
from afterword.core.ledger import Ledger, Reservation
from afterword.core.protocols import PrefixSharing
from afterword.http import pages
from afterword.http.client import ClientDisconnected, ClientWatch, read_body, send_whole
from afterword.http.errors import error_body
from afterword.http.exchange import MOUNTED_AT, Exchange, asked_model, exchange_of
from afterword.http.fim import FimReading
from afterword.http.infill import InfillReading
from afterword.http.lifecycle import Lifecycle
from afterword.http.metrics import CONTENT_TYPE, Metrics
from afterword.http.openapi import document
from afterword.http.scope import CacheScope, caller_of
from afterword.http.shapes import CompletionReading, Reading, Shape
from afterword.http.stream import EventStream
from afterword.http.tokenizing import Tokenizing
from afterword.http.uploads import Upload, Uploads

_encode = msgspec.json.Encoder().encode
_JSON = ((b"content-type", b"application/json"),)
_RETRY_AFTER_S = 5
_SWITCH = {"": False, "false": False, "true": True}
"""The values of a switch in a query."""
_NO_MODEL = "MODEL"
"""In the examples of a key that may use no model."""


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one model's engine.

    ``batch_invariant`` says whether a check found D1 to hold. ``prefix_sharing`` says how prompts
    share what was computed; it is null if another server decides. A key that may not use the model
    gets neither name nor fingerprint.
    """

    model: str | msgspec.UnsetType = msgspec.UNSET
    healthy: bool
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    batch_invariant: bool
    prefix_sharing: PrefixSharing | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server can complete prompts. ``error`` is there if it cannot.

    ``model`` and ``fingerprint`` are those of the first engine.
    """

    status: str
    model: str | msgspec.UnsetType = msgspec.UNSET
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    engines: list[EngineHealth]
    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET


class Readiness(msgspec.Struct, frozen=True):
    """Whether the server takes requests. ``error`` is there if it does not."""

    status: str
    ledger: str
    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET


class Completions:
    """A route that completes text: plan, reserve, open, stream or fold, settle.

    ``reading`` says how its bodies are read and its answers look.
    Every refusal comes before the status line (S6). If the client goes away, the work ends, and
    leaving the answer frees its slots (S8). An admitted request is settled before the last byte is
    sent, however it ended.
    """

    def __init__(  # noqa: PLR0913 - what only the composition root knows
        self,
        reading: Reading,
        service: CompletionService,
        ledger: Ledger,
        uploads: Uploads,
        *,
        lifecycle: Lifecycle,
        clock: Callable[[], float],
        keep_alive_s: float,
        cache_scope: CacheScope,
    ) -> None:
        self._reading = reading
        self._service = service
        self._ledger = ledger
        self._uploads = uploads
        self._lifecycle = lifecycle
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._cache_scope = cache_scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._lifecycle.draining:
            raise EngineUnavailable("The server is shutting down.", retry_after_s=_RETRY_AFTER_S)
        caller = caller_of(exchange_of(scope), self._cache_scope)
        with self._uploads.by(caller.owner) as upload:
            await self._answer(scope, receive, send, caller, upload)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, caller: Caller, upload: Upload
    ) -> None:
        exchange = exchange_of(scope)
        principal = exchange.principal
        service = self._service.restricted_to(principal.models)
        body = await read_body(scope, receive, service.limits.max_body_bytes, upload)
        parts: list[bytes] = []
        async with ClientWatch(receive) as watch:
            try:
                plan, shape = await self._reading.plan(service, body, scope, caller)
            except ApiError:
                exchange.asked_model = scope["path_params"].get("model") or asked_model(body)
                raise
            # A stream may take an hour.
            del body
            exchange.model, exchange.stream = service.recorded(plan.model), plan.stream
            reservation = await self._ledger.reserve(principal, _ask(plan, exchange.model))
            exchange.rates = reservation.rates
            try:
                answer = service.open(plan, self._clock)
            except BaseException:
                reservation.release()
                raise
            answer.on_first_token = partial(_note_first_token, exchange, self._clock)
            status: UsageStatus = "failed"
            try:
                async with answer:
                    parts = await self._deliver(answer, shape, scope, send)
                if not plan.stream or exchange.outcome == "answered":
                    status = "answered"
            except (asyncio.CancelledError, ClientDisconnected) as error:
                left = watch.gone or isinstance(error, ClientDisconnected)
                status = "client_gone" if left else "cancelled"
                raise
            finally:
                exchange.usage = answer.usage
                await self._settle(reservation, exchange, status)
        if watch.gone:
            raise ClientDisconnected
        if exchange.stream:
            await send({"type": "http.response.body", "body": parts[-1], "more_body": False})
        else:
            await send_whole(send, 200, _JSON, *parts)

    async def _settle(
        self, reservation: Reservation, exchange: Exchange, status: UsageStatus
    ) -> None:
        usage, first_s = exchange.usage, exchange.first_token_s
        if usage is None:
            raise RuntimeError("a request was settled before its usage was known")
        waited_ms = None if first_s is None else (first_s - exchange.started_s) * 1000
        await reservation.settle(
            Spent(
                status=status,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
                completion_tokens=usage.completion_tokens,
                first_token_ms=waited_ms,
                duration_ms=(self._clock() - exchange.started_s) * 1000,
            )
        )

    async def _deliver(
        self, answer: CompletionStream, shape: Shape, scope: Scope, send: Send
    ) -> list[bytes]:
        """Deliver the answer except for the end of its body. Returns that end, in parts."""
        if not answer.plan.stream:
            return await shape.whole(answer)
        write = partial(shape.frames, answer)
        stream = EventStream(scope, send, write, keep_alive_s=self._keep_alive_s)
        return [await stream.run(answer.chunks(stream), shape.end)]


def _ask(plan: Plan, model: str) -> Ask:
    """Returns what a plan may use at most."""
    return Ask(
        id=plan.id,
        model=model,
        user=plan.user,
        stream=plan.stream,
        most_tokens=plan.most_tokens,
        prompt_tokens=sum(len(job.prompt_ids) for job in plan.jobs),
        candidates=sum(job.n for job in plan.jobs),
        open_ended=plan.open_ended,
    )


def _note_first_token(exchange: Exchange, clock: Callable[[], float]) -> None:
    exchange.first_token_s = clock()


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
        engines = [_health_of(model, principal) for model in self._service.catalog.engines]
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


def _health_of(model: ServedModel, principal: Principal) -> EngineHealth:
    """Returns an engine's health, with what the principal may see."""
    card, healthy = model.engine.card, model.engine.healthy()
    if principal.models is not None and model.name not in principal.models:
        return EngineHealth(
            healthy=healthy,
            batch_invariant=card.batch_invariant,
            prefix_sharing=card.prefix_sharing,
        )
    return EngineHealth(
        model=model.name,
        healthy=healthy,
        fingerprint=card.fingerprint,
        batch_invariant=card.batch_invariant,
        prefix_sharing=card.prefix_sharing,
    )


def _json(value: object, *, status: int = 200) -> Response:
    return Response(_encode(value), status_code=status, media_type="application/json")
