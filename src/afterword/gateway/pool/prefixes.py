"""Which upstreams have computed which prefixes, as far as this server sent them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 32
_MOST_BLOCKS = 1 << 16
_MOST_KEYS = 1 << 12
"""Of a prompt. Beyond 128 Ki tokens, a shared prefix is not worth the time of the event loop."""


def block_keys(ids: Sequence[int], scope: str = "") -> list[int]:
    """Returns a key for each whole block of a prompt, up to a bound.

    It depends on the cache scope and on all tokens up to the block's end.
    """
    keys: list[int] = []
    key = hash(scope)
    end = min(len(ids), _MOST_KEYS * BLOCK_TOKENS)
    for start in range(0, end - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, tuple(ids[start : start + BLOCK_TOKENS])))
        keys.append(key)
    return keys


class PrefixMap:
    """Sets of upstreams, as bit masks, by block key. Evicts the least recently used block."""

    def __init__(self, most_blocks: int = _MOST_BLOCKS) -> None:
        self._most_blocks = most_blocks
        self._bits: OrderedDict[int, int] = OrderedDict()

    def shared_tokens(self, keys: Sequence[int], bit: int) -> int:
        """Returns how many tokens of a prompt an upstream has seen as a prefix of another."""
        for count, key in enumerate(keys):
            if not self._bits.get(key, 0) & bit:
                return count * BLOCK_TOKENS
        return len(keys) * BLOCK_TOKENS

    def remember(self, keys: Sequence[int], bit: int) -> None:
        """Note that a prompt went to an upstream."""
        # The first block serves most prompts, so it is evicted last.
        for key in reversed(keys):
            self._bits[key] = self._bits.get(key, 0) | bit
            self._bits.move_to_end(key)
        while len(self._bits) > self._most_blocks:
            self._bits.popitem(last=False)

    def forget(self, bit: int) -> None:
        """Remove an upstream from all blocks."""
        for key, bits in list(self._bits.items()):
            if bits & bit:
                self._bits[key] = bits & ~bit
