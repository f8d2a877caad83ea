"""The seams: what the layers expect of an engine, its tokenizer and a generation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import msgspec

from afterword.core.job import Constraint, Event, Job, OutputGrammar


class InfillTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The fill-in-the-middle tokens of a vocabulary and the order its family was trained on.

    ``psm``: prefix id, prefix, suffix id, suffix, middle id. ``spm``: suffix id, suffix,
    prefix id, prefix, middle id. Some families have no middle id. ``end_ids`` end a middle, as the
    vocabulary's end tokens do (padding, file separators). ``repository_id`` begins the name of a
    repository, and ``file_id`` the name of a file, in families that were trained on repositories.
    """

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    order: Literal["psm", "spm"]
    end_ids: tuple[int, ...] = ()
    repository_id: int | None = None
    file_id: int | None = None


class Tokenizer(Protocol):
    """A vocabulary: text to ids and ids to bytes. All methods are safe from any thread."""

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every token, by id. Those of a special token are its name."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The control tokens. Plain text never becomes one."""

    @property
    def bos_id(self) -> int | None:
        """The id that the model wants before text (R2), or None."""

    @property
    def document_start_id(self) -> int:
        """The id that an empty prompt means (R2)."""

    @property
    def roles(self) -> Mapping[str, int]:
        """The vocabulary's ids for ``bos``, ``eos`` and ``pad``, as far as it has them."""

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, for clients that format chats themselves."""

    @property
    def infill(self) -> InfillTokens | None:
        """The fill-in-the-middle tokens, or None if the vocabulary has none."""

    @property
    def space_after(self) -> frozenset[int] | None:
        """Where the vocabulary puts a space before text that has none (L8).

        None means nowhere. Otherwise it is at the start of a text and after these tokens.
        """

    @property
    def aliases(self) -> Mapping[int, int]:
        """Ids of generated tokens that stand for another id in answers. It may grow."""

    @property
    def max_piece_bytes(self) -> int:
        """The largest number of bytes of text that one id can stand for."""

    def encode(
        self, text: str, *, parse_special: bool = True, continues: bool = False
    ) -> Sequence[int]:
        """Returns the ids of a text, without a BOS. ``parse_special`` parses special tokens' names.

        Text that ``continues`` other text gets no space in front, if the tokenizer can do so.
        Long text may take milliseconds; the GIL is released meanwhile. Raises
        ``UnspellableText``, and ``EngineUnavailable`` if the vocabulary is gone.
        """

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> Tokenizer:
        """Returns a tokenizer that can ``encode`` these texts, each with its ``parse_special``.

        A tokenizer that needs nothing from elsewhere returns itself. Others raise ``ApiError`` if
        they cannot get what they need.
        """


PrefixSharing: TypeAlias = Literal["cells", "checkpoints", "none"]
"""How a prompt reuses what was computed for another prompt with the same first tokens.

``cells``: any number of tokens. ``checkpoints``: up to a point where the whole state was kept,
because recurrent state cannot be cut. ``none``: not at all, because reuse was found to change
answers.
"""


Feature: TypeAlias = Literal["token_ids", "cache_salt", "returned_ids"]
"""What an engine may be unable to take.

``token_ids``: in prompts, biases and tokenising. ``cache_salt``: to keep prefixes apart by scope.
``returned_ids``: to say which tokens it generated.
"""


class EngineCard(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's description.

    ``context_tokens`` is the most that prompt and completion may be together. ``fingerprint``
    is ``fp_`` and ten hex digits, and changes with anything that may change an answer (D3).
    ``batch_invariant``: a check found that answers do not depend on the rest of the batch (D1).
    ``prefix_sharing`` is None if it is unknown. ``unsupported`` has the reason for each feature
    that the engine cannot honour; clients see it. ``details`` are shown to people unchanged: file
    name, format, slots, threads. ``draws``: it draws tokens itself, not a server behind it.
    """

    context_tokens: int
    fingerprint: str
    batch_invariant: bool
    prefix_sharing: PrefixSharing | None = None
    unsupported: Mapping[Feature, str] = {}
    details: Mapping[str, str | int | bool] = {}
    draws: bool = True


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters of an engine at one moment. Counters only grow.

    ``batch_sizes[i]`` counts the steps with at most 2**i and more than 2**(i - 1) sequences; its
    last entry counts all larger steps. ``batched_sequences`` sums the sequences of all steps. They
    are empty and 0 if the engine does not know its batches.
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
    preemptions: int = 0
    engine_cpu_s: float = 0.0


class Generation(AbstractAsyncContextManager["Generation", None], Protocol):
    """The running jobs of one request: an async iterator of lists of events.

    An iteration gives all events since the last one, merged: a reader that lags finds one list,
    not a queue. It ends after the last ``Ended`` of the last job, and raises ``EngineFailed`` if a
    computation failed. Entering the context waits until the jobs are taken, and raises
    ``ApiError`` if they are not (the status line is not sent yet). Leaving the context aborts what
    still runs; its slots are free at the next step.
    """

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...

    async def __anext__(self) -> list[Event]:
        """Returns all events since the last call. Waits for the first."""

    def abort(self, job: int, seq: int) -> None:
        """Stop one sibling at the next step. It sends no ``Ended``. Idempotent."""

    def shorten(self, shortcut: Callable[[list[Event]], bool] | None) -> None:
        """Offer events to a function while the reader waits for the next ones.

        It returns whether it took them. Otherwise an iteration gives them.
        """


class Engine(Protocol):
    """Makes tokens for jobs."""

    @property
    def card(self) -> EngineCard:
        """The engine's description. It does not change."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the engine's model."""

    def open(
        self, jobs: Sequence[Job], *, later: Sequence[Job] = (), admitted: bool = False
    ) -> Generation:
        """Admit the jobs of one request, all or none. Nothing is computed before admission.

        Events name a job by its index in ``jobs``. ``later`` are jobs that the request will open
        behind these: what can be refused of them is refused now. ``admitted``: the jobs are such
        later ones, and a full line does not refuse them. Raises ``EngineOverloaded`` if the waiting
        line is full, ``EngineUnavailable`` if the engine is dead or closing, and ``InvalidRequest``
        if a job asks for what the engine cannot give.
        """

    def constraint(self, grammar: OutputGrammar) -> Constraint:
        """Compile a grammar for jobs of this engine. Safe from any thread.

        May take a second for the first grammar. Raises ``UnusableGrammar`` if the engine cannot
        keep to it.
        """

    def healthy(self) -> bool:
        """Whether the engine can still compute."""

    def stats(self) -> EngineStats:
        """Gauges and counters at this moment."""

    async def aclose(self) -> None:
        """Abort what runs and free everything. Idempotent."""
