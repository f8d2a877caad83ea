"""The filters that look for few of many weights, without sorting all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afterword.engine.arrays import Ids, Row

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


def typical(weights: Row, scaled: Row, ids: Ids | None, typical_p: float) -> Ids:
    """Returns the most typical ids whose probabilities add up to more than ``typical_p``.

    A token is the more typical, the nearer its information is to the entropy of ``ids`` (None for
    all ids). On a tie the lowest id comes first. ``scaled`` are the logits that ``weights`` are
    the exponentials of: a logit is as far from the mean logit as the information is from the
    entropy, so no logarithm is needed. Source: llama.cpp's sampler of the same name.
    """
    ids = np.flatnonzero(weights) if ids is None else ids[weights[ids] > 0]
    masses, logits = weights[ids].astype(np.float64), scaled[ids].astype(np.float64)
    whole = masses.sum()
    # Not a dot product: numpy's would start threads of its own.
    distance = np.abs(logits - (masses * logits).sum() / whole)
    bins = np.minimum(distance * _TYPICAL_BINS_A_NAT, _TYPICAL_BINS - 1).astype(np.int64)
    cumulative = np.bincount(bins, masses, _TYPICAL_BINS).cumsum()
    goal = typical_p * whole
    # Only the bin in which the sum passes the goal is sorted.
    edge = min(int(np.searchsorted(cumulative, goal, side="right")), _TYPICAL_BINS - 1)
    inner = bins < edge
    at_edge = np.flatnonzero(bins == edge)
    at_edge = at_edge[np.argsort(distance[at_edge], kind="stable")]
    before = float(cumulative[edge - 1]) if edge else 0.0
    at_edge_cumulative = before + masses[at_edge].cumsum()
    inner[at_edge[: int(np.searchsorted(at_edge_cumulative, goal, side="right")) + 1]] = True
    kept: Ids = ids[inner]
    return kept


def fewest(weights: Row, goal: float) -> npt.NDArray[np.bool_]:
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
    reached = int(np.searchsorted(cumulative, goal, side="left"))
    # Empty bins are never reached: neither for a goal of 0, nor past the last weight.
    reached = max(min(reached, int(bins.max())), int(bins.min()))
    before = float(cumulative[reached - 1]) if reached else 0.0
    return np.flatnonzero(bins == reached), before
