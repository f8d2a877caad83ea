"""Fill in the middle: lays out prefix and suffix as the model's family expects (F1, F2)."""

from __future__ import annotations

from collections.abc import Sequence

from afterword.core.errors import InvalidRequest
from afterword.core.protocols import InfillTokens, Tokenizer

INFILL_TOKENS = 4
"""The most tokens that ``lay_out`` adds to prefix and suffix."""


def infill_tokens(tokenizer: Tokenizer) -> InfillTokens:
    """Returns the fill-in-the-middle tokens. Raises ``InvalidRequest`` if there are none (F3)."""
    if tokenizer.infill is None:
        raise InvalidRequest(
            "This model has no fill-in-the-middle tokens and cannot honour 'suffix'.",
            param="suffix",
        )
    return tokenizer.infill


def lay_out(
    tokens: InfillTokens, bos_id: int | None, prefix: Sequence[int], suffix: Sequence[int]
) -> tuple[int, ...]:
    """Returns the ids of a prompt that asks for the text between ``prefix`` and ``suffix``."""
    start = () if bos_id is None else (bos_id,)
    middle = () if tokens.middle_id is None else (tokens.middle_id,)
    before = (tokens.prefix_id, *prefix)
    after = (tokens.suffix_id, *suffix)
    ordered = (*before, *after) if tokens.order == "psm" else (*after, *before)
    return (*start, *ordered, *middle)
