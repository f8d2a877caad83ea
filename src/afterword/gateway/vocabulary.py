"""The vocabulary of an upstream: pieces by the upstream's own ids; the upstream encodes text."""

from __future__ import annotations

import copy
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from afterword.core.protocols import InfillTokens
from afterword.core.wire import Vocabulary
from afterword.gateway.failures import StreamBroke

_ENDS = 8
"""Ids reserved for end tokens that the upstream has not declared."""
_MOST_OWN = 1 << 18
_LONGEST_TOKEN_BYTES = 24
_TOKEN_BYTES = 4
_MOST_CUT_BYTES = 256
"""Of characters that tokens cut. Longer text is not divided, because that takes long."""
_SLICE_TOKENS = 1 << 16
_FEW_TOKENS = 8
_GIVEN_UP = b"\xff"
"""The piece of tokens whose bytes an upstream never reports; U+FFFD in text."""


class Pieces(list[bytes]):
    """Bytes by id, and ids by bytes; if several ids have the same bytes, the first one is meant.

    Clients may name ids below ``len``; later ids are the gateway's own. Safe from any thread.
    """

    def __init__(self, named: Iterable[bytes]) -> None:
        super().__init__(named)
        self.named = super().__len__()
        self._ids: dict[bytes, int] = {}
        self._learns = threading.RLock()
        for i, piece in enumerate(self):
            self._ids.setdefault(piece, i)

    def __len__(self) -> int:
        return self.named

    @property
    def own(self) -> int:
        """The number of ids of the gateway's own."""
        return super().__len__() - self.named

    def add(self, piece: bytes) -> int:
        """Returns a new id of the gateway's own for ``piece``. ``id_of`` does not return it.

        Raises ``StreamBroke`` if an upstream has sent too many different pieces.
        """
        with self._learns:
            if self.own >= _MOST_OWN:
                raise StreamBroke("it sent more different tokens than any vocabulary has")
            self.append(piece)
            return super().__len__() - 1

    def id_of(self, piece: bytes) -> int:
        """Returns the id whose bytes are ``piece``, or a new id of the gateway's own."""
        known = self._ids.get(piece)
        if known is None:
            with self._learns:
                known = self._ids.get(piece)
                if known is None:
                    known = self._ids[piece] = self.add(piece)
        return known

    def spell(self, text: bytes) -> list[int]:
        """Returns ids with the joint bytes ``text``; new ones as long as there is room for them.

        Text that is short enough to be a token is one id, longer text is about as many as a
        tokenizer would make. Pieces are kept for ever, so half the room is left to names of
        tokens, and without room text is divided into known pieces.
        """
        known = self._ids.get(text)
        if known is not None:
            return [known]
        if len(text) > _LONGEST_TOKEN_BYTES:
            parts = range(0, len(text), _TOKEN_BYTES)
            return [i for at in parts for i in self.spell(text[at : at + _TOKEN_BYTES])]
        if self.own < _MOST_OWN // 2 or len(text) == 1:
            return [self.id_of(text)]
        half = len(text) // 2
        return self.spell(text[:half]) + self.spell(text[half:])

    def spelling(self, spelled: bytes, count: int) -> list[int]:
        """Returns ``count`` ids with the joint bytes ``spelled``, for tokens sent without ids."""
        found = self._split(spelled, count) if len(spelled) <= _MOST_CUT_BYTES else None
        if found is not None:
            return found
        return [self.id_of(spelled or _GIVEN_UP), *[self.id_of(b"")] * (count - 1)]

    def _split(self, spelled: bytes, count: int) -> list[int] | None:
        """Returns ``count`` known ids with these bytes, long ones first; None if there are none."""
        hopeless: set[tuple[int, int]] = set()

        def rest(start: int, left: int) -> list[int] | None:
            if left == 1:
                last = self._ids.get(spelled[start:])
                return None if last is None else [last]
            # No place is tried twice: without that, the tries would double with each token.
            if (start, left) not in hopeless:
                for end in range(len(spelled) - left + 1, start, -1):
                    first = self._ids.get(spelled[start:end])
                    others = None if first is None else rest(end, left - 1)
                    if first is not None and others is not None:
                        return [first, *others]
                hopeless.add((start, left))
            return None

        return rest(0, count) if spelled else None


