"""``POST /infill``: llama-server's infill, in its shape (F5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.types import Scope

from afterword.completion.choice import EndedBy
from afterword.completion.infill_request import Infill, decode_infill
from afterword.completion.plan import Plan
from afterword.completion.service import Caller, CompletionService
from afterword.completion.stream import CompletionStream
from afterword.core import wire
from afterword.http.frames import frame, frame_of
from afterword.http.shapes import Shape

_encode = msgspec.json.Encoder().encode
_NO_SLOT = -1
_ENTRY_COST = 2.0
"""For ``Pace``: of a token with its log-probability, made and written."""
_BY_ID = "token_id:"
_STOP_TYPES: Mapping[EndedBy | None, str] = {
    "end_token": "eos", "stop_string": "word", "limit": "limit", None: "none",
}  # fmt: skip


class TokenProbability(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token with its log-probability. A generated one has the likeliest at its position."""

    id: int
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


class InfillTimings(msgspec.Struct, frozen=True):
    """How long the parts took. ``cache_n`` tokens came from the cache, ``prompt_n`` did not."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class InfillChunk(msgspec.Struct, frozen=True):
    """One event of a stream but the last."""

    index: int
    content: str
    tokens: list[int]
    stop: bool
    id_slot: int
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


class InfillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, or the last event of a stream, which has no content."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: bool
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: Mapping[str, Any]
    has_new_line: bool
    truncated: bool
    stop_type: str
    stopping_word: str
    tokens_cached: int
    timings: InfillTimings
    completion_probabilities: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class InfillShape:
    """The shape of one answer. llama-server's streams have no ``[DONE]``."""

    end = b""

    def __init__(self, infill: Infill) -> None:
        self._infill = infill
        self._has_new_line = False

    async def whole(self, answer: CompletionStream) -> list[bytes]:
        """See ``Shape``."""
        choices = [choice async for choice in answer.choices()]
        choice = choices[0]
        self._has_new_line = "\n" in choice.text
        probabilities = await self._written(answer, choice)
        return [self._last(answer, choice.text, _ids(choice), probabilities)]

    async def _written(
        self, answer: CompletionStream, choice: wire.Choice
    ) -> msgspec.Raw | msgspec.UnsetType:
        """Returns the probabilities as JSON, which is made in slices: the loop is free between."""
        if choice.logprobs is None:
            return msgspec.UNSET
        parts: list[bytes] = []
        for entry in self._probabilities(answer, choice.logprobs):
            parts.append(_encode(entry))
            await answer.pace.spend((1 + self._infill.n_probs) * _ENTRY_COST)
        return msgspec.Raw(b"[%b]" % b",".join(parts))

    def frames(self, answer: CompletionStream, chunks: Sequence[wire.Chunk]) -> bytes:
        """See ``Shape``."""
        made = []
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            self._has_new_line = self._has_new_line or "\n" in choice.text
            if choice.text or _ids(choice) or choice.logprobs is not None:
                made.append(frame(self._chunk(answer, choice)))
            if choice.finish_reason is not None:
                made.append(frame_of(self._last(answer, "", [], msgspec.UNSET)))
        return b"".join(made)

    def _chunk(self, answer: CompletionStream, choice: wire.Choice) -> InfillChunk:
        usage = answer.usage
        probabilities: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET
        if choice.logprobs is not None:
            probabilities = list(self._probabilities(answer, choice.logprobs))
        return InfillChunk(
            0,
            choice.text,
            _ids(choice),
            stop=False,
            id_slot=_NO_SLOT,
            tokens_predicted=usage.completion_tokens,
            tokens_evaluated=usage.prompt_tokens,
            completion_probabilities=probabilities,
        )

    def _last(
        self,
        answer: CompletionStream,
        content: str,
        ids: list[int],
        probabilities: msgspec.Raw | msgspec.UnsetType,
    ) -> bytes:
        usage, plan = answer.usage, answer.plan
        ended_by, word = answer.end_of(0, 0)
        made = InfillAnswer(
            index=0,
            content=content,
            tokens=ids,
            id_slot=_NO_SLOT,
            stop=True,
            model=plan.model,
            tokens_predicted=usage.completion_tokens,
            tokens_evaluated=usage.prompt_tokens,
            generation_settings=self._settings(plan),
            has_new_line=self._has_new_line,
            truncated=plan.cut or (ended_by == "limit" and self._ran_out(plan, usage)),
            stop_type=_STOP_TYPES[ended_by],
            stopping_word=word,
            tokens_cached=usage.prompt_tokens_details.cached_tokens,
            timings=_timings(answer),
        )
        if not self._infill.response_fields:
            return _encode(msgspec.structs.replace(made, completion_probabilities=probabilities))
        fields = msgspec.to_builtins(made)
        if probabilities is not msgspec.UNSET:
            fields["completion_probabilities"] = probabilities
        return _encode(_selected(fields, self._infill.response_fields))

    def _ran_out(self, plan: Plan, usage: wire.Usage) -> bool:
        """Whether the context left no token for more, rather than ``n_predict``."""
        most, asked = plan.jobs[0].max_tokens, self._infill.n_predict
        return usage.completion_tokens >= most and not 0 <= asked <= most

    def _probabilities(
        self, answer: CompletionStream, logprobs: wire.Logprobs
    ) -> Iterator[TokenProbability]:
        """Yields an entry for each token that was generated."""
        pieces = answer.plan.vocab.pieces
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            tops = [_probability(name, value, pieces) for name, value in (top or {}).items()]
            tops.sort(key=lambda entry: -entry.logprob)
            mine = _probability(token, logprob or 0.0, pieces)
            yield msgspec.structs.replace(mine, top_logprobs=tops[: self._infill.n_probs])

    def _settings(self, plan: Plan) -> Mapping[str, Any]:
        """Returns what was decided, by llama-server's names."""
        sampling, infill = plan.jobs[0].sampling, self._infill
        return {
            "n_predict": infill.n_predict,
            "seed": plan.jobs[0].seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "xtc_probability": sampling.xtc_probability,
            "xtc_threshold": sampling.xtc_threshold,
            "repeat_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "dry_multiplier": 0.0
            if sampling.repetition is None
            else sampling.repetition.multiplier,
            "stop": list(plan.shown.stops),
            "stream": plan.stream,
            "n_probs": infill.n_probs,
            "n_indent": plan.shown.least_indent,
            "t_max_predict_ms": plan.shown.most_ms or -1,
        }


