"""Scores of texts and of continuations, by requests that generate nothing (E3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from afterword.core.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    InvalidRequest,
    RateLimited,
    UpstreamFailed,
)
from afterword.core.wire import Logprobs
from afterword.library.answers import ContinuationScore, TextChoice, TextScore
from afterword.library.backend import Backend
from afterword.library.segments import offsets_in
from afterword.library.windows import Window, WindowPlan, integer, window_plan
from afterword.library.written import written

Advance: TypeAlias = Callable[[int, int], None]
"""Takes the tokens that were scored since the last call, and how many there are in all."""

_REQUEST_TOKENS = 8192
"""About how many tokens one request scores: enough to fill batches, with news every few seconds."""
_REQUEST_PROMPTS = 64
_START = {"prompt": "", "max_tokens": 0, "return_token_ids": True}


class Scorer:
    """Scores with one backend. All methods raise ``ApiError``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._start: int | None = None
        self._prefix: list[int] | None = None

    async def score(
        self,
        texts: Sequence[str],
        *,
        top: int = 0,
        window: int | None = None,
        stride: int | None = None,
        advance: Advance | None = None,
    ) -> list[TextScore]:
        """Returns the score of each text behind the start of a document.

        ``top`` is how many alternatives each token gets.
        """
        plan = window_plan(self._backend.facts.context_tokens, window, stride)
        integer("top", top)
        start = await self._start_id()
        sheets = [Sheet(text, [start, *await self._ids(text)], plan) for text in texts]
        total = sum(len(sheet.ids) - 1 for sheet in sheets)
        left = [(sheet, place) for sheet in sheets for place in sheet.windows]
        for group in _groups(left):
            prompts = [sheet.ids[place.first : place.end] for sheet, place in group]
            choices = await self._echo(prompts, top)
            for (sheet, place), choice in zip(group, choices, strict=True):
                sheet.add(place, _logprobs(choice, place.end - place.first))
            if advance is not None:
                advance(sum(place.end - place.scored for _, place in group), total)
        return [sheet.score() for sheet in sheets]

    async def continuations(
        self, context: str, continuations: Sequence[str]
    ) -> list[ContinuationScore]:
        """Returns how likely each continuation is after a context.

        As lm-evaluation-harness does it: white space at the context's end belongs to the
        continuation, and a continuation's tokens are those of the whole text behind as many as the
        context alone has. An empty context is the BOS, or the EOS of a vocabulary without one.
        """
        if not continuations:
            return []
        bare = context.rstrip()
        if bare:
            wholes: list[Any] = [context + text for text in continuations]
            begin = len(await self._backend.tokenize(bare, add_special_tokens=False))
        else:
            prefix = await self._prefix_ids()
            wholes = [[*prefix, *await self._ids(context + text)] for text in continuations]
            begin = len(prefix)
        choices = await self._echo(wholes, 1)
        return [
            _continuation(text, choice, begin)
            for text, choice in zip(continuations, choices, strict=True)
        ]

    async def _start_id(self) -> int:
        """Returns the token that begins a document (R2)."""
        if self._start is None:
            body = {**_START, "model": self._backend.scored_name}
            answer = await self._backend.complete(msgspec.json.encode(body))
            ids = answer.choices[0].prompt_token_ids
            if not ids:
                raise UpstreamFailed("The server did not say which token begins a document.")
            self._start = ids[-1]
        return self._start

    async def _prefix_ids(self) -> list[int]:
        """Returns what lm-evaluation-harness has in place of an empty context: one token."""
        if self._prefix is None:
            names = await self._backend.special_names()
            name = names.bos_token or names.eos_token
            if name is None:
                raise InvalidRequest("This model has no token for an empty context.")
            self._prefix = await self._backend.tokenize(name, add_special_tokens=False)
        return self._prefix

    async def _ids(self, text: str) -> list[int]:
        """Returns the tokens of a text.

        A text that no request could hold is tokenised in parts, which begin at lines.
        """
        if not text:
            return []
        try:
            return await self._backend.tokenize(text, add_special_tokens=False)
        except (ContextLengthExceeded, BodyTooLarge):
            if len(text) == 1:
                raise
            cut = text.find("\n", len(text) // 2) + 1
            if not 0 < cut < len(text):
                cut = text.rfind("\n", 0, len(text) // 2) + 1 or len(text) // 2
            return [*await self._ids(text[:cut]), *await self._ids(text[cut:])]

    async def _echo(self, prompts: Sequence[Any], top: int) -> list[TextChoice]:
        """Returns the choice of each prompt.

        A server, or the limits of a key, may take fewer prompts in one request.
        """
        try:
            return await self._asked(prompts, top)
        except (InvalidRequest, BodyTooLarge, RateLimited) as error:
            # A key at its limit is no reason: its prompts fit later.
            is_too_much = error.param != "top" and error.retry_after_s is None
            if len(prompts) == 1 or not is_too_much:
                raise
        half = len(prompts) // 2
        return [*await self._echo(prompts[:half], top), *await self._echo(prompts[half:], top)]

    async def _asked(self, prompts: Sequence[Any], top: int) -> list[TextChoice]:
        body = {
            "model": self._backend.scored_name,
            "prompt": prompts,
            "echo": True,
            "logprobs": written("top", top),
            "max_tokens": 0,
        }
        try:
            answer = await self._backend.complete(msgspec.json.encode(body))
        except InvalidRequest as error:
            if error.param != "logprobs":
                raise
            message = error.message.replace("'logprobs'", "'top'")
            raise InvalidRequest(message, param="top", code=error.code) from error
        return answer.choices


class Sheet:
    """What is known of the score of one text. Invariant: windows are added in their order."""

    def __init__(self, text: str, ids: Sequence[int], plan: WindowPlan) -> None:
        self.ids = ids
        self.windows = list(plan.over(len(ids))) if len(ids) > 1 else []
        self._text = text
        self._plan = plan
        self._tokens: list[str] = []
        self._values: list[float] = []
        self._tops: list[Mapping[str, float]] = []
        self._offsets: list[int] = []

    def add(self, window: Window, found: Logprobs) -> None:
        """Take in what was found for a window: arrays that cover all of its tokens."""
        at = window.scored - window.first
        offsets = found.text_offset
        # The offset in the text of what has offset 0 in the window.
        moved = self._offsets[-1] - offsets[at - 1] if self._offsets else -offsets[at]
        self._tokens += found.tokens[at:]
        self._offsets += [offset + moved for offset in offsets[at:]]
        self._values += [_known(value) for value in found.token_logprobs[at:]]
        self._tops += [top or {} for top in found.top_logprobs[at:]]

    def score(self) -> TextScore:
        """Returns the score, once every window is there."""
        offsets = None
        if len(self.windows) > 1:
            # A window that begins inside a character has offsets of its own making.
            offsets = offsets_in(self._text, self._tokens)
        return TextScore(
            self._text,
            tuple(self._tokens),
            tuple(self.ids[1:]),
            tuple(self._values),
            tuple(self._tops),
            tuple(self._offsets if offsets is None else offsets),
            len(self.windows),
            self._plan.window_tokens,
            self._plan.stride_tokens,
        )


def _groups(left: Sequence[tuple[Sheet, Window]]) -> Iterator[list[tuple[Sheet, Window]]]:
    """Yields what goes into one request after another, in order."""
    group: list[tuple[Sheet, Window]] = []
    size = 0
    for sheet, window in left:
        length = window.end - window.first
        if group and (size + length > _REQUEST_TOKENS or len(group) == _REQUEST_PROMPTS):
            yield group
            group, size = [], 0
        group.append((sheet, window))
        size += length
    if group:
        yield group


def _logprobs(choice: TextChoice, tokens: int) -> Logprobs:
    if choice.logprobs is None or len(choice.logprobs.tokens) != tokens:
        raise UpstreamFailed(f"The server did not score each of {tokens} tokens.")
    return choice.logprobs


def _known(value: float | None) -> float:
    if value is None:
        raise UpstreamFailed("The server left out the log-probability of a token.")
    return value


def _continuation(text: str, choice: TextChoice, begin: int) -> ContinuationScore:
    found = choice.logprobs
    if found is None:
        raise UpstreamFailed("The server did not score a text.")
    values = [_known(value) for value in found.token_logprobs[begin:]]
    if not values:
        raise InvalidRequest(
            f"Invalid value for 'continuations': {text[:40]!r} has no token of its own behind its "
            "context, so nothing of it can be scored.",
            param="continuations",
        )
    tops = found.top_logprobs[begin:]
    greedy = all(
        value >= max((top or {}).values(), default=value)
        for value, top in zip(values, tops, strict=True)
    )
    return ContinuationScore(text, sum(values, 0.0), len(values), greedy)


def texts_of(name: str, texts: str | Sequence[str]) -> Sequence[str]:
    """Returns a parameter's texts as a sequence. Raises ``InvalidRequest`` for what is no text."""
    several = isinstance(texts, Iterable) and not isinstance(texts, (str, bytes))
    found: list[Any] = list(texts) if several else [texts]
    for text in found:
        if not isinstance(text, str):
            raise InvalidRequest(
                f"Invalid type for '{name}': expected text, but got {type(text).__name__}.",
                param=name,
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"Invalid value for '{name}': a text cannot be written as UTF-8: {error.reason} at "
                f"character {error.start}.",
                param=name,
            ) from error
    return found
