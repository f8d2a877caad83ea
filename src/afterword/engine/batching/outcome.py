"""Turns the rows of logits of a step into sampled tokens and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np

from afterword.core.draws import uniform
from afterword.core.job import NO_TOKEN, Sampled
from afterword.engine.arrays import Ids, Row, Rows
from afterword.engine.batching.scores import Score
from afterword.engine.batching.sequence import Prompt, Sequence
from afterword.engine.batching.step import Span, Step
from afterword.engine.history import History
from afterword.engine.row_query import RowError, RowQuery, RowResult
from afterword.engine.sampler import Sampler


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


def evaluate(step: Step, rows: Rows, sampler: Sampler) -> list[Outcome]:
    """Returns one outcome for each span of ``step``, in order.

    ``rows`` [wanted, vocabulary] are the wanted rows in the batch's order. Their queries are
    answered together, but for drafts of sequences whose next query depends on the last answer.
    """
    answers = _Answers(rows, sampler)
    at = 0
    for span in step.spans:
        _ask(span, at, answers)
        at += span.rows
    answers.take()
    outcomes = []
    at = 0
    for span in step.spans:
        outcomes.append(_outcome(span, at, answers))
        at += span.rows
    return outcomes


class _Answers:
    """The results of a step by row, and the queries that are not answered yet."""

    def __init__(self, rows: Rows, sampler: Sampler) -> None:
        self._rows = rows
        self._sampler = sampler
        self._queries: list[RowQuery] = []
        self.results: list[RowResult | None] = [None] * len(rows)

    def row(self, row: int) -> Row:
        """Returns the logits [vocabulary]."""
        logits: Row = self._rows[row]
        return logits

    def ask(self, query: RowQuery) -> None:
        """Add a query; it is answered at the latest when ``take`` is called."""
        self._queries.append(query)

    def ask_draw(
        self, sequence: Sequence, ahead: int, row: int, history: History | None
    ) -> RowResult | None:
        """Add a query for the token ``ahead`` of the next one; 0 is the next one.

        Returns the result if the query fails at once.
        """
        prompt, job = sequence.prompt, sequence.prompt.job
        sampling, at = job.sampling, sequence.generated + ahead
        first = second = 0.0
        if sampling.temperature != 0:
            first = uniform(job.seed, sequence.sibling, at)
        if sampling.xtc_probability:
            second = uniform(job.seed, sequence.sibling, at, second=True)
        banned = prompt.end_array if at < sampling.min_tokens else None
        changed = None
        if _changes(sequence, history, banned):
            try:
                mask = None if sequence.grammar is None else sequence.grammar.mask()
            except RowError as error:
                return RowResult(error=error)
            if self._sampler.full:
                self.take()
            changed = self._sampler.change(
                self.row(row),
                bias=prompt.bias,
                history=history,
                allowed=prompt.allowed,
                mask=mask,
                banned=banned,
            )
        self._queries.append(
            RowQuery(row, sampling, first, second, changed, NO_TOKEN, job.logprobs)
        )
        return None

    def take(self) -> None:
        """Answer all queries."""
        queries, self._queries = self._queries, []
        for query, result in zip(queries, self._sampler.answer(self._rows, queries), strict=True):
            self.results[query.row] = result

    def result(self, row: int) -> RowResult:
        """Returns the result of a row. Raises ``RowError`` if that is an error."""
        result = self.results[row]
        if result is None:
            raise AssertionError(f"row {row} was not asked for")
        if result.error is not None:
            raise result.error
        return result


def _changes(sequence: Sequence, history: History | None, banned: Ids | None) -> bool:
    """Whether the logits of a row are changed before a token is drawn."""
    prompt = sequence.prompt
    return (
        history is not None
        or banned is not None
        or prompt.bias is not None
        or prompt.allowed is not None
        or sequence.grammar is not None
    )


def _is_stepwise(span: Span) -> bool:
    """Whether what is asked of a row depends on the token of the row before."""
    sequence = span.sequence
    return span.drafted > 0 and (sequence.history is not None or sequence.grammar is not None)


def _ask(span: Span, row: int, answers: _Answers) -> None:
    """Ask for all that is wanted of a span, whose first row is number ``row``."""
    prompt = span.sequence.prompt
    scored = span.rows - span.drafted - span.samples
    if scored:
        job = prompt.job
        # A row predicts the token after its own position.
        first = span.start + span.tokens - span.rows + 1
        tokens = prompt.ids[first : first + scored].tolist()
        for at, token in enumerate(tokens, row):
            answers.ask(
                RowQuery(at, token=token, top=job.prompt_logprobs or 0, ranked=job.prompt_ranks)
            )
    if span.samples and not _is_stepwise(span):
        for ahead in range(span.drafted + 1):
            at = row + scored + ahead
            failed = answers.ask_draw(span.sequence, ahead, at, span.sequence.history)
            if failed is not None:
                answers.results[at] = failed


def _outcome(span: Span, row: int, answers: _Answers) -> Outcome:
    prompt = span.sequence.prompt
    first = span.start + span.tokens - span.rows + 1
    scored = span.rows - span.drafted - span.samples
    found: list[PromptScore] = []
    drawn: list[SampledToken] = []
    try:
        for ahead in range(scored):
            found.append(_found(prompt, first + ahead, row + ahead, answers))  # noqa: PERF401 - scores found before an error count
        if span.samples:
            _take_drawn(span, row + scored, answers, drawn)
    except RowError as error:
        return Outcome(found, drawn, error)
    return Outcome(found, drawn)


def _take_drawn(span: Span, row: int, answers: _Answers, drawn: list[SampledToken]) -> None:
    """Append tokens to ``drawn``, row by row, until a sampled token differs from the draft."""
    sequence = span.sequence
    if not span.drafted:
        _take_token(sequence, row, answers, drawn)
        return
    stepwise = _is_stepwise(span)
    history = None if sequence.history is None else sequence.history.copy()
    for ahead, drafted in enumerate((*span.draft, NO_TOKEN)):
        at = row + ahead
        if stepwise:
            answers.results[at] = answers.ask_draw(sequence, ahead, at, history)
            answers.take()
        token = _take_token(sequence, at, answers, drawn)
        if sequence.ends_with(token) or token != drafted:
            return
        if history is not None:
            history.accept(token)


def _take_token(sequence: Sequence, row: int, answers: _Answers, drawn: list[SampledToken]) -> int:
    result = answers.result(row)
    score = None
    wanted = sequence.prompt.job.logprobs
    if wanted is not None:
        score = _score(sequence.prompt, row, wanted, result, answers)
    drawn.append(SampledToken(result.token, score))
    if sequence.grammar is not None:
        # All that is drawn is kept: an error ends the request.
        sequence.grammar.accept(result.token)
    return result.token


def _found(prompt: Prompt, position: int, row: int, answers: _Answers) -> PromptScore:
    result = answers.result(row)
    branches = [
        (follower, float(answers.row(row)[follower.ids[position]]) - result.normaliser)
        for follower in prompt.followers.get(position, ())
    ]
    wanted = prompt.job.prompt_logprobs or 0
    return PromptScore(position, _score(prompt, row, wanted, result, answers), branches)


def _score(prompt: Prompt, row: int, wanted: int, result: RowResult, answers: _Answers) -> Score:
    """Returns the score of a row with ``wanted`` of the likeliest tokens."""
    ids, logprobs = result.top_ids, result.top_logprobs
    missing = wanted - len(ids)
    if missing > 0:
        # The vocabulary has fewer.
        ids = np.append(ids, np.full(missing, NO_TOKEN))
        logprobs = np.append(logprobs, np.full(missing, -np.inf))
    if prompt.job.scored_ids:
        others = np.where(np.isin(prompt.scored_ids, ids), NO_TOKEN, prompt.scored_ids)
        logits = answers.row(row)[others].astype(np.float64)
        ids = np.concatenate((ids, others))
        logprobs = np.concatenate((logprobs, logits - result.normaliser))
    return Score(result.logprob, ids, logprobs, result.rank)


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
