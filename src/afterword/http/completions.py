"""A route that completes text, from a request's body to the settled answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.types import Receive, Scope, Send

from afterword.completion.plan import Plan
from afterword.completion.service import Caller, CompletionService
from afterword.completion.stream import CompletionStream
from afterword.core.account import Ask, Spent, UsageStatus
from afterword.core.errors import ApiError, EngineUnavailable
from afterword.core.ledger import Ledger, Reservation
from afterword.http.client import ClientDisconnected, ClientWatch, read_body, send_whole
from afterword.http.exchange import Exchange, asked_model, exchange_of
from afterword.http.lifecycle import Lifecycle
from afterword.http.scope import CacheScope, caller_of
from afterword.http.shapes import Reading, Shape
from afterword.http.stream import EventStream
from afterword.http.uploads import Upload, Uploads

_JSON = ((b"content-type", b"application/json"),)
_RETRY_AFTER_S = 5


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
