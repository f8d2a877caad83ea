"""The vocabulary of an upstream: its tokens by its own ids, and encoding as a question to it."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from afterword.core.protocols import InfillTokens
from afterword.core.wire import Vocabulary
from afterword.gateway.failures import StreamBroke

_ENDS = 8
"""Ids kept for end tokens that are met before anybody said that they end."""
_MOST_OWN = 1 << 18
_GIVEN_UP = b"\xff"
"""What bytes are spelled as that an upstream never told: U+FFFD in text."""

Encode = Callable[[str, bool], Awaitable[Sequence[int]]]


class Pieces(list[bytes]):
    """Bytes by id. ``len`` is the vocabulary that clients may name; ids beyond are our own."""

    def __init__(self, named: Iterable[bytes]) -> None:
        super().__init__(named)
        self._named = super().__len__()

    def __len__(self) -> int:
        return self._named

    def add(self, piece: bytes) -> int:
        """An id of our own. Raises ``StreamBroke`` where an upstream makes us need too many."""
        own = super().__len__()
        if own - self._named >= _MOST_OWN:
            raise StreamBroke("it sent more different tokens than any vocabulary has")
        self.append(piece)
        return own


class RemoteTokenizer:
    """A ``Tokenizer`` that asks another server. Safe from any thread except ``id_of`` and ``end``.

    ``end_ids`` hold a few ids of our own, so that an end token that nobody declared can be
    given one of them when it is met.
    """

    def __init__(self, table: Vocabulary, *, chat_template: str | None, encode: Encode) -> None:
        self.pieces = Pieces(table.pieces)
        self._ends = [self.pieces.add(b"") for _ in range(_ENDS)]
        self._ended_by: dict[int, int] = {}
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
        # The first id of a spelling is the one that is meant.
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(table.pieces):
            self._ids.setdefault(piece, i)

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> RemoteTokenizer:
        """See ``core.protocols.Tokenizer``."""
        known = {}
        for text, parse_special in texts:
            if (text, parse_special) not in known:
                known[text, parse_special] = await self._ask(text, parse_special)
        knowing = copy.copy(self)  # tables are shared
        knowing._known = known  # noqa: SLF001 - our own kind
        return knowing

    def encode(
        self,
        text: str,
        *,
        parse_special: bool = True,
        continues: bool = False,  # noqa: ARG002 - no server can be asked for it
    ) -> list[int]:
        """The ids of a text that was prepared."""
        return list(self._known[text, parse_special])

    def id_of(self, piece: bytes) -> int:
        """The id that is spelled so, or one of our own."""
        known = self._ids.get(piece)
        if known is None:
            known = self._ids[piece] = self.pieces.add(piece)
        return known

    def end(self, token: int) -> int:
        """An id that ends a sequence and is spelled as ``token``, with which a server ended it."""
        if token in self.declared_end_ids:
            return token
        known = self._ended_by.get(token)
        if known is None:
            # A model has few end tokens; if one has more, the last id stands for several.
            known = self._ends[min(len(self._ended_by), _ENDS - 1)]
            self._ended_by[token] = known
            self.pieces[known] = self.pieces[token]
        return known

    def spelling(self, spelled: bytes, count: int) -> list[int]:
        """``count`` ids that are spelled so together, for tokens that an upstream did not name."""
        found = self._split(spelled, count)
        if found is not None:
            return found
        return [self.id_of(spelled or _GIVEN_UP), *[self.id_of(b"")] * (count - 1)]

    def _split(self, spelled: bytes, count: int) -> list[int] | None:
        if count == 1 or not spelled:
            known = self._ids.get(spelled) if spelled and count == 1 else None
            return None if known is None else [known]
        for size in range(len(spelled) - count + 1, 0, -1):
            first = self._ids.get(spelled[:size])
            rest = None if first is None else self._split(spelled[size:], count - 1)
            if first is not None and rest is not None:
                return [first, *rest]
        return None


class TextTokenizer:
    """What stands in where an upstream has no tokenizer: text goes through as it is.

    An id below 256 is a byte of text, 256 an empty prompt; others are pieces of text that the
    upstream sent. Clients can name none of them.
    """

    _START = 256

    def __init__(self) -> None:
        self.pieces = Pieces(())
        for byte in range(256):
            self.pieces.add(bytes([byte]))
        self.document_start_id = self.pieces.add(b"")
        self._ids: dict[bytes, int] = {piece: i for i, piece in enumerate(list(self.pieces))}
        self.end_ids: frozenset[int] = frozenset()
        self.special_ids: frozenset[int] = frozenset()
        self.bos_id: int | None = None
        self.roles: Mapping[str, int] = {}
        self.chat_template: str | None = None
        self.infill: InfillTokens | None = None
        self.space_after: frozenset[int] | None = None
        self.max_piece_bytes = 1

    def encode(
        self,
        text: str,
        *,
        parse_special: bool = True,  # noqa: ARG002 - one meaning
        continues: bool = False,  # noqa: ARG002 - nor does it add a space
    ) -> list[int]:
        """Bytes."""
        return list(text.encode())

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> TextTokenizer:  # noqa: ARG002 - nobody is asked
        """The tokenizer itself."""
        return self

    def text(self, ids: Sequence[int]) -> str:
        """The text of a prompt; empty where it has none."""
        return b"".join(map(self.pieces.__getitem__, ids)).decode()

    def id_of(self, piece: bytes) -> int:
        """An id that is spelled so."""
        known = self._ids.get(piece)
        if known is None:
            known = self._ids[piece] = self.pieces.add(piece)
        return known
