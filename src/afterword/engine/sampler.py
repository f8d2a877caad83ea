"""Samples tokens from rows of logits and computes log-probabilities; exact, in numpy.

The sampler works on one row at a time, in buffers that stay in the processor's cache. So a result
cannot depend on other rows, bit for bit (D1), and a row costs only what its parameters need.
"""

from __future__ import annotations

import math
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from afterword.core.job import InfillFilter, SamplingParams
from afterword.engine.history import History
from afterword.engine.infill_filter import sure_enough

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 256
"""Width of the blocks whose maxima and sums replace a sort of the whole row."""
_FLOORS = tuple(np.float32(2.0**-power) for power in (10, 15, 20))
"""Smallest weights, relative to the likeliest token, that nucleus search tries in turn."""
_FEW = 2048
"""Up to this many weights are sorted directly; more are counted into bins first."""
_CHUNK = 8192
"""Weights counted into bins at once, so that numpy's temporary arrays stay in the cache."""
_SHIFT = 16
"""Low bits of a float32 that its bin ignores: 128 bins for each power of two."""
_TOP_BIN = int(np.float32(1).view(np.int32)) >> _SHIFT
_LEAST_BIN = int(np.float32(2.0**-20).view(np.int32)) >> _SHIFT

_TYPICAL_BINS_A_NAT, _TYPICAL_BINS = 256, 8192
"""Bins of the distance from the entropy: their width, and how many there are."""
_MOST_XTC_THRESHOLD = 0.5
"""Above it two tokens cannot both reach the threshold, and XTC is off."""


class RowError(ArithmeticError):
    """No token can be sampled from a row of logits."""


class NothingToDrawError(RowError):
    """Bias and bans leave no token."""


class GrammarError(RowError):
    """A sequence cannot be continued within its grammar, or within the bounds of its cost."""


class NoNumbersError(RowError):
    """The row has NaN or plus infinity, or minus infinity for every token."""


class Bias(msgspec.Struct, frozen=True):
    """``logit_bias`` by meaning: ``values`` to add at ``ids``, ``banned`` and ``forced`` ids."""

    ids: Ids
    values: Row
    banned: Ids
    forced: Ids

    @staticmethod
    def of(logit_bias: tuple[tuple[int, float], ...]) -> Bias | None:
        """Returns the bias of (id, value) pairs; None if empty. -100 bans and 100 forces (R14)."""
        if not logit_bias:
            return None
        added = [(i, v) for i, v in logit_bias if -100 < v < 100]
        return Bias(
            np.array([i for i, _ in added], np.int64),
            np.array([v for _, v in added], np.float32),
            np.array([i for i, v in logit_bias if v <= -100], np.int64),
            np.array([i for i, v in logit_bias if v >= 100], np.int64),
        )


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
        self._logits = np.empty(vocabulary, np.float32)

    def draw(  # noqa: PLR0913 - what changes the logits, each by its name
        self,
        row: Row,
        params: SamplingParams,
        uniform: float,
        *,
        second: float = 0.0,
        bias: Bias | None = None,
        history: History | None = None,
        allowed: Ids | None = None,
        mask: Mask | None = None,
        banned: Ids | None = None,
    ) -> int:
        """Returns the token that ``params`` and ``uniform``, a number in [0, 1), choose.

        ``row`` [vocabulary] is not changed. ``second``, a number in [0, 1), decides whether XTC
        excludes. ``history`` has this choice's tokens, for the penalties. Only ``allowed`` ids and
        those of the ``mask`` [vocabulary] are drawn, and ``banned`` ids never, whatever the bias
        says.
        Raises ``NothingToDrawError`` if no token is left, and ``NoNumbersError`` if the row has
        no finite largest logit.
        """
        wrong: type[RowError] = NoNumbersError
        if any(given is not None for given in (bias, history, allowed, mask, banned)):
            # Bans and forced tokens would hide a broken row, so it is checked before.
            if not math.isfinite(row.max()):
                raise NoNumbersError
            wrong = NothingToDrawError
            row = self._adjusted(row, bias, history, allowed, mask, banned)
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

    def _adjusted(
        self,
        row: Row,
        bias: Bias | None,
        history: History | None,
        allowed: Ids | None,
        mask: Mask | None,
        banned: Ids | None,
    ) -> Row:
        logits = self._logits
        np.copyto(logits, row)
        if bias is not None:
            logits[bias.ids] += bias.values
            logits[bias.banned] = -np.inf
        if history is not None:
            history.penalise(logits)
        if allowed is not None:
            _keep_only(logits, allowed)
        if mask is not None:
            np.copyto(logits, -np.inf, where=~mask)
        if banned is not None:
            logits[banned] = -np.inf
        if bias is not None and bias.forced.size and (logits[bias.forced] > -np.inf).any():
            _keep_only(logits, bias.forced)
        return logits

    def _draw_random(
        self, row: Row, largest: float, params: SamplingParams, uniform: float, second: float
    ) -> int:
        weights = self._probabilities[: self._vocabulary]
        if params.temperature == 1:
            self._exponentials(row, largest, weights)
        else:
            np.subtract(row, np.float32(largest), out=weights)
            # A temperature near zero overflows to -inf, which is the intended limit.
            with np.errstate(over="ignore"):
                np.divide(weights, np.float32(max(params.temperature, 1e-30)), out=weights)
            self._exponentials(weights, 0.0, weights)
        kept = self._kept(row, weights, params)
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

    def _kept(self, row: Row, weights: Row, params: SamplingParams) -> Ids | None:
        """Returns the ids that survive top_k, typical_p, top_p and min_p, ascending; at least one.

        Returns None if they are many; the weights of all other ids are set to zero then.
        """
        ids: Ids | None = None
        if 0 < params.top_k < self._vocabulary:
            ids = np.sort(self.top(row, params.top_k))
        largest = 1.0
        if params.typical_p < 1:
            ids = _typical(weights, ids, params.typical_p)
            largest = float(weights[ids].max())
        if params.top_p < 1:
            ids = self._nucleus(weights, ids, params.top_p)
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
        ends = np.array(sorted(infill.end_ids), np.int64)
        end = ends[[row[ends].argmax()]]
        # It need not be a candidate. Alone it is drawn whatever its weight is.
        weights[end] = 1
        return end

    def _nucleus(self, weights: Row, ids: Ids | None, top_p: float) -> Ids | None:
        """Returns the fewest likeliest ids whose mass reaches ``top_p`` of the mass of ``ids``.

        ``ids`` is None for all ids. Returns None if they are many, as ``_kept`` does.
        """
        if ids is not None:
            held = weights[ids]
            goal = top_p * float(held.sum(dtype=np.float64))
            return ids[_fewest(held, goal)]
        goal = top_p * float(self._probabilities.reshape(-1, _BLOCK).sum(axis=1).sum(dtype=float))
        for floor in _FLOORS:
            likely = weights >= floor
            if np.count_nonzero(likely) > self._vocabulary // 2:
                break
            near = np.flatnonzero(likely)
            held = weights[near]
            if float(held.sum(dtype=np.float64)) >= goal:
                return near[_fewest(held, goal)]
        np.multiply(weights, _fewest(weights, goal), out=weights)
        return None


