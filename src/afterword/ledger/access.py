"""The ledger of requests: whose key it is, whether the request may run, what it used."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from afterword.core.account import (
    NOBODY,
    Ask,
    KeyTerms,
    Principal,
    Rates,
    Spent,
    UsageRecord,
)
from afterword.core.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    LedgerUnavailable,
    RateLimited,
)
from afterword.core.faults import in_one_line
from afterword.core.ledger import LedgerFigures
from afterword.ledger.journal import Journal
from afterword.ledger.keyring import Failures, HeldKey
from afterword.ledger.periods import period_of
from afterword.ledger.rate_limits import RateDecision, RateLimiter
from afterword.ledger.record_writer import Claim, RecordWriter
from afterword.ledger.secret import masked
from afterword.ledger.soundness import bounded, clean

_log = logging.getLogger(__name__)

Entrance: TypeAlias = Literal["open", "keys", "keys_if_any"]
"""Who needs no key: everybody; nobody; everybody until the first key is made."""

_CLAIM_S = 5.0
"""The wait for the database or for Redis."""
_LOOK_S = 1.0
"""The wait for what headers say of limits. An answer goes out without them after it."""
_FULL_S = 5.0
_NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)
_UNITS = {"rpm": "requests per min (RPM)", "tpm": "tokens per min (TPM)"}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's decisions.

    ``serve_without_database``: requests without a budget go on while the database is away.
    ``sync_always``: an answer ends only after its record is on the disk.
    """

    entrance: Entrance = "keys_if_any"
    serve_without_database: bool = True
    sync_always: bool = False


