"""Limits the prompt tokens of a step, so that running streams do not wait for long."""

_LEAST_TOKENS = 16
"""The smallest chunk: a smaller one takes about as long, and prompts would hardly advance."""
_SHARE_OF_NEWS = 0.5
"""Weight of the latest measurement in the moving average."""
_CALM_GAPS = 5
"""A step may take this many times the target if no stream waits; new requests wait for it."""


class ChunkBudget:
    """Adapts the prefill chunk to a target for the gap between two tokens of a running stream.

    The seconds per prefilled token are a moving average over steps with prefill. The time of rows
    that decode is subtracted from the target first. If not ``timed``, the budget does not depend
    on measured times.
    """

    def __init__(self, *, most_tokens: int, target_gap_s: float, timed: bool = True) -> None:
        self._timed = timed
        self._most_tokens = most_tokens
        self._target_gap_s = target_gap_s
        self._prefill_s_per_token = 0.0
        self._decode_s = 0.0

    def tokens(self, *, decoding: bool) -> int:
        """Returns the tokens that the next step may prefill; more if no stream is ``decoding``."""
        if not self._timed or not self._prefill_s_per_token:
            return min(4 * _LEAST_TOKENS, self._most_tokens) if decoding else self._most_tokens
        spare_s = self._target_gap_s * _CALM_GAPS
        if decoding:
            spare_s = self._target_gap_s - self._decode_s
        tokens = int(spare_s / self._prefill_s_per_token)
        return max(_LEAST_TOKENS, min(tokens, self._most_tokens))

    def observe(self, *, decoded_rows: int, prefilled_tokens: int, took_s: float) -> None:
        """Learn from a step that took ``took_s`` seconds."""
        if not prefilled_tokens:
            self._decode_s = took_s
            return
        rest_s = max(took_s - (self._decode_s if decoded_rows else 0.0), took_s / 2)
        if prefilled_tokens < _LEAST_TOKENS:
            return  # reading the weights dominates: the time says little about a chunk
        seconds = rest_s / prefilled_tokens
        if not self._prefill_s_per_token:
            self._prefill_s_per_token = seconds
        else:
            self._prefill_s_per_token += _SHARE_OF_NEWS * (seconds - self._prefill_s_per_token)
