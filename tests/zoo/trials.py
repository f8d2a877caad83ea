"""Trials of a model (alone, again, shared, side by side, texts), with verdicts in a few words."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from afterword.core.errors import UnspellableText
from zoo.orders import LENGTHS, ORDERS, job, prompt, random_job
from zoo.serving import Model, Request, Server, difference, is_single, nats_apart
from zoo.texts import HOSTILE
from zoo.together import Crowd

_RANDOM_REQUESTS = 12
"""Requests in a random history; one server answers them one after the other."""
_SLOTS = (3, 1, 5)


class Verdict(msgspec.Struct):
    """Counts answers, and answers that differ from those of a fresh server.

    ``nats`` is the largest difference of a token's log-probability, ``cached`` the share of prompt
    tokens that came from the cache. ``failure`` tells why the trial stopped early.
    """

    asked: int = 0
    wrong: int = 0
    nats: float = 0.0
    cached: float | None = None
    exact: bool = True
    failure: str | None = None

    @property
    def sound(self) -> bool:
        """Whether no answer was wrong and nothing failed."""
        return not self.wrong and self.failure is None

    def __str__(self) -> str:
        if self.failure is not None:
            return f"**fails**: {self.failure}"
        if self.wrong:
            apart = f"by up to {self.nats:.1g} nats" if self.nats else "in their first token"
            return f"**{self.wrong} of {self.asked} differ**, {apart}"
        said = "exact" if self.exact else "answered"
        cached = "" if self.cached is None else f", {self.cached:.0%} cached"
        return f"{said} ({self.asked}{cached})"


def alone(model: Model) -> Verdict:
    """Try prompts of all lengths on fresh servers, twice each; all numbers must be finite."""
    verdict = Verdict()
    for cut in LENGTHS:
        request = (job(prompt(0, cut), scored=0),)
        answer = model.fresh(request)
        with model.server() as server:
            _compare(verdict, model, request, server)
        scored = answer.scored[0]
        values = [*answer.choices[0, 0].logprobs, *(scored.logprobs if scored else ())]
        if not all(map(math.isfinite, values)):
            verdict.failure = "computes NaN or infinity"
            break
    return verdict


def again(model: Model) -> Verdict:
    """Try the same requests twice on one server."""
    verdict = Verdict()
    with model.server() as server:
        for cut in LENGTHS:
            for _ in range(2):
                _compare(verdict, model, (job(prompt(0, cut, 9, branch=cut)),), server)
    return verdict


def shared(model: Model, rounds: int) -> Verdict:
    """Try prompts with common prefixes: all ``ORDERS``, and ``rounds`` random histories."""
    verdict = Verdict()
    computed = cached = 0
    histories: list[Sequence[Request]] = [order(model) for order in ORDERS.values()]
    for seed in range(rounds):
        rng = random.Random(seed)
        histories.append([(random_job(rng),) for _ in range(_RANDOM_REQUESTS)])
    for number, history in enumerate(histories):
        with model.server(_SLOTS[number % len(_SLOTS)]) as server:
            for request in history:
                if model.batch_invariant or is_single(request):
                    _compare(verdict, model, request, server)
                else:
                    server.ask(request)
            counters = server.scheduler.counters
            computed += counters.prefilled_tokens
            cached += counters.cached_tokens
    verdict.cached = cached / (cached + computed)
    return verdict


def side_by_side(model: Model, rounds: int) -> Verdict:
    """Try rounds of requests that come together, see ``Crowd``.

    Answers are compared if the model is batch invariant.
    """
    crowd = Crowd(model)
    asyncio.run(crowd.run(rounds))
    return Verdict(
        crowd.asked, crowd.wrong, crowd.nats, exact=model.batch_invariant, failure=crowd.failure
    )


def hostile_texts(model: Model, texts: Mapping[str, str] = HOSTILE) -> Verdict:
    """Tokenise texts of all kinds; the process must survive. Unspellable texts may be refused."""
    verdict = Verdict(exact=False)
    opened = model.open(1)
    try:
        for text in texts.values():
            with suppress(UnspellableText):
                opened.tokenizer.encode(text)
            verdict.asked += 1
    finally:
        opened.runner.close()
    return verdict


def _compare(verdict: Verdict, model: Model, request: Request, server: Server) -> None:
    expected, found = model.fresh(request), server.ask(request)
    verdict.asked += 1
    if difference(found, expected) is not None:
        verdict.wrong += 1
        verdict.nats = max(verdict.nats, nats_apart(found, expected))