class Clocks(msgspec.Struct, frozen=True):
    """``monotonic`` gives seconds that never go back, ``unix`` Unix seconds; ``sleep`` waits."""

    monotonic: Callable[[], float]
    unix: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class AccessLedger:
    """A ``core.ledger.Ledger``. It belongs to the event loop's thread.

    ``writer`` may be replaced while requests run. ``limiter_thread`` calls a rate limiter that
    waits for the network.
    """

    def __init__(
        self,
        writer: RecordWriter,
        journal: Journal,
        limiter: RateLimiter,
        *,
        policy: Policy,
        clocks: Clocks,
        limiter_thread: Executor | None = None,
    ) -> None:
        self.writer = writer
        self._journal = journal
        self._limiter = limiter
        self._policy = policy
        self._clocks = clocks
        self._limiter_thread = limiter_thread
        self._failures = Failures()
        self._full_until_s = 0.0
        self._syncs = ThreadPoolExecutor(1, "afterword-journal")

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        """See ``core.ledger.Ledger``."""
        entrance = self._policy.entrance
        if entrance == "open" or (entrance == "keys_if_any" and not self.writer.keyring.needed):
            return NOBODY
        if not secret:
            raise AuthenticationFailed(_NO_KEY)
        key = self._find(secret)
        if key is None:
            await self._clocks.sleep(self._failures.wait_s(source, self._clocks.monotonic()))
            # The key may have been made during the wait.
            key = self._find(secret)
        if key is None:
            raise AuthenticationFailed(f"Incorrect API key provided: {masked(secret)}.")
        terms = key.terms
        models = None if terms.models is None else frozenset(terms.models)
        return Principal(key.id, terms.name, models, terms.admin)

    def _find(self, secret: str) -> HeldKey | None:
        return self.writer.keyring.find(secret, self._clocks.unix())

    async def reserve(self, principal: Principal, ask: Ask) -> Admission:
        """See ``core.ledger.Ledger``."""
        if not (self._policy.serve_without_database or self.writer.reachable):
            raise LedgerUnavailable("The ledger cannot be reached.", retry_after_s=1)
        key_id, terms = principal.key_id, None
        if key_id is not None:
            terms = self.writer.keyring.terms(key_id)
            if terms is None:
                raise AuthenticationFailed("This API key was revoked.")
        record = _admitted(principal, ask, self._clocks.unix())
        admission = Admission(self, record, ask.most_tokens)
        try:
            if key_id is not None and terms is not None:
                await self._pass_limits(admission, terms, key_id, ask)
                await self._pass_budget(admission, terms, key_id, ask)
            self._write_admission(admission)
        except BaseException:
            admission.release()
            raise
        return admission

    async def rates(self, principal: Principal) -> Rates:
        """See ``core.ledger.Ledger``."""
        key_id = principal.key_id
        terms = None if key_id is None else self.writer.keyring.terms(key_id)
        if key_id is None or terms is None or (terms.rpm is None and terms.tpm is None):
            return Rates()
        if self._limiter_thread is None:
            return self._limiter.rates(key_id, terms)
        asked = self._limiter_thread.submit(self._limiter.rates, key_id, terms)
        try:
            async with asyncio.timeout(_LOOK_S):
                return await asyncio.wrap_future(asked)
        except (TimeoutError, LedgerUnavailable):
            return Rates()

    def ready(self) -> bool:
        """Whether requests with a good key would be admitted."""
        full = self._clocks.monotonic() < self._full_until_s
        return not full and (self._policy.serve_without_database or self.writer.reachable)

    def figures(self) -> LedgerFigures:
        """See ``core.ledger.Ledger``."""
        return LedgerFigures(
            reachable=self.writer.reachable,
            unsettled=self._journal.unsettled,
            pending_writes=self.writer.pending_writes,
            journal_bytes=self._journal.size_bytes,
            written=self.writer.written,
            refused_keys=self._failures.count,
        )

    def sync(self) -> Future[None]:
        """Sync the journal to the disk, in a thread."""
        return self._syncs.submit(self._journal.sync)

    def close(self) -> None:
        """Wait for the syncs under way."""
        self._syncs.shutdown()

    async def _pass_limits(
        self, admission: Admission, terms: KeyTerms, key_id: str, ask: Ask
    ) -> None:
        if terms.rpm is None and terms.tpm is None and terms.concurrent is None:
            return
        arguments = (key_id, terms, ask.id, ask.most_tokens)
        if self._limiter_thread is None:
            decision = self._limiter.acquire(*arguments)
        else:
            asked = self._limiter_thread.submit(self._limiter.acquire, *arguments)
            # Set first: a client that leaves meanwhile gives back what is then admitted.
            admission.counted = True
            try:
                async with asyncio.timeout(_CLAIM_S):
                    decision = await asyncio.wrap_future(asked)
            except TimeoutError as error:
                # Others may wait in front of it, each for an answer that does not come.
                raise LedgerUnavailable("Limits cannot be counted now.", retry_after_s=1) from error
        if decision.refused_by is not None:
            admission.counted = False
            raise _rate_limited(decision, decision.refused_by, terms, ask)
        admission.counted = True
        admission.rates = decision.rates

    async def _pass_budget(
        self, admission: Admission, terms: KeyTerms, key_id: str, ask: Ask
    ) -> None:
        if terms.budget_tokens is None:
            return
        if not self.writer.reachable:
            raise LedgerUnavailable("Budgets cannot be looked up now.", retry_after_s=1)
        claim = Claim(
            id=ask.id,
            key_id=key_id,
            period=period_of(admission.record.started_at, terms.budget_per),
            # What is over the budget is refused, however large it is.
            tokens=min(ask.most_tokens, terms.budget_tokens + 1),
            budget_tokens=terms.budget_tokens,
        )
        admission.claim = self.writer.claim(claim)
        try:
            async with asyncio.timeout(_CLAIM_S):
                left_tokens = await asyncio.wrap_future(admission.claim)
        except TimeoutError as error:
            raise LedgerUnavailable("Budgets cannot be looked up now.", retry_after_s=1) from error
        if left_tokens is not None:
            raise BudgetExceeded(
                "You exceeded your current quota, please check your plan and billing details. "
                f"This request may take {ask.most_tokens} tokens; of {terms.budget_tokens} a "
                f"{terms.budget_per}, {left_tokens} are left. {_what_fits(ask, left_tokens)}"
            )

    def _write_admission(self, admission: Admission) -> None:
        try:
            self._journal.admit(admission.record)
        except OSError as error:
            self._full_until_s = self._clocks.monotonic() + _FULL_S
            _log.error("a request cannot be recorded: %s", in_one_line(error))
            raise LedgerUnavailable(
                "The request cannot be recorded at the moment.", retry_after_s=5
            ) from error
        admission.journaled = True

    async def settle(self, admission: Admission, record: UsageRecord) -> None:
        """Record the end: in the journal, the limits, the database, before anything is awaited."""
        try:
            self._journal.settle(record)
        except OSError as error:
            # Room was reserved, so the disk itself fails. The database may still get the record.
            _log.error("the journal cannot be written to: %s", in_one_line(error))
        tokens = record.prompt_tokens + record.completion_tokens
        self._settle_limits(admission, tokens)
        self.writer.ended(record)
        if self._policy.sync_always:
            await asyncio.wrap_future(self.sync())

    def release(self, admission: Admission) -> None:
        """Give back what the admission has taken so far."""
        if admission.journaled:
            try:
                self._journal.release(admission.record)
            except OSError as error:
                # What it holds of limits and budgets comes back all the same.
                _log.error("the journal cannot be written to: %s", in_one_line(error))
        self._settle_limits(admission, None)
        claim = admission.claim
        if claim is not None and not claim.cancel():
            claim.add_done_callback(lambda _: self._give_back(admission.record.id, claim))

    def _give_back(self, request_id: str, claim: Future[int | None]) -> None:
        if claim.exception() is None and claim.result() is None:
            self.writer.released(request_id)

    def _settle_limits(self, admission: Admission, tokens: int | None) -> None:
        key_id = admission.record.key_id
        if not admission.counted or key_id is None:
            return
        if self._limiter_thread is None:
            self._limiter.settle(key_id, admission.record.id, tokens)
            return
        # The thread is one, so this runs after ``acquire``.
        settled = self._limiter_thread.submit(
            self._limiter.settle, key_id, admission.record.id, tokens
        )
        settled.add_done_callback(_log_unsettled)


