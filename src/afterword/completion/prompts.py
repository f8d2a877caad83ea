"""Lays out the prompts of a request: the ids to compute, and what answers show of them (R2, E2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from afterword.completion.context_budget import ContextBudget
from afterword.completion.encoding import encode, known_ids
from afterword.completion.framing import Framing
from afterword.completion.id_fields import Prompt
from afterword.completion.infill import (
    INFILL_TOKENS,
    LaidOut,
    Place,
    PlaceRoom,
    infill_tokens,
    lay_out,
    lay_out_place,
)
from afterword.completion.prompt_text import (
    PromptText,
    Shown,
    VocabView,
    fixed,
    prompt_of_ids,
    prompt_of_text,
)
from afterword.completion.request import CompletionRequest
from afterword.completion.search_size import BEHIND_TOKENS
from afterword.core.protocols import Tokenizer

_WHAT_FITS = -1
"""The value of ``truncate_prompt_tokens`` that keeps as many tokens as fit."""


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """Lays out one prompt after another. All methods raise ``InvalidRequest``.

    ``chat`` is there if prompts stand in a chat template, ``place`` if they ask for a middle there.
    ``spelled``: names of special tokens in prompts are text.
    """

    request: CompletionRequest
    tokenizer: Tokenizer
    budget: ContextBudget
    vocab: VocabView
    chat: Framing | None
    place: Place | None
    spelled: bool = False

    @property
    def asked(self) -> int | None:
        """The request's limit on generated tokens, under either name."""
        limit = self.request.max_tokens
        return self.request.max_completion_tokens if limit is None else limit

    @property
    def asked_by(self) -> str:
        """The name under which it was given."""
        given = self.request.max_completion_tokens
        return "max_tokens" if given is None else "max_completion_tokens"

    def lay_out(self, prompt: Prompt) -> tuple[Sequence[int], PromptText, bool]:
        """Returns the ids to compute, the prompt as its choices show it, and whether it was cut."""
        if self.chat is not None:
            return *self.chat.prompt(prompt, self.tokenizer, self.vocab, self._shown()), False
        if self.place is not None:
            placed = self._placed(prompt, self.place)
            return placed.ids, PromptText(placed.ids, 0, ""), placed.cut
        return *self._plain(prompt), False

    def completion_tokens(self, prompt_tokens: int) -> int:
        """Returns how many tokens may be generated; at a place, at most what fits."""
        asked = self.asked
        if asked is not None and self.place is not None:
            asked = min(asked, self.budget.context_tokens - prompt_tokens)
        return self.budget.completion_tokens(prompt_tokens, asked)

    def _plain(self, prompt: Prompt) -> tuple[Sequence[int], PromptText]:
        request, tokenizer = self.request, self.tokenizer
        suffix = request.suffix or ""
        laid_out = bool(suffix) and tokenizer.infill is not None
        self.budget.refuse_endless(
            prompt, tokenizer, self.asked, cut=request.truncate_prompt_tokens is not None
        )
        self.budget.refuse_endless(suffix, tokenizer, self.asked)
        visible = fixed(_ids(prompt, tokenizer, parse_special=not (suffix or self.spelled)))
        after: Sequence[int] = ()
        if laid_out:
            after = encode("suffix", suffix, tokenizer, parse_special=False, continues=True)
        bos = None if laid_out else self._added_bos(prompt, visible)
        around = 0
        if suffix:
            around = len(after) + INFILL_TOKENS if laid_out else BEHIND_TOKENS
        kept = self._kept(visible, int(bos is not None), around)
        text = self._text(prompt, visible, kept)
        if laid_out:
            front = None if request.add_special_tokens is False else tokenizer.bos_id
            return lay_out(infill_tokens(tokenizer), front, kept, after), text
        if not kept:
            return (tokenizer.document_start_id,), msgspec.structs.replace(text, hidden=1)
        if bos is not None:
            return (bos, *kept), msgspec.structs.replace(text, hidden=1)
        return kept, text

    def _added_bos(self, prompt: Prompt, visible: Sequence[int]) -> int | None:
        """Returns the BOS that comes before a text prompt's ids; None if none does (R2)."""
        bos = self.tokenizer.bos_id
        if not isinstance(prompt, str) or self.request.add_special_tokens is False:
            return None
        return None if visible[:1] == (bos,) else bos

    def _text(self, prompt: Prompt, visible: Sequence[int], kept: Sequence[int]) -> PromptText:
        """Returns a prompt as its choices show it; ``kept`` are those of its ids that stay."""
        if isinstance(prompt, str) and kept is visible:
            text = prompt_of_text(prompt, visible, self.vocab, self._shown())
        else:
            text = prompt_of_ids(kept, self.vocab, self._shown())
        # A middle continues the prefix, so no space of the tokenizer comes between them.
        return msgspec.structs.replace(text, fresh=False) if self.request.suffix else text

    def _kept(self, ids: Sequence[int], bos: int, around: int) -> Sequence[int]:
        """Returns the end of a prompt that ``truncate_prompt_tokens`` keeps, or all of it.

        ``bos`` tokens before it count as its own. ``around`` tokens are the suffix's and have to
        fit, too.
        """
        asked = self.request.truncate_prompt_tokens
        if asked is None:
            return ids
        most = self.budget.room(self.asked) - around if asked == _WHAT_FITS else asked
        most = max(most - bos, 0)
        return ids if len(ids) <= most else ids[len(ids) - most :]

    def _shown(self) -> Shown:
        request = self.request
        scored = request.logprobs is not None or request.logprob_token_ids is not None
        echo = bool(request.echo)
        return Shown(text=echo or scored, offsets=echo and scored)

    def _placed(self, prompt: Prompt, place: Place) -> LaidOut:
        """Returns the ids of a prompt that asks for the middle at a place."""
        tokenizer = self.tokenizer
        suffix = self.request.suffix or ""
        for text in (prompt, place.typed, suffix):
            self.budget.refuse_endless(text, tokenizer, self.asked, cut=True)
        before = list(_ids(prompt, tokenizer, parse_special=False))
        if place.typed:
            before += encode(
                "prompt", place.typed, tokenizer, parse_special=False, continues=bool(before)
            )
        after: Sequence[int] = ()
        if suffix:
            after = encode("input_suffix", suffix, tokenizer, parse_special=False, continues=True)
        room = PlaceRoom.of(self.budget.context_tokens, self.asked)
        return lay_out_place(before, after, place, tokenizer, room)


def texts_of(
    request: CompletionRequest, place: Place | None = None, *, spelled: bool = False
) -> Iterator[tuple[str, bool]]:
    """Yields the texts that are tokenised, and whether special tokens are parsed.

    ``spelled``: see ``Prompts``.
    """
    suffix = request.suffix or ""
    if place is not None and place.typed:
        yield place.typed, False
    for prompt in request.prompt:
        if isinstance(prompt, str) and prompt:
            yield prompt, not suffix and place is None and not spelled
    if suffix:
        yield suffix, False


def _ids(prompt: Prompt, tokenizer: Tokenizer, *, parse_special: bool) -> Sequence[int]:
    if isinstance(prompt, str):
        return encode("prompt", prompt, tokenizer, parse_special=parse_special) if prompt else ()
    return known_ids("prompt", prompt, tokenizer)
