"""The operator's limits on a request, with their defaults."""

import msgspec

MOST_USER_CHARACTERS = 1024
"""The longest ``user``, which the ledger records. Operators cannot change it."""
MOST_SCORED_IDS = 128
"""The most ``logprob_token_ids`` of a request."""
MOST_STOP_IDS = 128
"""The most ``stop_token_ids`` of a request."""
MOST_BREAKERS, MOST_BREAKER_CHARACTERS = 32, 40
"""The most ``dry_sequence_breakers``, and the longest of them."""
MOST_TAIL_TOKENS = 20
"""The most tokens of a breaker behind the token that it begins in."""
MOST_TOKENS = 1 << 44
"""The most tokens of a record: more than the largest request on the largest context can take.

2^19 such records still add up.
"""
MOST_KEY_NAME_CHARACTERS = 200
"""The longest name of a key, or of a model that it may use."""
MOST_KEY_MODELS = 1000
"""The most models that a key names."""
MOST_KEY_LIMIT = 2**53 - 1
"""The largest rate or budget of a key."""
MOST_GRAMMAR_BYTES = 64 * 1024
"""The longest schema, regular expression or grammar of a request."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds of request fields, and what holds if a request leaves a field out.

    ``max_choices`` bounds prompts times max(n, best_of), ``max_answer_mib`` the estimated size of
    an answer (R7). ``default_max_tokens`` None means "until the context is full". If
    ``require_model`` is False, a request without ``model`` means the first served model. A search
    for a middle computes at most ``infill_tokens`` and takes at most ``infill_s`` seconds for each
    request (F3).
    """

    max_logprobs: int = 20
    max_stops: int = 16
    max_n: int = 128
    max_best_of: int = 20
    max_prompts: int = 2048
    max_choices: int = 2048
    max_answer_mib: int = 512
    max_body_bytes: int = 16 * 1024 * 1024
    default_max_tokens: int | None = None
    require_model: bool = True
    infill_tokens: int = 2048
    infill_s: int = 60