class Admission:
    """A ``core.ledger.Reservation``: what one request has taken.

    ``counted``: by the rate limiter. ``journaled``: its first line is in the journal.
    """

    def __init__(self, ledger: AccessLedger, record: UsageRecord, most_tokens: int) -> None:
        self._ledger = ledger
        self._most_tokens = most_tokens
        self._over = False
        self.record = record
        self.rates = Rates()
        self.counted = False
        self.claim: Future[int | None] | None = None
        self.journaled = False

    async def settle(self, spent: Spent) -> None:
        """See ``core.ledger.Reservation``."""
        if not self._over:
            self._over = True
            believed = bounded(spent, self._most_tokens, request_id=self.record.id)
            record = replace(self.record, **msgspec.structs.asdict(believed))
            await self._ledger.settle(self, record)

    def release(self) -> None:
        """See ``core.ledger.Reservation``."""
        if not self._over:
            self._over = True
            self._ledger.release(self)


def _admitted(principal: Principal, ask: Ask, now_s: float) -> UsageRecord:
    """The record of a request whose end is never seen."""
    return UsageRecord(
        id=ask.id,
        key_id=principal.key_id,
        model=clean(ask.model),
        user=None if ask.user is None else clean(ask.user),
        stream=ask.stream,
        status="lost",
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        started_at=now_s,
        first_token_ms=None,
        duration_ms=0.0,
    )


def _rate_limited(decision: RateDecision, limit: str, terms: KeyTerms, ask: Ask) -> RateLimited:
    if limit == "concurrent":
        return RateLimited(
            f"Rate limit reached for requests at once: Limit {terms.concurrent}. Please try again "
            "when one of them has ended.",
            limit=limit,
            rates=decision.rates,
            retry_after_s=1,
        )
    by_requests = limit == "rpm"
    rate = decision.rates.requests if by_requests else decision.rates.tokens
    if rate is None:
        raise RuntimeError("refused by a limit that the key does not have")
    used = rate.limit - rate.remaining
    stands = f"Limit {rate.limit}, Used {used}, Requested {1 if by_requests else ask.most_tokens}"
    unit = _UNITS[limit]
    if decision.wait_s is None:
        return RateLimited(
            f"Request too large for {ask.model} on {unit}: {stands}. A smaller max_tokens (or n, "
            f"or best_of) asks for less. {_what_fits(ask, rate.limit)}",
            limit=limit,
            rates=decision.rates,
        )
    seconds = max(math.ceil(decision.wait_s), 1)
    return RateLimited(
        f"Rate limit reached for {ask.model} on {unit}: {stands}. Please try again in {seconds}s.",
        limit=limit,
        rates=decision.rates,
        retry_after_s=seconds,
    )


def _what_fits(ask: Ask, left_tokens: int) -> str:
    """Returns how the client can ask for less, in sentences."""
    fitting = (left_tokens - ask.prompt_tokens) // max(ask.candidates, 1)
    if fitting < 0:
        return f"The prompt alone takes {ask.prompt_tokens}."
    fits = f"max_tokens of at most {fitting} would fit."
    if not ask.open_ended:
        return f"A {fits}" if ask.candidates == 1 else f"For each answer, a {fits}"
    return (
        "The request gives no max_tokens, so an answer may go on until the context is full or the "
        f"server's default is reached; {fits}"
    )


def _log_unsettled(settled: Future[None]) -> None:
    error = None if settled.cancelled() else settled.exception()
    if error is not None:
        _log.warning("a limit was not settled and frees itself in a minute: %s", in_one_line(error))
