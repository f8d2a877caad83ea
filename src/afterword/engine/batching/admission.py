"""What an engine refuses before it computes anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.job import Job
from afterword.engine.batching.sequence import Prompt
from afterword.engine.changes import Bias, change


def refuse_too_long(jobs: Sequence[Job], context_tokens: int) -> None:
    """Raises ``ContextLengthExceeded`` for a job that no slot can hold.

    A plan has no such job. One that came here would end the engine, and all requests with it.
    """
    for job in jobs:
        prompt = len(job.prompt_ids)
        if prompt + job.max_tokens > context_tokens:
            raise ContextLengthExceeded(
                context=context_tokens, prompt=prompt, completion=job.max_tokens
            )


def refuse_undrawable(jobs: Sequence[Job], vocabulary: int, end_ids: frozenset[int]) -> None:
    """Raises ``InvalidRequest`` if bias, bans and grammar leave no first token (S6).

    The jobs of a request share all of these. If they leave no later token, that shows as it goes.
    """
    job = next((job for job in jobs if job.max_tokens), None)
    if job is None:
        return
    sampling, bias = job.sampling, Bias.of(job.sampling.logit_bias)
    bans = bool(sampling.allowed_ids) or (bias is not None and bias.banned.size > 0)
    # Each of them alone leaves a token: a request whose bans do not was refused before.
    if sum((bans, sampling.min_tokens > 0, job.constraint is not None)) < 2:
        return
    prompt = Prompt(0, job, end_ids, bias)
    row = np.zeros(vocabulary, np.float32)
    change(
        row,
        bias=bias,
        allowed=prompt.allowed,
        mask=None if job.constraint is None else job.constraint.compiled.follow().mask(),
        banned=prompt.end_array if sampling.min_tokens else None,
    )
    if not np.isfinite(row).any():
        raise nothing_to_draw(job)


def nothing_to_draw(job: Job) -> InvalidRequest:
    """Returns the 400 for a job whose fields leave no token. The request would fail again.

    It names all fields that leave tokens out. The grammar is never the first of several: alone it
    leaves a token.
    """
    sampling = job.sampling
    fields = []
    if sampling.allowed_ids:
        fields.append("allowed_token_ids")
    if any(value <= -100 for _, value in sampling.logit_bias):
        fields.append("logit_bias")
    if sampling.min_tokens:
        fields.append("min_tokens")
    if job.constraint is not None:
        fields.append(job.constraint.field)
    if not fields:
        return InvalidRequest("No token could be drawn.")
    *others, last = [f"'{name}'" for name in fields]
    what = f"{', '.join(others)} and {last} leave" if others else f"{last} leaves"
    return InvalidRequest(f"No token could be drawn: {what} none.", param=fields[0])
