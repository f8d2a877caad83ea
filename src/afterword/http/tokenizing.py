"""``POST /tokenize``, ``/detokenize`` and ``/apply-template``: parse, reserve, work, settle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from afterword.completion.service import CompletionService, TokenizerCall
from afterword.core.account import Ask, Spent, UsageStatus
from afterword.core.errors import ApiError
from afterword.core.ledger import Ledger
from afterword.http.client import ClientDisconnected, ClientWatch, read_body
from afterword.http.exchange import Exchange, asked_model, exchange_of
from afterword.http.scope import caller_of
from afterword.http.uploads import Upload, Uploads

_encode = msgspec.json.Encoder().encode
_Parse: TypeAlias = Callable[[bytes, str], Awaitable[TokenizerCall[msgspec.Struct]]]


class Tokenizing:
    """The routes of the tokenizer.

    A request counts in its key's limits as one request without tokens, from its admission to its
    end. If the client goes away, work that has not begun is dropped.
    """

    def __init__(
        self,
        service: CompletionService,
        ledger: Ledger,
        uploads: Uploads,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._uploads = uploads
        self._clock = clock

    async def tokenize(self, request: Request) -> Response:
        """Turn text into ids."""
        return await self._answer(request, self._for(request).tokenization)

    async def detokenize(self, request: Request) -> Response:
        """Turn ids into text."""
        return await self._answer(request, self._for(request).detokenization)

    async def apply_template(self, request: Request) -> Response:
        """Turn a conversation into a prompt."""
        return await self._answer(request, self._for(request).templating)

    def _for(self, request: Request) -> CompletionService:
        return self._service.restricted_to(exchange_of(request.scope).principal.models)

    async def _answer(self, request: Request, parse: _Parse) -> Response:
        owner = caller_of(exchange_of(request.scope), "all").owner
        with self._uploads.by(owner) as upload:
            return await self._run(request, parse, owner, upload)

    async def _run(self, request: Request, parse: _Parse, owner: str, upload: Upload) -> Response:
        exchange = exchange_of(request.scope)
        limit_bytes = self._service.limits.max_body_bytes
        body = await read_body(request.scope, request.receive, limit_bytes, upload)
        encoded = b""
        async with ClientWatch(request.receive) as watch:
            try:
                call = await parse(body, owner)
            except ApiError:
                exchange.asked_model = asked_model(body)
                raise
            exchange.model = self._service.recorded(call.model)
            ask = Ask(id=call.id, model=exchange.model, user=None, stream=False, most_tokens=0)
            reservation = await self._ledger.reserve(exchange.principal, ask)
            exchange.rates = reservation.rates
            status: UsageStatus = "failed"
            try:
                encoded = _encode(await call.run())
                status = "answered"
            except asyncio.CancelledError:
                status = "client_gone" if watch.gone else "cancelled"
                raise
            finally:
                await reservation.settle(self._spent(exchange, status))
        if watch.gone:
            raise ClientDisconnected
        return Response(encoded, media_type="application/json")

    def _spent(self, exchange: Exchange, status: UsageStatus) -> Spent:
        return Spent(
            status=status,
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=0,
            first_token_ms=None,
            duration_ms=(self._clock() - exchange.started_s) * 1000,
        )
