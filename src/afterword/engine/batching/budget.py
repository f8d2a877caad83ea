"""How many tokens of prompts a step may compute, so that running streams do not wait for long."""

_LEAST_TOKENS = 16
"""Below this a step costs about the same, and prompts would never get through."""
_MOST_SHARE = 0.5
"""How much of what was measured last counts in the average."""
_CALM_GAPS = 5
"""A step that keeps no stream waiting may take so many times the target; newcomers wait for it."""


class ChunkBudget:
    """Adapts the prefill chunk to a target for the gap between two tokens of a running stream.

    ``seconds_per_token`` is a moving average over steps that prefilled; the time of rows that
    decode is taken off the target first. What is not ``timed`` is the same at any speed.
    """

    def __init__(self, *, most_tokens: int, target_gap_s: float, timed: bool = True) -> None:
        self._timed = timed
        self._most_tokens = most_tokens
        self._target_gap_s = target_gap_s
        self._prefill_s_per_token = 0.0
        self._decode_s = 0.0

    def tokens(self, *, decoding: bool) -> int:
        """The budget of the next step; a larger one where nobody waits for a token."""
        if not self._timed or not self._prefill_s_per_token:
            return min(4 * _LEAST_TOKENS, self._most_tokens) if decoding else self._most_tokens
        spare_s = self._target_gap_s * _CALM_GAPS
        if decoding:
            spare_s = self._target_gap_s - self._decode_s
        tokens = int(spare_s / self._prefill_s_per_token)
        return max(_LEAST_TOKENS, min(tokens, self._most_tokens))

    def observe(self, *, decoded_rows: int, prefilled_tokens: int, took_s: float) -> None:
        """Learn from a step."""
        if not prefilled_tokens:
            self._decode_s = took_s
            return
        rest_s = max(took_s - (self._decode_s if decoded_rows else 0.0), took_s / 2)
        if prefilled_tokens < _LEAST_TOKENS:
            return  # weights are read for few tokens: says nothing of a chunk's price
        seconds = rest_s / prefilled_tokens
        if not self._prefill_s_per_token:
            self._prefill_s_per_token = seconds
        else:
            self._prefill_s_per_token += _MOST_SHARE * (seconds - self._prefill_s_per_token)
