"""The seams: what the layers expect of an engine, its tokenizer and a generation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec

from afterword.core.job import Event, Job


class InfillTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The fill-in-the-middle tokens of a vocabulary and the order its family was trained on.

    ``psm``: prefix id, prefix, suffix id, suffix, middle id. ``spm``: suffix id, suffix,
    prefix id, prefix, middle id. Some families do without the middle id. ``end_ids`` are tokens
    that end a middle besides the vocabulary's own end tokens (padding, file separators).
    """

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    order: Literal["psm", "spm"]
    end_ids: tuple[int, ...] = ()


class Tokenizer(Protocol):
    """A vocabulary: text to ids and ids to bytes. All methods are safe from any thread."""

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every token by id; special tokens are spelled by their name."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: those that no plain text gives."""

    @property
    def bos_id(self) -> int | None:
        """The id put before text, if the model wants one put there (R2), else None."""

    @property
    def document_start_id(self) -> int:
        """What an empty prompt means (R2)."""

    @property
    def roles(self) -> Mapping[str, int]:
        """The vocabulary's ids for ``bos``, ``eos`` and ``pad``, as far as it has them."""

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, for those who format chats themselves."""

    @property
    def infill(self) -> InfillTokens | None:
        """The fill-in-the-middle tokens, or None where the vocabulary has none."""

    @property
    def space_after(self) -> frozenset[int] | None:
        """Where the vocabulary puts a space in front of text that has none (L8).

        None: nowhere. Otherwise at the start of a text and after these tokens.
        """

    @property
    def max_piece_bytes(self) -> int:
        """The most bytes of text that one id can stand for."""

    def encode(
        self, text: str, *, parse_special: bool = True, continues: bool = False
    ) -> list[int]:
        """Tokenise text, without any BOS; names of special tokens are parsed on request.

        Text that ``continues`` other text gets no space in front, where the tokenizer can do so.
        May take milliseconds for long text and releases the GIL meanwhile. Raises
        ``UnspellableText``, and ``EngineUnavailable`` where the vocabulary is gone.
        """

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> Tokenizer:
        """Returns a tokenizer that can ``encode`` these texts, each with its ``parse_special``.

        It is the tokenizer itself if ``encode`` needs no answer of anybody else. Raises
        ``ApiError`` if such an answer cannot be had.
        """


PrefixSharing: TypeAlias = Literal["cells", "checkpoints", "none"]
"""How what was computed of one prompt serves another that begins with the same tokens.

``cells``: any number of tokens. ``checkpoints``: where a whole state was kept, since recurrent
state cannot be cut. ``none``: not at all, because it was found to change answers.
"""


Feature: TypeAlias = Literal["token_ids"]
"""What an engine may be unable to take: prompts, biases and tokenising by token ids."""


class EngineCard(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself.

    ``context_tokens`` is the most that prompt and completion may be together. ``fingerprint``
    is ``fp_`` and ten hex digits and changes with anything that may change an answer (D3).
    ``batch_invariant``: answers were found not to depend on what else is computed (D1).
    ``prefix_sharing`` is None if it is not known. ``unsupported`` gives the reason for each feature
    that the engine cannot honour; clients are told.
    ``details`` is shown to people as it is: file name, format, slots, threads.
    """

    context_tokens: int
    fingerprint: str
    batch_invariant: bool
    prefix_sharing: PrefixSharing | None = None
    unsupported: Mapping[Feature, str] = {}
    details: Mapping[str, str | int | bool] = {}


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters of an engine at one moment; counters only grow.

    ``batch_sizes[i]`` counts steps that computed at most 2**i sequences together and more than
    half as many, its last entry those of more; ``batched_sequences`` sums them. Both are empty
    if the engine does not know its batches.
    """

    running_sequences: int = 0
    waiting_sequences: int = 0
    slots: int = 0
    active_slots: int = 0
    resident_slots: int = 0
    cells_used: int = 0
    cells_total: int = 0
    score_bytes: int = 0
    checkpoint_bytes: int = 0
    longest_wait_s: float = 0.0
    steps: int = 0
    batch_sizes: tuple[int, ...] = ()
    batched_sequences: int = 0
    decoded_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    started_requests: int = 0
    waited_s: float = 0.0
    engine_cpu_s: float = 0.0


class Generation(AbstractAsyncContextManager["Generation", None], Protocol):
    """The running jobs of one request: an async iterator of lists of events.

    An iteration gives all that happened since the last one, merged: a reader that lags finds
    one list, not a queue. It ends after the last ``Ended`` of the last job, and raises
    ``EngineFailed`` where a computation failed. Entering the context waits until whoever
    computes has taken the jobs, and raises ``ApiError`` where nobody does (the status line is
    not sent yet). Leaving it aborts what still runs; its slots are free at the next step.
    """

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...

    async def __anext__(self) -> list[Event]:
        """All that happened since the last call; waits until there is something."""

    def abort(self, job: int, seq: int) -> None:
        """Stop one sibling at the next step; it sends no ``Ended``. Idempotent."""


class Engine(Protocol):
    """Something that makes tokens."""

    @property
    def card(self) -> EngineCard:
        """What the engine says of itself; fixed for its life."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of its model."""

    def open(self, jobs: Sequence[Job]) -> Generation:
        """Admit the jobs of one request, all or none; nothing is computed before admission.

        Events name a job by its index here. Raises ``EngineOverloaded`` where the waiting line
        is full, ``EngineUnavailable`` where the engine is dead or closing, ``InvalidRequest``
        where a job asks for what the engine cannot give.
        """

    def healthy(self) -> bool:
        """Whether the engine can still compute."""

    def stats(self) -> EngineStats:
        """Gauges and counters at this moment."""

    async def aclose(self) -> None:
        """Abort what runs, free everything. Idempotent."""
