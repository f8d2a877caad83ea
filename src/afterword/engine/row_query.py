"""What is asked of a row of logits, and what was found."""

from __future__ import annotations

import msgspec
import numpy as np

from afterword.core.job import NO_TOKEN, SamplingParams
from afterword.engine.arrays import Ids, LogProbs


class RowError(ArithmeticError):
    """No token can be sampled from a row of logits."""


class NothingToDrawError(RowError):
    """Bias and bans leave no token."""


class GrammarError(RowError):
    """A sequence cannot be continued within its grammar, or within the bounds of its cost."""


class NoNumbersError(RowError):
    """The row has NaN or plus infinity, or minus infinity for every token."""


class RowQuery(msgspec.Struct, frozen=True, gc=False):
    """What is asked of row number ``row`` of a step.

    With ``params`` a token is drawn, by the numbers ``uniform`` and ``second`` in [0, 1): from
    the row, or from row number ``changed`` of the sampler's changed rows. Otherwise ``token`` is
    given. ``top`` asks for the log-probability of the token, and of that many of the likeliest
    tokens; None asks for no score. ``ranked`` asks for the token's rank, too.
    """

    row: int
    params: SamplingParams | None = None
    uniform: float = 0.0
    second: float = 0.0
    changed: int | None = None
    token: int = NO_TOKEN
    top: int | None = None
    ranked: bool = False


class RowResult(msgspec.Struct, frozen=True):
    """What was found: the ``token``, and its score if it is asked for; or the ``error``.

    Token t of the row has the log-probability ``row[t] - normaliser``. ``top_ids`` [k] are the
    likeliest tokens, likeliest first, on a tie the lowest id first; k is smaller than asked for if
    the vocabulary is. ``rank`` counts the tokens that are at least as likely as the token.
    """

    token: int = NO_TOKEN
    normaliser: float = 0.0
    logprob: float = 0.0
    top_ids: Ids = np.empty(0, np.int64)
    top_logprobs: LogProbs = np.empty(0, np.float64)
    rank: int = 0
    error: RowError | None = None
