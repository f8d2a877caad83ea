"""Samples tokens from rows of logits and computes log-probabilities; exact, in numpy.

The sampler works on one row at a time, in buffers that stay in the processor's cache. So a result
cannot depend on other rows, bit for bit (D1), and a row costs only what its parameters need.

native/kernels/draw_row.cpp does the same on all threads. It adds in the order in which numpy adds
here, so results are equal in all bits, and a seed keeps its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from afterword.core.job import InfillFilter, SamplingParams
from afterword.engine.arrays import Ids, Row, Rows
from afterword.engine.changes import Bias, Mask, change
from afterword.engine.filters import fewest, typical
from afterword.engine.history import History
from afterword.engine.infill_filter import sure_enough
from afterword.engine.row_query import (
    NoNumbersError,
    NothingToDrawError,
    RowError,
    RowQuery,
    RowResult,
)

_BLOCK = 256
"""Width of the blocks whose maxima and sums replace a sort of the whole row."""
_MOST_LISTED = 2048
"""More ids are not listed: their weights stay in place, and those of the others become zero."""
_MOST_CHANGED_ROWS = 32
"""Rows with bias, penalties or bans that are kept until they are answered together."""
_MOST_XTC_THRESHOLD = 0.5
"""Above it two tokens cannot both reach the threshold, and XTC is off."""


class Exponentials(Protocol):
    """Computes exponentials of a row; a model's library may be faster than numpy."""

    def __call__(self, row: Row, largest: float, out: Row) -> float:
        """Write ``exp(row - largest)`` into ``out``, which may be ``row``. Returns their sum.

        Minus infinity gives 0. The result of an entry does not depend on the other entries.
        """


def exponentials(row: Row, largest: float, out: Row) -> float:
    """Implements ``Exponentials`` in numpy."""
    np.subtract(row, np.float32(largest), out=out)
    np.exp(out, out=out)
    return float(out.sum())


