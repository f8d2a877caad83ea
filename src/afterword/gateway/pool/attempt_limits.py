"""How long an attempt waits for an upstream, and how much it takes from it."""

from __future__ import annotations

import msgspec

from afterword.core.job import Job
from afterword.gateway.pool.pool import PoolOptions
from afterword.gateway.transport.sse import MOST_EVENT_BYTES


class AttemptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The time to the first token and between two, and the bytes of an event or a plain answer."""

    first_token_s: float
    silence_s: float
    event_bytes: int


def limits_of(options: PoolOptions, job: Job, sequences: int) -> AttemptLimits:
    """Returns the limits of a request for some sequences of a job."""
    return AttemptLimits(
        first_token_s=options.first_token_s,
        silence_s=options.silence_s,
        event_bytes=_most_bytes(job, sequences),
    )


def _most_bytes(job: Job, sequences: int) -> int:
    """Returns the most that one event, or a whole plain answer, of a request needs."""
    prompt = len(job.prompt_ids)
    tokens = job.max_tokens * sequences
    if job.prompt_logprobs is not None:
        tokens += prompt * sequences
    entries = 2 + max(job.logprobs or 0, job.prompt_logprobs or 0) + len(job.scored_ids)
    # A token's text and numbers, escaped; some servers repeat the prompt at the end.
    return min((1 << 20) + 64 * prompt + 128 * entries * tokens, MOST_EVENT_BYTES)