class InfillReading:
    """Reads llama-server's bodies."""

    async def plan(
        self,
        service: CompletionService,
        body: bytes,
        scope: Scope,  # noqa: ARG002 - the protocol
        caller: Caller,
    ) -> tuple[Plan, Shape]:
        """See ``Reading``."""
        infill = await service.parse(body, decode_infill, caller)
        plan = await service.plan_request(infill.request, len(body), caller, infill=infill.options)
        return plan, InfillShape(infill)


def _ids(choice: wire.Choice) -> list[int]:
    return [] if choice.token_ids is msgspec.UNSET else choice.token_ids


def _probability(name: str, logprob: float, pieces: Sequence[bytes]) -> TokenProbability:
    token = int(name.removeprefix(_BY_ID))
    piece = pieces[token]
    return TokenProbability(token, piece.decode(errors="replace"), list(piece), logprob)


def _timings(answer: CompletionStream) -> InfillTimings:
    usage, watch = answer.usage, answer.watch
    prompt_ms = 0.0 if watch is None else watch.prompt_ms
    predicted_ms = 0.0 if watch is None else watch.generated_ms
    cached = usage.prompt_tokens_details.cached_tokens
    computed = usage.prompt_tokens - cached
    return InfillTimings(
        cached,
        computed,
        prompt_ms,
        *_rates(computed, prompt_ms),
        usage.completion_tokens,
        predicted_ms,
        *_rates(usage.completion_tokens, predicted_ms),
    )


def _rates(tokens: int, ms: float) -> tuple[float, float]:
    """Returns the milliseconds a token and the tokens a second; 0 where there is none."""
    return (ms / tokens if tokens else 0.0), (1000 * tokens / ms if ms else 0.0)


def _selected(answer: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """Returns the values at these paths, by path. A path that leads nowhere is left out."""
    found = {}
    for path in paths:
        value: Any = answer
        for key in path.split("/"):
            if not isinstance(value, Mapping) or key not in value:
                break
            value = value[key]
        else:
            found[path] = value
    return found
