"""Turns the rows of logits of a step into sampled tokens and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.draws import uniform
from afterword.core.job import NO_TOKEN, Sampled
from afterword.engine.batching.scores import Score
from afterword.engine.batching.sequence import Prompt, Sequence
from afterword.engine.batching.step import Span, Step
from afterword.engine.history import History
from afterword.engine.sampler import Row, RowError, Sampler


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
    history = sequence.history
    if history is not None and draft:
        history = history.copy()
    wanted = sequence.prompt.job.logprobs
    for at, row in enumerate(rows):
        token = _draw(sequence, at, history, row, sampler)
        score = None
        if wanted is not None:
            score, _ = _score(row, token, wanted, sequence.prompt, sampler)
        drawn.append(SampledToken(token, score))
        if sequence.grammar is not None:
            # All that is drawn is kept: an error ends the request.
            sequence.grammar.accept(token)
        if sequence.ends_with(token) or at == len(draft) or token != draft[at]:
            return
        if history is not None:
            history.accept(token)


def _find(prompt: Prompt, position: int, row: Row, sampler: Sampler) -> PromptScore:
    token, k = int(prompt.ids[position]), prompt.job.prompt_logprobs or 0
    score, normaliser = _score(row, token, k, prompt, sampler)
    if prompt.job.prompt_ranks:
        score = msgspec.structs.replace(score, rank=int(np.count_nonzero(row >= row[token])))
    branches = [
        (follower, float(row[follower.ids[position]]) - normaliser)
        for follower in prompt.followers.get(position, ())
    ]
    return PromptScore(position, score, branches)


def _score(row: Row, token: int, k: int, prompt: Prompt, sampler: Sampler) -> tuple[Score, float]:
    """Returns the score of ``token`` and the row's normaliser."""
    ids = sampler.top(row, k)
    normaliser = sampler.normaliser(row, ids)
    if prompt.job.scored_ids:
        others = prompt.scored_ids
        ids = np.concatenate((ids, np.where(np.isin(others, ids), NO_TOKEN, others)))
    score = Score(float(row[token]) - normaliser, ids, row[ids].astype(np.float64) - normaliser)
    return score, normaliser


def _draw(
    sequence: Sequence, ahead: int, history: History | None, row: Row, sampler: Sampler
) -> int:
    """Returns the token at the position ``ahead`` after the next one; 0 is the next one."""
    prompt, job = sequence.prompt, sequence.prompt.job
    sampling, at = job.sampling, sequence.generated + ahead
    first = second = 0.0
    if sampling.temperature != 0:
        first = uniform(job.seed, sequence.sibling, at)
    if sampling.xtc_probability:
        second = uniform(job.seed, sequence.sibling, at, second=True)
    return sampler.draw(
        row,
        sampling,
        first,
        second=second,
        bias=prompt.bias,
        history=history,
        allowed=prompt.allowed,
        mask=None if sequence.grammar is None else sequence.grammar.mask(),
        banned=prompt.end_array if at < sampling.min_tokens else None,
    )


def sampled_event(sequence: Sequence, drawn: SampledToken) -> Sampled:
    """Returns the event that reports one generated token."""
    logprobs, top_ids, top_logprobs = array("d"), array("i"), array("d")
    if drawn.score is not None:
        logprobs.append(drawn.score.logprob)
        top_ids.extend(drawn.score.top_ids.tolist())
        top_logprobs.extend(drawn.score.top_logprobs.tolist())
    return Sampled(
        sequence.prompt.index,
        sequence.sibling,
        array("i", (drawn.token,)),
        logprobs,
        top_ids,
        top_logprobs,
    )
