"""Which upstream has computed which beginnings of prompts, as far as we sent them there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 32
_MOST_BLOCKS = 1 << 16


def block_keys(ids: Sequence[int]) -> list[int]:
    """A key for each whole block of a prompt, which depends on all before it too."""
    keys: list[int] = []
    key = 0
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, tuple(ids[start : start + BLOCK_TOKENS])))
        keys.append(key)
    return keys


class PrefixMap:
    """Sets of upstreams, as bits, by block. The least recently used block is forgotten first."""

    def __init__(self, most_blocks: int = _MOST_BLOCKS) -> None:
        self._most_blocks = most_blocks
        self._bits: OrderedDict[int, int] = OrderedDict()

    def shared_tokens(self, keys: Sequence[int], bit: int) -> int:
        """How many tokens of a prompt an upstream has seen as the beginning of another."""
        for count, key in enumerate(keys):
            if not self._bits.get(key, 0) & bit:
                return count * BLOCK_TOKENS
        return len(keys) * BLOCK_TOKENS

    def remember(self, keys: Sequence[int], bit: int) -> None:
        """A prompt went to an upstream."""
        # The first block is the most useful and the last to be forgotten.
        for key in reversed(keys):
            self._bits[key] = self._bits.get(key, 0) | bit
            self._bits.move_to_end(key)
        while len(self._bits) > self._most_blocks:
            self._bits.popitem(last=False)

    def forget(self, bit: int) -> None:
        """An upstream lost what it had."""
        for key, bits in list(self._bits.items()):
            if bits & bit:
                self._bits[key] = bits & ~bit
