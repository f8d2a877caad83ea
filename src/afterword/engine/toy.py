"""An exact toy language model: fast, deterministic, and wrong as soon as its KV is wrong.

A row of logits is a hash of all tokens before it, read from the cells that the KV instructions
left in a slot. So a scheduler that forks, trims or places a token wrongly changes the answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from afterword.core.draws import mix64
from afterword.core.protocols import EngineCard, InfillTokens, PrefixSharing
from afterword.engine.batching.blocks import BlockCopy, BlockTables
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.batching.runner import (
    Batch,
    DecodeError,
    Drop,
    Fork,
    KVInstruction,
    Restore,
    Save,
    Trim,
)
from afterword.engine.sampler import Sampler

_WORDS = (
    " the", " a", " of", " and", " to", "ing", "er", " th", "e ", ". ", ", ", "\n\n", " in",
    "on", "al", "st", " model", " says", "Once", " upon", " time", "é", "ü", "中", "文", "🙂",
    "👩‍👩‍👧", "e\u0301", "\u202e", "<b>",
)  # fmt: skip
_BROKEN = (b"\xe2\x82", b"\xac ", b"\xf0\x9f", b"\x98\x80", b"\xe4\xb8", b"\xff\xfe")
_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
)  # fmt: skip

_SCORE_BUDGET_BYTES = 32 * 1024
"""Small, so that scores are evicted as in a server that runs for days."""


class ToyTokenizer:
    """Tokens for all 256 bytes, words, broken characters and special tokens; longest match."""

    def __init__(self, *, adds_bos: bool = False, infill: bool = True) -> None:
        words = [word.encode() for word in _WORDS]
        self._first_special = 256 + len(words) + len(_BROKEN)
        self.pieces: Sequence[bytes] = (
            *(bytes([i]) for i in range(256)),
            *words,
            *_BROKEN,
            *(name.encode() for name in _SPECIAL),
        )
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._plain = {piece: i for piece, i in ids.items() if i < self._first_special}
        self._special = {name: ids[name.encode()] for name in _SPECIAL}
        self.special_ids = frozenset(self._special.values())
        self.end_ids = frozenset((self._special["<|endoftext|>"], self._special["<|im_end|>"]))
        self.bos_id = self._special["<|im_start|>"] if adds_bos else None
        self.document_start_id = self._special["<|im_start|>" if adds_bos else "<|endoftext|>"]
        self.roles = {"bos": self._special["<|im_start|>"], "eos": self._special["<|endoftext|>"]}
        self.chat_template: str | None = None
        self.space_after: frozenset[int] | None = None
        self.aliases: Mapping[int, int] = {}
        self.max_piece_bytes = max(map(len, self.pieces))
        self.infill: InfillTokens | None = None
        if infill:
            self.infill = InfillTokens(
                prefix_id=self._special["<|fim_prefix|>"],
                suffix_id=self._special["<|fim_suffix|>"],
                middle_id=self._special["<|fim_middle|>"],
                order="psm",
                end_ids=tuple(i for name, i in self._special.items() if name.startswith("<|fim_")),
            )

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> ToyTokenizer:  # noqa: ARG002 - the protocol
        """Returns itself, because tokenisation needs no other server."""
        return self

    def encode(
        self,
        text: str,
        *,
        parse_special: bool = True,
        continues: bool = False,  # noqa: ARG002 - it never adds a space
    ) -> list[int]:
        """Returns ids by longest match from the left; special names are parsed on request."""
        ids: list[int] = []
        raw = codecs.encode(text, "utf-8")
        tables = [self._plain]
        if parse_special:
            tables.append({name.encode(): i for name, i in self._special.items()})
        at = 0
        while at < len(raw):
            for size in range(min(self.max_piece_bytes, len(raw) - at), 0, -1):
                piece = raw[at : at + size]
                found = next((table[piece] for table in tables if piece in table), None)
                if found is not None:
                    ids.append(found)
                    at += size
                    break
        return ids


class _ToyBlocks:
    """The cells of slots in blocks, for a runner that knows what each slot should have."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.tables = BlockTables(blocks, block_tokens)
        self._cells = [[-1] * block_tokens for _ in range(blocks)]

    def copy(self, copied: BlockCopy | None) -> None:
        """Copy cells, and spoil those behind them."""
        if copied is not None:
            source, cells = self._cells[copied.source], self._cells[copied.destination]
            cells[:] = [*source[: copied.tokens], *[-1] * (len(cells) - copied.tokens)]

    def write(self, slot: int, position: int, token: int) -> None:
        """Put the token of a slot into its cell."""
        self.tables.grow(slot, position + 1)
        whole, rest = divmod(position, self.tables.block_tokens)
        self._cells[self.tables.table(slot)[whole]][rest] = token

    def read(self, slot: int, tokens: int) -> list[int]:
        """Returns the tokens of a slot as its blocks have them."""
        return [token for block in self.tables.table(slot) for token in self._cells[block]][:tokens]