def _keep_only(logits: Row, ids: Ids) -> None:
    """Set all other logits to minus infinity."""
    held = logits[ids]
    logits.fill(-np.inf)
    logits[ids] = held


def _typical(weights: Row, ids: Ids | None, typical_p: float) -> Ids:
    """Returns the most typical ids whose probabilities add up to more than ``typical_p``.

    A token is the more typical, the nearer its information is to the entropy of ``ids`` (None for
    all ids). On a tie the lowest id comes first. Source: llama.cpp's sampler of the same name.
    """
    ids = np.flatnonzero(weights) if ids is None else ids[weights[ids] > 0]
    probabilities = weights[ids].astype(np.float64)
    probabilities /= probabilities.sum()
    information = -np.log(probabilities)
    # Not a dot product: numpy's would start threads of its own.
    distance = np.abs(information - (probabilities * information).sum())
    bins = np.minimum(distance * _TYPICAL_BINS_A_NAT, _TYPICAL_BINS - 1).astype(np.int64)
    masses = np.bincount(bins, probabilities, _TYPICAL_BINS).cumsum()
    # Only the bin in which the sum passes the goal is sorted.
    edge = min(int(np.searchsorted(masses, typical_p, side="right")), _TYPICAL_BINS - 1)
    inner = bins < edge
    at_edge = np.flatnonzero(bins == edge)
    at_edge = at_edge[np.argsort(distance[at_edge], kind="stable")]
    before = float(masses[edge - 1]) if edge else 0.0
    cumulative = before + probabilities[at_edge].cumsum()
    inner[at_edge[: int(np.searchsorted(cumulative, typical_p, side="right")) + 1]] = True
    kept: Ids = ids[inner]
    return kept


def _fewest(weights: Row, goal: float) -> npt.NDArray[np.bool_]:
    """Returns a mask of the fewest highest weights whose sum reaches ``goal``.

    On a tie the first ones are taken. ``weights`` are from 0 to 1.
    """
    if len(weights) <= _FEW:
        edge, before = np.arange(len(weights)), 0.0
    else:
        edge, before = _edge(weights, goal)
    held = weights[edge]
    descending = np.sort(held)[::-1]
    cumulative = before + descending.cumsum(dtype=np.float64)
    count = min(int(np.searchsorted(cumulative, goal, side="left")) + 1, len(held))
    threshold = descending[count - 1]
    marked: npt.NDArray[np.bool_] = weights > threshold
    missing = count - int((held > threshold).sum())
    marked[edge[np.flatnonzero(held == threshold)[:missing]]] = True
    return marked


def _edge(weights: Row, goal: float) -> tuple[Ids, float]:
    """Returns the indices of the bin in which the sum reaches ``goal``, and the sum above it.

    Bins are made of the high bits of the floats; nonnegative floats sort as their bits do.
    """
    bins = weights.view(np.int32) >> _SHIFT
    np.maximum(bins, _LEAST_BIN, out=bins)
    np.subtract(_TOP_BIN, bins, out=bins)
    masses = np.zeros(_TOP_BIN - _LEAST_BIN + 1)
    for at in range(0, len(weights), _CHUNK):
        chunk = slice(at, at + _CHUNK)
        masses += np.bincount(bins[chunk], weights[chunk], len(masses))
    cumulative = masses.cumsum()
    reached = min(int(np.searchsorted(cumulative, goal, side="left")), int(bins.max()))
    before = float(cumulative[reached - 1]) if reached else 0.0
    return np.flatnonzero(bins == reached), before
