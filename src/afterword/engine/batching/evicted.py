"""Remembers what was evicted, so that more prefixes than memory holds keep most of it.

If more prefixes take turns than fit, the least recently used one is always the next to be asked
for, and evicting it would keep none. So what comes back after it was evicted does not push others
out: it is the first to go again. Every eighth stays all the same, because it may have become
frequent.
"""

from __future__ import annotations

from afterword.engine.arrays import TokenIds

_STAYS = 8


class Evicted:
    """Digests of prefixes whose last block was evicted, up to ``most`` of them, the latest ones."""

    def __init__(self, block_tokens: int, most: int) -> None:
        self._block_tokens = block_tokens
        self._most = most
        self._digests: dict[int, None] = {}
        self._returns = 0

    def add(self, tokens: TokenIds, kept: int, scope: str) -> None:
        """Remember the whole blocks of ``tokens`` behind the first ``kept`` tokens."""
        size = self._block_tokens
        for end in range((kept // size + 1) * size, len(tokens) + 1, size):
            digest = _digest(tokens[:end], scope)
            self._digests.pop(digest, None)
            self._digests[digest] = None
        while len(self._digests) > self._most:
            del self._digests[next(iter(self._digests))]

    def gives_way(self, tokens: TokenIds, reused: int, scope: str) -> bool:
        """Whether a prompt of which ``reused`` tokens are in memory should be the first to go.

        It should if the block behind these was evicted lately; of eight such prompts, seven.
        """
        end = (reused // self._block_tokens + 1) * self._block_tokens
        if end > len(tokens) or _digest(tokens[:end], scope) not in self._digests:
            return False
        self._returns += 1
        return self._returns % _STAYS != 0


def _digest(tokens: TokenIds, scope: str) -> int:
    return hash((scope, tokens.tobytes()))