class ToyRunner:
    """A ``ModelRunner`` whose memory is lists of tokens and whose rows are hashes of them.

    With ``blocks``, up to ``sequences`` slots run at once. ``before_decode`` is called with each
    batch, so that tests can inspect it, wait or raise.
    """

    least_shared_tokens = 1

    def __init__(  # noqa: PLR0913 - the properties of a runner, each by its name
        self,
        vocabulary: int,
        *,
        slots: int = 4,
        context_tokens: int = 256,
        max_batch_tokens: int = 64,
        end_ids: Sequence[int] = (),
        sharing: PrefixSharing = "cells",
        sequences: int | None = None,
        blocks: int = 0,
        block_tokens: int = 4,
        before_decode: Callable[[Batch], None] | None = None,
    ) -> None:
        self.sharing = sharing
        self.vocabulary = vocabulary
        self.sampler = Sampler(vocabulary)
        self.slots = slots
        self.sequences = slots if sequences is None else sequences
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._blocks = _ToyBlocks(blocks, block_tokens) if blocks else None
        self.context_tokens = context_tokens
        self.max_batch_tokens = max_batch_tokens
        self.max_rows = max_batch_tokens
        self.closed = False
        self._before_decode = before_decode
        self._cells: list[list[int]] = [[] for _ in range(slots)]
        self._hashes: list[list[int]] = [[] for _ in range(slots)]
        self._checkpoints: dict[int, tuple[list[int], list[int]]] = {}
        spread = np.arange(1, vocabulary + 1, dtype=np.uint64)
        self._spread = spread * np.uint64(0x9E3779B97F4A7C15)
        self._tilt = np.zeros(vocabulary, np.float32)
        self._tilt[list(end_ids)] = -2.0

    def apply(self, instructions: Sequence[KVInstruction]) -> None:
        """Copy and cut lists. Raises ``AssertionError`` if the kind of sharing forbids it."""
        for instruction in instructions:
            if not self._allows(instruction):
                raise AssertionError(f"cannot {instruction}")
            if self._blocks is not None:
                self._move_blocks(self._blocks, instruction)
            match instruction:
                case Fork(source, destination, tokens):
                    self._cells[destination] = self._cells[source][:tokens]
                    self._hashes[destination] = self._hashes[source][:tokens]
                case Trim(slot, tokens):
                    del self._cells[slot][tokens:]
                    del self._hashes[slot][tokens:]
                case Save(slot, number):
                    self._checkpoints[number] = (self._cells[slot][:], self._hashes[slot][:])
                case Restore(number, slot, _):
                    cells, hashes = self._checkpoints[number]
                    self._cells[slot], self._hashes[slot] = cells[:], hashes[:]
                case Drop(number):
                    self._checkpoints.pop(number, None)

    def _move_blocks(self, blocks: _ToyBlocks, instruction: KVInstruction) -> None:
        match instruction:
            case Fork(source, destination, tokens):
                blocks.copy(blocks.tables.fork(source, destination, tokens))
            case Trim(slot, tokens):
                blocks.copy(blocks.tables.trim(slot, tokens))
            case _:
                raise AssertionError(f"blocks cannot {instruction}")

    def _allows(self, instruction: KVInstruction) -> bool:
        whole = self.sharing != "cells"
        match instruction:
            case Fork(source, destination, tokens):
                has = len(self._cells[source])
                fits = has == tokens if whole else has >= tokens
                return fits and not self._cells[destination] and self.sharing != "none"
            case Trim(_, tokens):
                return not (whole and tokens)
            case Save(slot, number):
                return self.sharing != "none" and number not in self._checkpoints
            case Restore(number, slot, tokens):
                return not self._cells[slot] and len(self._checkpoints[number][0]) == tokens
            case Drop(_):
                return True

    def checkpoint_bytes(self, tokens: int) -> int:
        """Returns 100 bytes and one for each token."""
        return 100 + tokens

    def decode(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Append the batch's tokens to their slots. Returns the wanted rows."""
        if self._before_decode is not None:
            self._before_decode(batch)
        rows = []
        columns = (batch.tokens, batch.positions, batch.slots, batch.wanted)
        for token, position, slot, wanted in zip(*(c.tolist() for c in columns), strict=True):
            cells, hashes = self._cells[slot], self._hashes[slot]
            if position != len(cells) or position >= self.context_tokens:
                raise DecodeError(f"slot {slot} has {len(cells)} cells, not {position}")
            cells.append(token)
            if self._blocks is not None:
                self._blocks.write(slot, position, token)
                if wanted and self._blocks.read(slot, len(cells)) != cells:
                    raise AssertionError(f"blocks of slot {slot} have tokens of others")
            hashes.append(mix64((hashes[-1] if hashes else 1) ^ (token + 1)))
            if wanted:
                rows.append(self.row(hashes[-1]))
        return np.array(rows, np.float32).reshape(-1, self.vocabulary)

    def row(self, history: int) -> npt.NDArray[np.float32]:
        """Returns logits after a history: a few likely tokens, many unlikely ones, some ties."""
        mixed = (self._spread ^ np.uint64(history)) * np.uint64(0xBF58476D1CE4E5B9)
        unit = ((mixed >> np.uint64(40)) % np.uint64(4096)).astype(np.float32) / np.float32(4096)
        row: npt.NDArray[np.float32] = np.float32(14) * unit**4 - np.float32(6) + self._tilt
        return row

    def close(self) -> None:
        """Clear all cells."""
        self.closed = True
        for cells in (*self._cells, *self._hashes):
            cells.clear()


def toy_engine(  # noqa: PLR0913 - one argument for each property that a test may change
    *,
    slots: int = 4,
    context_tokens: int = 256,
    max_batch_tokens: int = 64,
    max_waiting: int = 256,
    adds_bos: bool = False,
    infill: bool = True,
    check: bool = True,
    before_decode: Callable[[Batch], None] | None = None,
) -> BatchingEngine:
    """Returns an engine of the toy model with the scheduler and thread of a real one."""
    tokenizer = ToyTokenizer(adds_bos=adds_bos, infill=infill)
    runner = ToyRunner(
        len(tokenizer.pieces),
        slots=slots,
        context_tokens=context_tokens,
        max_batch_tokens=max_batch_tokens,
        end_ids=sorted(tokenizer.end_ids),
        before_decode=before_decode,
    )
    card = EngineCard(
        context_tokens=context_tokens,
        fingerprint="fp_0000000000",
        batch_invariant=True,
        prefix_sharing="cells",
        details={"model": "toy", "slots": slots},
    )
    return BatchingEngine(
        runner,
        tokenizer,
        card,
        max_waiting=max_waiting,
        score_budget_bytes=_SCORE_BUDGET_BYTES,
        check=check,
    )
