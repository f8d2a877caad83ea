"""Requests with common prefixes, and orders in which they are sent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeAlias

from afterword.core.job import Job, SamplingParams
from zoo.architectures import WINDOW
from zoo.serving import Model, Request

_STEMS = 3
_STEM_TOKENS = 400
_COMMON = 40
"""Length of the prefix of all stems, in tokens."""
_FIRST_ID = 260
"""The first of ``_IDS`` ids that are plain tokens in every vocabulary."""
_IDS = 128

LENGTHS = (
    1,
    2,
    7,
    33,
    WINDOW - 1,
    WINDOW,
    WINDOW + 1,
    90,
    2 * WINDOW - 1,
    2 * WINDOW,
    129,
    200,
    300,
)
"""Tokens that a prompt takes from a stem: inside the window, at its edges, behind it."""
TAILS = (0, 1, 9, 40)
"""Tokens that a prompt adds to them."""


@cache
def _stem(number: int) -> Sequence[int]:
    tokens = _noise(-1, _COMMON)
    return (*tokens, *_noise(number, _STEM_TOKENS - _COMMON))


def _noise(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(_FIRST_ID + rng.randrange(_IDS) for _ in range(count))


def prompt(stem: int, cut: int, tail: int = 0, *, branch: int = 0) -> tuple[int, ...]:
    """Returns the first ``cut`` tokens of a stem and ``tail`` others, chosen by ``branch``."""
    return (*_stem(stem)[:cut], *_noise(1000 + branch, tail))


def job(
    ids: Sequence[int],
    *,
    n: int = 1,
    max_tokens: int = 4,
    scored: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    endless: bool = False,
) -> Job:
    """Returns a job with log-probabilities of all its tokens. No token ends an ``endless`` one."""
    return Job(
        prompt_ids=tuple(ids),
        n=n,
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature, ignore_eos=endless),
        seed=seed,
        logprobs=2,
        prompt_logprobs=scored,
    )


def random_job(rng: random.Random) -> Job:
    """Returns one of many jobs with common prefixes."""
    ids = prompt(
        rng.randrange(_STEMS),
        rng.choice((*LENGTHS, rng.randrange(1, 300))),
        rng.choice(TAILS),
        branch=rng.randrange(2),
    )
    return job(
        ids,
        n=rng.choice((1, 1, 1, 2, 5)),
        max_tokens=rng.choice((1, 1, 4, 4, 12)),
        scored=rng.choice((None, None, 0, 2)),
        temperature=rng.choice((0.0, 1.0)),
        seed=rng.randrange(3),
    )


Order: TypeAlias = Callable[[Model], Sequence[Request]]


def _plain(*jobs: Job) -> Order:
    return lambda _: [(one,) for one in jobs]


def _after_longer(cut: int) -> Order:
    """A longer prompt, then one that differs from it after ``cut`` tokens."""
    return _plain(job(prompt(0, 300)), job(prompt(0, cut, 9)))


def _resumed(model: Model) -> Sequence[Request]:
    """A prompt, then the prompt with its answer, then more, as editors send them.

    The answer crosses the edge of the window.
    """
    first = job(prompt(0, 50), max_tokens=80)
    text = model.fresh((first,)).choices[0, 0].tokens.tolist()
    whole = (*first.prompt_ids, *text)
    return [(first,), (job(whole),), (job((*whole, *prompt(1, 9))),), (job(whole[:60]),)]


def _evicted(_: Model) -> Sequence[Request]:
    """A request, many others that evict it, then the request again."""
    first = (job(prompt(0, 200), scored=1),)
    others = [(job(prompt(1 + i % 2, 30 + 23 * i, 9, branch=i)),) for i in range(6)]
    return [first, *others, first]


def _array(_: Model) -> Sequence[Request]:
    cuts = (200, 60, 130, 300, 130)
    array = tuple(job(prompt(0, cut, 1, branch=i), n=1 + i % 2) for i, cut in enumerate(cuts))
    return [array, (job(prompt(0, 129, 9)),), array]


ORDERS: Mapping[str, Order] = {
    "the same again": _plain(job(prompt(0, 150)), job(prompt(0, 150))),
    "a longer one after it": _plain(job(prompt(0, 90)), job(prompt(0, 220))),
    "in the window": _after_longer(30),
    "at the window": _after_longer(WINDOW),
    "behind the window": _after_longer(200),
    "far behind the window": _plain(
        job(prompt(0, 380)), job(prompt(0, 150, 9)), job(prompt(0, 100, 40)), job(prompt(0, 33))
    ),
    "just before its end": _after_longer(296),
    "a beginning of it": _plain(job(prompt(0, 300)), job(prompt(0, 200)), job(prompt(0, 64))),
    "siblings, more than slots": _plain(
        job(prompt(0, 150), n=5, temperature=1.0), job(prompt(0, 90, 9), n=4, temperature=1.0)
    ),
    "siblings after a longer one": _plain(
        job(prompt(0, 300)), job(prompt(0, 150, 9), n=5, temperature=1.0)
    ),
    "scored, then drawn from": _plain(
        job(prompt(0, 220), scored=1, max_tokens=0),
        job(prompt(0, 220)),
        job(prompt(0, 150, 9), scored=2, max_tokens=1),
        job(prompt(0, 150), scored=0, max_tokens=0),
    ),
    "questions behind a header": _plain(
        *(job(prompt(2, 200, 9, branch=i), scored=0, max_tokens=1) for i in range(6))
    ),
    "resumed": _resumed,
    "after eviction": _evicted,
    "arrays": _array,
}
"""Each order begins on a fresh server; its requests come one after the other."""
