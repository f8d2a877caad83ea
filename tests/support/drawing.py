"""A token of one row, by the calls that a step makes."""

from __future__ import annotations

import numpy as np

from afterword.core.job import SamplingParams
from afterword.engine.arrays import Ids, Row
from afterword.engine.changes import Bias, Mask
from afterword.engine.history import History
from afterword.engine.row_query import RowQuery
from afterword.engine.sampler import Sampler


def draw_token(
    sampler: Sampler,
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
    """Returns the token that ``params`` and ``uniform`` choose. Raises ``RowError``."""
    changed = None
    if any(given is not None for given in (bias, history, allowed, mask, banned)):
        changed = sampler.change(
            row, bias=bias, history=history, allowed=allowed, mask=mask, banned=banned
        )
    query = RowQuery(0, params, uniform, second, changed)
    (result,) = sampler.answer(row[np.newaxis], [query])
    if result.error is not None:
        raise result.error
    return result.token
