"""Blocks of KV memory: which blocks have the cells of each sequence, and how many share a block.

The scheduler counts with one object of this class, and a runner computes by another. Both see the
same instructions, so both agree on what is free.
"""

from __future__ import annotations

from collections import Counter

import msgspec


class BlockCopy(msgspec.Struct, frozen=True):
    """The first ``tokens`` cells of the block ``source`` belong into ``destination``, too."""

    source: int
    destination: int
    tokens: int


class NoBlocksError(Exception):
    """No block is free."""


class BlockTables:
    """Tables of blocks, each by its number. Tables with a common beginning share whole blocks.

    A table has the tokens of its sequence in order, ``block_tokens`` in a block. Invariant: a block
    that is not full belongs to one table, which may write behind its tokens.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._tables: dict[int, list[int]] = {}
        self._names = [0] * blocks
        # The block that was freed last is taken first: its memory is the likeliest to be warm.
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """How many blocks no table names."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Returns how many blocks so many tokens take."""
        return -(-tokens // self.block_tokens)

    def table(self, number: int) -> list[int]:
        """Returns the blocks of a table, in order; do not change the list."""
        return self._tables.get(number, [])

    def is_shared(self, block: int) -> bool:
        """Whether more than one table names a block."""
        return self._names[block] > 1

    def grow(self, number: int, tokens: int) -> bool:
        """Give a table the blocks that so many tokens take; returns whether it had too few.

        Raises ``NoBlocksError`` if too few blocks are free.
        """
        table = self._tables.setdefault(number, [])
        missing = self.blocks_for(tokens) - len(table)
        if missing <= 0:
            return False
        if missing > len(self._free):
            raise NoBlocksError(f"{missing} blocks are needed, {len(self._free)} are free")
        table.extend(self._take() for _ in range(missing))
        return True

    def fork(self, source: int, destination: int, tokens: int) -> BlockCopy | None:
        """Give an empty table the first ``tokens`` tokens of another one.

        Returns the copy of the last block if only a part of it is shared; else None. Raises
        ``NoBlocksError`` if that copy needs a block and none is free.
        """
        whole, rest = divmod(tokens, self.block_tokens)
        if rest and not self._free:
            raise NoBlocksError("a block is needed, none is free")
        shared = self._tables[source][:whole]
        for block in shared:
            self._names[block] += 1
        self._tables[destination] = shared
        if not rest:
            return None
        shared.append(self._take())
        return BlockCopy(self._tables[source][whole], shared[whole], rest)

    def trim(self, number: int, tokens: int) -> BlockCopy | None:
        """Keep the first ``tokens`` tokens of a table.

        Returns the copy of the last block if it is now a part of a block that others share; else
        None. Raises ``NoBlocksError`` if that copy needs a block and none is free.
        """
        table = self._tables.get(number, [])
        kept, rest = self.blocks_for(tokens), tokens % self.block_tokens
        while len(table) > kept:
            self._drop(table.pop())
        if not tokens:
            self._tables.pop(number, None)
            return None
        last = table[-1]
        if not rest or not self.is_shared(last):
            return None
        if not self._free:
            raise NoBlocksError("a block is needed, none is free")
        self._names[last] -= 1
        table[-1] = self._take()
        return BlockCopy(last, table[-1], rest)

    def _take(self) -> int:
        block = self._free.pop()
        self._names[block] = 1
        return block

    def _drop(self, block: int) -> None:
        self._names[block] -= 1
        if not self._names[block]:
            self._free.append(block)

    def check(self) -> None:
        """Raise ``AssertionError`` if an invariant does not hold."""
        named = Counter(block for table in self._tables.values() for block in table)
        counted = {block: count for block, count in enumerate(self._names) if count}
        if named != counted or sorted([*named, *self._free]) != list(range(self.blocks)):
            raise AssertionError("blocks are lost, or counted wrongly")
