"""What the operator allows of a request; the defaults are the contract's."""

import msgspec

MOST_USER_CHARACTERS = 1024
"""Of ``user``, which is recorded with every request; not the operator's to change."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds of request fields, and what stands in where a request is silent.

    ``default_max_tokens`` None means "until the context is full". ``require_model`` False lets a
    request leave ``model`` out, which then means the first model served.
    """

    max_logprobs: int = 5
    max_stops: int = 4
    max_n: int = 128
    max_best_of: int = 20
    max_prompts: int = 2048
    max_body_bytes: int = 16 * 1024 * 1024
    default_max_tokens: int | None = None
    require_model: bool = True
