"""The vocabulary of a loaded model as a ``Tokenizer``; its tables are made once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from afterword.core.errors import UnspellableText
from afterword.core.protocols import InfillTokens
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.ends import ends_of

_DOCUMENT_START = b"<|endoftext|>"
_LETTERS = ("a", "e", "1", ".")
_REPOSITORY = (b"<repo_name>", b"<reponame>")
_FILE = (b"<file_sep>", b"<filename>")
"""StarCoder's names, where the library finds no token by its role."""
_SUFFIX_FIRST = b"[SUFFIX]"
"""Models with this token were trained on suffix, then prefix, with no token before the middle."""


class LlamaTokenizer:
    """Converts text to ids and back. Safe from any thread while the model is open."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        tokens = model.tokens()
        self.pieces: Sequence[bytes] = tokens.pieces
        self._ends = ends_of(model, tokens)
        self.special_ids = tokens.control_ids - self._ends.text_ids
        self.end_ids = self._ends.end_ids
        self.max_piece_bytes = max(map(len, self.pieces))
        named = {role: model.named(role) for role in ("bos", "eos", "pad")}
        self.roles = {role: token for role, token in named.items() if token is not None}
        # The unknown token stands in the middle of words, so no space is added after it.
        unknown = int(model.metadata("tokenizer.ggml.unknown_token_id") or -1)
        cuts = (tokens.control_ids | tokens.user_ids) - {unknown}
        self.space_after = cuts if self._adds_space() else None
        self.aliases: Mapping[int, int] = {}
        self.chat_template = model.metadata("tokenizer.chat_template")
        bos = named["bos"]
        self.bos_id = bos if model.adds_bos else None
        starts = (self.bos_id, self._special(_DOCUMENT_START), bos, named["eos"], 0)
        self.document_start_id = next(i for i in starts if i is not None)
        self.infill = self._infill()

    async def prepare(self, texts: Iterable[tuple[str, bool]]) -> LlamaTokenizer:  # noqa: ARG002 - the protocol
        """Returns itself, because tokenisation needs no other server."""
        return self

    def encode(
        self, text: str, *, parse_special: bool = True, continues: bool = False
    ) -> list[int]:
        """See ``core.protocols.Tokenizer``."""
        return self._model.encode(text.encode(), parse_special=parse_special, continues=continues)

    def _adds_space(self) -> bool:
        """Whether text gets a space in front. Found by encoding letters: no key tells it."""
        for letter in _LETTERS:
            try:
                first = self.encode(letter, parse_special=False)[:1]
            except UnspellableText:
                continue
            if first:
                return self.pieces[first[0]][:1] == b" "
        return False

    def _special(self, name: bytes) -> int | None:
        return next((i for i in sorted(self.special_ids) if self.pieces[i] == name), None)

    def _infill(self) -> InfillTokens | None:
        """Returns the infill tokens (F2), declared by the file or known by name; None without."""
        named = self._model.named
        prefix, suffix, middle = named("fim_pre"), named("fim_suf"), named("fim_mid")
        suffix_first = self._special(_SUFFIX_FIRST)
        prefix_second = self._special(b"[PREFIX]")
        if suffix_first is not None and prefix_second is not None:
            return InfillTokens(
                prefix_id=prefix_second,
                suffix_id=suffix_first,
                middle_id=None,
                order="spm",
                end_ids=self._infill_ends(suffix_first, prefix_second),
            )
        if prefix is None or suffix is None or middle is None:
            return None
        return InfillTokens(
            prefix_id=prefix,
            suffix_id=suffix,
            middle_id=middle,
            order="psm",
            end_ids=self._infill_ends(prefix, suffix, middle),
            repository_id=self._first_of("fim_rep", _REPOSITORY),
            file_id=self._first_of("fim_sep", _FILE),
        )

    def _first_of(self, role: str, names: Sequence[bytes]) -> int | None:
        """Returns the token of a role that the library knows, or of a name, or None."""
        token = self._model.named(role)
        if token is not None:
            return token
        return next((found for found in map(self._special, names) if found is not None), None)

    def _infill_ends(self, *markers: int) -> tuple[int, ...]:
        """Returns the tokens that end a middle.

        They include the markers, which begin another infill; CodeGemma's makers list them too.
        """
        return tuple(sorted(self._ends.infill_end_ids.union(markers) - self.end_ids))