class RemoteTokenizer:
    """A ``Tokenizer`` that asks an upstream. Safe from any thread.

    ``encode(text, parse_special)`` asks the upstream for ids. ``end_ids`` contain a few ids of
    the gateway's own, so that ``end`` can give one of them to an end token that the upstream has
    not declared.
    """

    def __init__(
        self,
        table: Vocabulary,
        *,
        chat_template: str | None,
        encode: Callable[[str, bool], Awaitable[Sequence[int]]],
    ) -> None:
        self.pieces = Pieces(table.pieces)
        self._named = self.pieces.named
        self._ends = [self.pieces.add(b"") for _ in range(_ENDS)]
        self._ended_by: dict[int, int] = {}
        self._learns = threading.Lock()
        self.aliases: dict[int, int] = {}
        self.declared_end_ids = frozenset(table.end_ids)
        self.end_ids = self.declared_end_ids.union(self._ends)
        self.special_ids = frozenset(table.special_ids)
        self.bos_id = table.bos_id
        self.document_start_id = table.document_start_id
        self.roles = table.roles
        self.infill: InfillTokens | None = table.infill
        after = table.space_after
        self.space_after = None if after is None else frozenset(after)
        self.chat_template = chat_template
        self.max_piece_bytes = max(map(len, table.pieces), default=1)
        self._ask = encode
        self._known: Mapping[tuple[str, bool], Sequence[int]] = {}

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> RemoteTokenizer:
        """See ``core.protocols.Tokenizer``."""
        known = {}
        for text, parse_special in texts:
            if (text, parse_special) not in known:
                known[text, parse_special] = await self._ask(text, parse_special)
        knowing = copy.copy(self)  # shallow: tables are shared
        knowing._known = known  # noqa: SLF001 - the same class
        return knowing

    def encode(
        self,
        text: str,
        *,
        parse_special: bool = True,
        continues: bool = False,  # noqa: ARG002 - no upstream has such an option
    ) -> list[int]:
        """Returns the ids of a text that ``prepare`` has asked for."""
        return list(self._known[text, parse_special])

    def check(self, ids: Sequence[int]) -> None:
        """Raises ``StreamBroke`` if an id is outside the upstream's vocabulary."""
        most = self._named
        if len(ids) > _FEW_TOKENS:
            # In slices: no other thread runs while one is looked at.
            starts = range(0, len(ids), _SLICE_TOKENS)
            parts = [ids[at : at + _SLICE_TOKENS] for at in starts]
            ids = min(map(min, parts)), max(map(max, parts))
        for token in ids:
            if not 0 <= token < most:
                raise StreamBroke("it sent a token that its vocabulary does not have")

    def end(self, token: int) -> int:
        """Returns an end id with the bytes of ``token``, which has ended a sequence upstream."""
        if token in self.declared_end_ids:
            return token
        with self._learns:
            known = self._ended_by.get(token)
            if known is None:
                # A model has few end tokens. If it has too many, some share the last id.
                known = self._ends[min(len(self._ended_by), _ENDS - 1)]
                self._ended_by[token] = known
                self.pieces[known] = self.pieces[token]
                self.aliases[known] = token
            return known


class TextTokenizer:
    """A ``Tokenizer`` for an upstream that has none: text passes through unchanged.

    An id below 256 is a byte of a prompt, whose ids are ``bytes``; 256 is an empty prompt. Later
    ids are pieces of text that the upstream sent. Clients can name none of them.
    """

    def __init__(self) -> None:
        self.pieces = Pieces(())
        for byte in range(256):
            self.pieces.id_of(bytes([byte]))
        self.document_start_id = self.pieces.id_of(b"")
        self.end_ids: frozenset[int] = frozenset()
        self.special_ids: frozenset[int] = frozenset()
        self.bos_id: int | None = None
        self.roles: Mapping[str, int] = {}
        self.chat_template: str | None = None
        self.infill: InfillTokens | None = None
        self.space_after: frozenset[int] | None = None
        self.aliases: Mapping[int, int] = {}
        self.max_piece_bytes = 1

    def encode(
        self,
        text: str,
        *,
        parse_special: bool = True,  # noqa: ARG002 - bytes have no special tokens
        continues: bool = False,  # noqa: ARG002 - no space is added
    ) -> bytes:
        """Returns the bytes of the text as ids."""
        return text.encode()

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> TextTokenizer:  # noqa: ARG002 - no upstream is asked
        """Returns the tokenizer itself."""
        return self

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of a prompt; "" for an empty prompt."""
        return ids.decode() if isinstance(ids, bytes) else ""