class Sampler:
    """Samples from rows [vocabulary] of float32 logits. Not thread-safe: one engine owns it."""

    def __init__(self, vocabulary: int, exponentials: Exponentials = exponentials) -> None:
        self._vocabulary = vocabulary
        self._exponentials = exponentials
        self._blocks = -(-vocabulary // _BLOCK)
        # The padding beyond the vocabulary keeps these values.
        self._probabilities = np.zeros(self._blocks * _BLOCK, np.float32)
        self._padded = np.full(self._blocks * _BLOCK, -np.inf, np.float32)
        # Pages of rows that are never used take no memory.
        self._changed = np.empty((_MOST_CHANGED_ROWS, vocabulary), np.float32)
        self._changes = 0

    @property
    def full(self) -> bool:
        """Whether there is room for no more changed rows until queries are answered."""
        return self._changes == _MOST_CHANGED_ROWS

    def change(
        self,
        row: Row,
        *,
        bias: Bias | None = None,
        history: History | None = None,
        allowed: Ids | None = None,
        mask: Mask | None = None,
        banned: Ids | None = None,
    ) -> int:
        """Returns the number of a changed copy of a row, which stays until the next ``answer``.

        See ``changes.change``.
        """
        number = self._changes
        logits = self._changed[number]
        np.copyto(logits, row)
        change(logits, bias=bias, history=history, allowed=allowed, mask=mask, banned=banned)
        self._changes += 1
        return number

    def answer(self, rows: Rows, queries: Sequence[RowQuery]) -> list[RowResult]:
        """Returns the results of queries of ``rows`` [n, vocabulary], in order.

        The result of a row does not depend on the others.
        """
        self._changes = 0
        return [self._answer(rows, query) for query in queries]

    def _answer(self, rows: Rows, query: RowQuery) -> RowResult:
        row, token = rows[query.row], query.token
        try:
            if query.params is not None:
                changed = None if query.changed is None else self._changed[query.changed]
                token = self._choose(row, changed, query.params, query.uniform, query.second)
            if query.top is None:
                return RowResult(token)
            ids = self.top(row, query.top)
            normaliser = self.normaliser(row, ids)
        except RowError as error:
            return RowResult(error=error)
        top = row[ids].astype(np.float64) - normaliser
        rank = int(np.count_nonzero(row >= row[token])) if query.ranked else 0
        return RowResult(token, normaliser, float(row[token]) - normaliser, ids, top, rank)

    def _choose(
        self,
        row: Row,
        changed: Row | None,
        params: SamplingParams,
        uniform: float,
        second: float,
    ) -> int:
        """Returns the token that ``params`` and ``uniform``, a number in [0, 1), choose.

        ``second``, a number in [0, 1), decides whether XTC excludes. ``changed`` is the row with
        bias, penalties and bans, if there are any.
        Raises ``NothingToDrawError`` if no token is left, and ``NoNumbersError`` if the row has
        no finite largest logit.
        """
        wrong: type[RowError] = NoNumbersError
        if changed is not None:
            # Bans and forced tokens would hide a broken row, so it is checked before.
            if not math.isfinite(row.max()):
                raise NoNumbersError
            row, wrong = changed, NothingToDrawError
        keeps_likeliest = params.top_p == 0 and params.typical_p >= 1
        if params.temperature == 0 or keeps_likeliest or params.top_k == 1:
            # numpy treats NaN as the largest value, here and below.
            token = int(row.argmax())
            if not math.isfinite(row[token]):
                raise wrong
            return token
        largest = float(row.max())
        if not math.isfinite(largest):
            raise wrong
        return self._draw_random(row, largest, params, uniform, second)

    def normaliser(self, row: Row, top: Ids | None = None) -> float:
        """Returns log(sum(exp(row))): ``row[t] - normaliser`` is the log-probability of token t.

        ``top`` may pass ids whose first one has the highest logit, if known.
        Raises ``NoNumbersError`` if the row has NaN or no finite largest logit.
        """
        largest = float(row[top[0]] if top is not None and len(top) else row.max())
        if not math.isfinite(largest):
            raise NoNumbersError
        total = self._exponentials(row, largest, self._probabilities[: self._vocabulary])
        # NaN anywhere makes the sum NaN.
        if math.isnan(total):
            raise NoNumbersError
        return largest + math.log(total)

    def top(self, row: Row, k: int) -> Ids:
        """Returns the ids [k] of the highest logits, highest first, lowest id first on a tie."""
        if k <= 0:
            return np.empty(0, np.int64)
        if k == 1:
            return np.array((row.argmax(),), np.int64)
        candidates = self._at_least_kth(row, k)
        order = np.lexsort((candidates, -row[candidates]))
        return candidates[order[:k]]

    def _at_least_kth(self, row: Row, k: int) -> Ids:
        """Returns ids whose logit reaches the k-th highest block maximum.

        The k highest logits are among them.
        """
        if k >= self._blocks:
            return np.arange(self._vocabulary)
        self._padded[: self._vocabulary] = row
        blocks = self._padded.reshape(-1, _BLOCK)
        maxima = blocks.max(axis=1)
        threshold = np.partition(maxima, self._blocks - k)[self._blocks - k]
        rich = np.flatnonzero(maxima >= threshold)
        at_block, at = np.nonzero(blocks[rich] >= threshold)
        ids = rich[at_block] * _BLOCK + at
        return ids[ids < self._vocabulary]

    def _draw_random(
        self, row: Row, largest: float, params: SamplingParams, uniform: float, second: float
    ) -> int:
        weights = self._probabilities[: self._vocabulary]
        if params.temperature == 1:
            total = self._exponentials(row, largest, weights)
        else:
            total = self._exponentials(_scaled(row, largest, params, weights), 0.0, weights)
        kept = self._kept(row, largest, weights, total, params)
        if second < params.xtc_probability:
            kept = self._without_top(weights, kept, params.xtc_threshold)
        if params.infill is not None:
            kept = self._infill(row, weights, kept, params.infill)
        if kept is None:
            return self._draw_from_all(uniform)
        cumulative = weights[kept].cumsum(dtype=np.float64)
        at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return int(kept[min(at, len(kept) - 1)])

    def _draw_from_all(self, uniform: float) -> int:
        """Invert the cumulative distribution, first over blocks and then inside one."""
        blocks = self._probabilities.reshape(-1, _BLOCK)
        cumulative = blocks.sum(axis=1).cumsum(dtype=np.float64)
        target = uniform * cumulative[-1]
        block = min(int(np.searchsorted(cumulative, target, side="right")), self._blocks - 1)
        before = cumulative[block - 1] if block else 0.0
        inside = blocks[block].cumsum(dtype=np.float64)
        at = int(np.searchsorted(inside, target - before, side="right"))
        if at == _BLOCK or not blocks[block][at]:
            # Rounding of the block's sum put the target past the last token with a weight.
            at = int(np.flatnonzero(blocks[block])[-1])
        return block * _BLOCK + at

    def _kept(
        self, row: Row, highest: float, weights: Row, total: float, params: SamplingParams
    ) -> Ids | None:
        """Returns the ids that survive top_k, typical_p, top_p and min_p, ascending; at least one.

        Returns None if they are many; the weights of all other ids are set to zero then.
        """
        ids: Ids | None = None
        if 0 < params.top_k < self._vocabulary:
            ids = np.sort(self.top(row, params.top_k))
        largest = 1.0
        if params.typical_p < 1:
            scaled = _scaled(row, highest, params, np.empty_like(weights))
            ids = typical(weights, scaled, ids, params.typical_p)
            largest = float(weights[ids].max())
        if params.top_p < 1:
            ids = self._nucleus(weights, total, ids, params.top_p)
        if params.min_p > 0:
            # The likeliest of the candidates survives top_p.
            likely = weights >= np.float32(params.min_p * largest)
            if ids is None:
                np.multiply(weights, likely, out=weights)
            else:
                ids = ids[likely[ids]]
        return None if ids is None else ids[weights[ids] > 0]

    def _without_top(self, weights: Row, kept: Ids | None, threshold: float) -> Ids | None:
        """Exclude all tokens of at least this probability but the least likely of them (XTC).

        ``kept`` and the result are as ``_kept`` returns them.
        """
        if threshold > _MOST_XTC_THRESHOLD:
            return kept
        held = weights if kept is None else weights[kept]
        likely = held >= threshold * float(held.sum(dtype=np.float64))
        top = np.flatnonzero(likely & (held > 0))
        if len(top) < 2:
            return kept
        # Of equally likely tokens the one with the highest id is the least likely.
        least = top[len(top) - 1 - int(held[top][::-1].argmin())]
        excluded = top[top != least]
        if kept is not None:
            return np.delete(kept, excluded)
        weights[excluded] = 0
        return None

    def _infill(self, row: Row, weights: Row, kept: Ids | None, infill: InfillFilter) -> Ids:
        """Returns the ids that the filter leaves, ascending; at least one."""
        ids = np.flatnonzero(weights) if kept is None else kept
        left = sure_enough(ids, weights[ids].astype(np.float64), infill)
        if len(left):
            return left
        if not infill.end_ids:
            # Nothing can end the text, so it goes on with what is not sure enough.
            return ids
        ends = np.array(sorted(infill.end_ids), np.int64)
        end = ends[[row[ends].argmax()]]
        # It need not be a candidate. Alone it is drawn whatever its weight is.
        weights[end] = 1
        return end

    def _nucleus(self, weights: Row, total: float, ids: Ids | None, top_p: float) -> Ids | None:
        """Returns the fewest likeliest ids whose mass reaches ``top_p`` of the mass of ``ids``.

        ``ids`` is None for all ids, whose mass is ``total``. Returns None if the result is many
        ids, as ``_kept`` does.
        """
        if ids is not None:
            held = weights[ids]
            return ids[fewest(held, top_p * float(held.sum(dtype=np.float64)))]
        marked = fewest(weights, top_p * total)
        if np.count_nonzero(marked) <= _MOST_LISTED:
            return np.flatnonzero(marked)
        np.multiply(weights, marked, out=weights)
        return None


def _scaled(row: Row, largest: float, params: SamplingParams, out: Row) -> Row:
    """Write the logits below the largest one, by temperature, into ``out``, and return it."""
    np.subtract(row, np.float32(largest), out=out)
    if params.temperature != 1:
        # A temperature near zero overflows to -inf, which is the intended limit.
        with np.errstate(over="ignore"):
            np.divide(out, np.float32(max(params.temperature, 1e-30)), out=out)
    return out
