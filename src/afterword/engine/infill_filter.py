"""The last filter of an infill: which candidates are sure enough. See ``core.job.InfillFilter``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from afterword.core.job import InfillFilter
from afterword.engine.arrays import Ids

Weights = npt.NDArray[np.float64]

_END_FAVOUR = 3
"""End tokens win if this times their probability and the number of candidates outweighs text."""
_LEAST_PROBABILITY = 0.2


def sure_enough(ids: Ids, weights: Weights, infill: InfillFilter) -> Ids:
    """Returns the candidates that may be drawn, ascending; none if the text should end.

    ``ids`` [n] are ascending, ``weights`` [n] proportional to their probabilities.
    """
    probabilities = weights / weights.sum()
    ends = np.array([int(token) in infill.end_ids for token in ids])
    of_ends = float(probabilities[ends].sum())
    if _END_FAVOUR * of_ends * len(ids) > 1 - of_ends:
        kept: Ids = ids[ends]
        return kept
    order = np.lexsort((ids, -probabilities))
    # End tokens write nothing, so they begin nothing.
    pieces = [
        b"" if token in infill.end_ids else infill.pieces[token] for token in ids[order].tolist()
    ]
    merged = _merged(pieces, probabilities[order])
    kept = np.flatnonzero((merged >= _LEAST_PROBABILITY) | ends[order])
    texts = int(np.count_nonzero(~ends[order][kept]))
    if not texts:
        return ids[:0]
    shares = merged[kept] / merged[kept].sum()
    sure = kept[(shares >= 1 / (texts + 1)) | ends[order][kept]]
    return np.sort(ids[order[sure]])


def _merged(pieces: list[bytes], probabilities: Weights) -> Weights:
    """Returns the probabilities after merging tokens of which one begins the other.

    The likelier one gets both probabilities, the other one 0. ``pieces`` are likeliest first.
    """
    merged = probabilities.copy()
    gone = np.zeros(len(pieces), bool)
    for i, piece in enumerate(pieces):
        for j, other in enumerate(pieces):
            if gone[i]:
                break
            if i == j or gone[j] or not piece or not other.startswith(piece):
                continue
            into, out = (j, i) if merged[j] > merged[i] else (i, j)
            merged[into] += merged[out]
            merged[out] = 0
            gone[out] = True
    return merged
