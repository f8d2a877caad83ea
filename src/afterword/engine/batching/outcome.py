"""Turns the rows of logits of a step into sampled tokens and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.draws import uniform
from afterword.core.job import Sampled
from afterword.engine.batching.sequence import Prompt, Sequence
from afterword.engine.batching.step import Span, Step
from afterword.engine.sampler import Ids, Row, RowError, Sampler

Score = tuple[float, Ids, npt.NDArray[np.float64]]
"""Log-probability of a token, then ids [k] and log-probabilities [k] of the k likeliest."""


class PromptScore(msgspec.Struct, frozen=True):
    """The score of the prompt token at ``position``.

    ``branches`` pairs each follower of the prompt with the log-probability of its own token at
    this position.
    """

    position: int
    score: Score
    branches: SequenceOf[tuple[Prompt, float]] = ()


class SampledToken(msgspec.Struct, frozen=True):
    """A sampled token; ``score`` is None if the job asks for no log-probabilities."""

    token: int
    score: Score | None


class Outcome(msgspec.Struct, frozen=True):
    """The results of one span.

    ``found`` holds scores of prompt tokens. ``drawn`` holds sampled tokens, more than one if a
    draft was accepted. ``error`` is what stopped the evaluation after these.
    """

    found: SequenceOf[PromptScore] = ()
    drawn: SequenceOf[SampledToken] = ()
    error: RowError | None = None


def evaluate(step: Step, rows: npt.NDArray[np.float32], sampler: Sampler) -> list[Outcome]:
    """Returns one outcome for each span of ``step``, in order.

    ``rows`` [wanted, vocabulary] are the wanted rows in the batch's order.
    """
    outcomes = []
    at = 0
    for span in step.spans:
        mine = rows[at : at + span.rows]
        at += span.rows
        outcomes.append(_evaluate_span(span, mine, sampler))
    return outcomes


def _evaluate_span(span: Span, rows: npt.NDArray[np.float32], sampler: Sampler) -> Outcome:
    sequence = span.sequence
    prompt = sequence.prompt
    # A row predicts the token after its own position.
    first = span.start + span.tokens - span.rows + 1
    found: list[PromptScore] = []
    drawn: list[SampledToken] = []
    try:
        for offset in range(span.rows - span.drafted - span.samples):
            found.append(_find(prompt, first + offset, rows[offset], sampler))  # noqa: PERF401 - scores found before an error count
        if span.samples:
            _draw_along(sequence, span.draft, rows[len(found) :], sampler, drawn)
    except RowError as error:
        return Outcome(found, drawn, error)
    return Outcome(found, drawn)


def _draw_along(
    sequence: Sequence,
    draft: SequenceOf[int],
    rows: npt.NDArray[np.float32],
    sampler: Sampler,
    drawn: list[SampledToken],
) -> None:
    """Append tokens to ``drawn``, row by row, until a sampled token differs from the draft."""
    counts = sequence.counts
    if counts is not None and draft:
        counts = dict(counts)
    wanted = sequence.prompt.job.logprobs
    for at, row in enumerate(rows):
        token = _draw(sequence, at, counts, row, sampler)
        score = None
        if wanted is not None:
            score, _ = _score(row, token, wanted, sampler)
        drawn.append(SampledToken(token, score))
        if sequence.ends_with(token) or at == len(draft) or token != draft[at]:
            return
        if counts is not None:
            counts[token] = counts.get(token, 0) + 1


def _find(prompt: Prompt, position: int, row: Row, sampler: Sampler) -> PromptScore:
    token, k = int(prompt.ids[position]), prompt.job.prompt_logprobs or 0
    score, normaliser = _score(row, token, k, sampler)
    branches = [
        (follower, float(row[follower.ids[position]]) - normaliser)
        for follower in prompt.followers.get(position, ())
    ]
    return PromptScore(position, score, branches)


def _score(row: Row, token: int, k: int, sampler: Sampler) -> tuple[Score, float]:
    """Returns the score of ``token`` and the row's normaliser."""
    ids = sampler.top(row, k)
    normaliser = sampler.normaliser(row, ids)
    score = float(row[token]) - normaliser, ids, row[ids].astype(np.float64) - normaliser
    return score, normaliser


def _draw(
    sequence: Sequence, ahead: int, counts: dict[int, int] | None, row: Row, sampler: Sampler
) -> int:
    """Returns the token at the position ``ahead`` after the next one; 0 is the next one."""
    prompt, job = sequence.prompt, sequence.prompt.job
    sampling, generated = job.sampling, sequence.generated + ahead
    banned = prompt.end_array if generated < sampling.min_tokens else None
    u = 0.0 if sampling.temperature == 0 else uniform(job.seed, sequence.sibling, generated)
    return sampler.draw(row, sampling, u, bias=prompt.bias, counts=counts, banned=banned)


def sampled_event(sequence: Sequence, drawn: SampledToken) -> Sampled:
    """Returns the event that reports one generated token."""
    logprobs, top_ids, top_logprobs = array("d"), array("i"), array("d")
    if drawn.score is not None:
        value, ids, values = drawn.score
        logprobs.append(value)
        top_ids.extend(ids.tolist())
        top_logprobs.extend(values.tolist())
    return Sampled(
        sequence.prompt.index,
        sequence.sibling,
        array("i", (drawn.token,)),
        logprobs,
        top_ids,
        top_logprobs,
    )
