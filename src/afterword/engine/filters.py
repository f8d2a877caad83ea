"""The filters that look for the few tokens which together have a share of all probability."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afterword.engine.arrays import Ids, Row

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
    """Returns a mask of the fewest highest weights whose sum reaches ``goal``; at least one.

    On a tie the first ones are taken.
    """
    descending = np.sort(weights)[::-1]
    cumulative = descending.cumsum(dtype=np.float64)
    count = min(int(np.searchsorted(cumulative, goal, side="left")) + 1, len(weights))
    threshold = descending[count - 1]
    marked: npt.NDArray[np.bool_] = weights > threshold
    missing = count - np.count_nonzero(marked)
    marked[np.flatnonzero(weights == threshold)[:missing]] = True
    return marked
