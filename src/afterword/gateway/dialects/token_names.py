"""Names of tokens in log-probabilities: ids, as ``return_tokens_as_token_ids`` writes them."""

from __future__ import annotations

_PREFIX = "token_id:"
_MOST_DIGITS = 16


def numbered(name: str) -> int | None:
    """Returns the id in ``token_id:123``; None for other names."""
    digits = name.removeprefix(_PREFIX)
    if digits == name or not digits.isdecimal():
        return None
    return int(digits[:_MOST_DIGITS])
