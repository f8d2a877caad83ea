"""Upstreams that speak ``/v1/completions`` themselves: Afterword, vLLM, and whoever is hosted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from afterword.core.job import Event, FinishReason, Job
from afterword.core.wire import Vocabulary
from afterword.engine.remote.api import Api, clients_fault
from afterword.engine.remote.dialect import (
    UNKNOWN_CONTEXT,
    AnyTokenizer,
    Facts,
    Reader,
    chosen,
    identity,
    is_greedy,
)
from afterword.engine.remote.failures import ClientsFault, Refused, StreamBroke, UpstreamFailure
from afterword.engine.remote.reading import Part, Reading, Top, reason_of, scored_prompt
from afterword.engine.remote.spelling import survey_vocabulary
from afterword.engine.remote.vocabulary import RemoteTokenizer, TextTokenizer

_LEAST_LOGPROBS = 5
"""What OpenAI's endpoint gives, and so whoever imitates it."""
_VLLM_LOGPROBS = 20
_REQUESTS_FAULT = ("invalid_request_error", "BadRequestError")


class _Logprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Listed(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None
    afterword: dict[str, Any] = {}


class _Models(msgspec.Struct):
    data: list[_Listed] = []


class _Version(msgspec.Struct):
    version: str = ""


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Info(msgspec.Struct):
    vocabulary: Vocabulary
    chat_template: str | None = None


class _Prompt(msgspec.Struct):
    prompt: str


_decode = msgspec.json.Decoder(_Chunk).decode


class _Completions:
    """What they have in common."""

    name = ""
    title = ""
    takes_names_as_text = False
    lacks: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}

    def health(self, api: Api) -> str:
        return f"{api.address.root}/health"

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:  # noqa: ARG002 - names are cut beforehand
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return (await api.post(f"{api.address.root}/tokenize", body, _Tokens)).tokens

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        return [range(job.n)]

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        return _Reader(Reading(index, job, seqs, tokenizer.end_ids), job, self._speller(tokenizer))

    def _speller(self, tokenizer: AnyTokenizer) -> _Speller:
        raise NotImplementedError

    async def _model(self, api: Api, name: str) -> _Listed:
        listed = (await api.get(f"{api.address.base}/models", _Models)).data
        wanted = chosen([model.id for model in listed], api, name)
        return next(model for model in listed if model.id == wanted)


class AfterwordDialect(_Completions):
    """Afterword in front of Afterword: everything, exactly. Tokens are told by name."""

    name = "afterword"
    title = "Afterword"
    notes: Mapping[str, str] = {"seed": "yes, with the promise of those behind"}

    async def survey(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await self._model(api, name)
        facts = model.afterword
        query = urlencode({"vocabulary": "true", "model": model.id})
        path = f"{api.address.root}/tokenizer_info?{query}"
        info = await api.get(path, _Info)
        try:
            return Facts(
                model=model.id,
                context_tokens=int(facts["context_tokens"]),
                max_logprobs=int(facts["max_logprobs"]),
                identity=str(facts["system_fingerprint"]),
                batch_invariant=bool(facts["batch_invariant"]),
                vocabulary=info.vocabulary,
                chat_template=info.chat_template,
            )
        except (KeyError, ValueError):
            raise StreamBroke("its models are not described as Afterword describes them") from None

    def request(
        self,
        api: Api,
        job: Job,
        seqs: Sequence[int],
        facts: Facts,
        tokenizer: AnyTokenizer,  # noqa: ARG002 - ids need none
    ) -> tuple[str, object]:
        """See ``Dialect``."""
        sampling = job.sampling
        body = _body(job, seqs, facts, list(job.prompt_ids)) | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "min_tokens": sampling.min_tokens,
            "ignore_eos": sampling.ignore_eos,
            "seed": job.seed,
            # Names of tokens come with their log-probabilities.
            "logprobs": max(job.logprobs or 0, job.prompt_logprobs or 0),
            "echo": job.prompt_logprobs is not None,
        }
        return f"{api.address.base}/completions", body

    def _speller(self, tokenizer: AnyTokenizer) -> _Speller:
        def named(choice: _Choice) -> list[int]:
            return [] if choice.logprobs is None else [id_of(t) for t in choice.logprobs.tokens]

        def id_of(token: str) -> int:
            return tokenizer.id_of(piece_of(token))

        return _Speller(named, id_of)


class VllmDialect(_Completions):
    """vLLM, by its source (0.32.0): ids in the stream, prompt log-probabilities by ``echo``."""

    name = "vllm"
    title = "vLLM"
    notes: Mapping[str, str] = {
        "seed": "as far as it keeps them",
        "cached_tokens": "with its `--enable-prompt-tokens-details`",
    }

    async def survey(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await self._model(api, name)
        root = api.address.root
        version = (await api.get(f"{root}/version", _Version)).version

        async def spell(ids: Sequence[int]) -> str:
            body = {"model": model.id, "tokens": list(ids)}
            return (await api.post(f"{root}/detokenize", body, _Prompt)).prompt

        async def encode(text: str, *, add_special: bool = False) -> list[int]:
            body = {"model": model.id, "prompt": text, "add_special_tokens": add_special}
            return (await api.post(f"{root}/tokenize", body, _Tokens)).tokens

        return Facts(
            model=model.id,
            context_tokens=model.max_model_len or UNKNOWN_CONTEXT,
            max_logprobs=_VLLM_LOGPROBS,
            identity=identity(self.name, version, model.id, model.root),
            vocabulary=await survey_vocabulary(spell, encode),
        )

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """It refuses several greedy siblings in one request."""
        return [[seq] for seq in range(job.n)] if is_greedy(job) else [range(job.n)]

    def request(
        self,
        api: Api,
        job: Job,
        seqs: Sequence[int],
        facts: Facts,
        tokenizer: AnyTokenizer,  # noqa: ARG002 - ids need none
    ) -> tuple[str, object]:
        """See ``Dialect``."""
        sampling = job.sampling
        greedy = is_greedy(job)
        body = _body(job, seqs, facts, list(job.prompt_ids)) | {
            # All that the model's own generation_config would otherwise decide.
            "temperature": 0 if greedy else sampling.temperature,
            "top_p": 1 if greedy else sampling.top_p,
            "top_k": 0 if greedy else sampling.top_k,
            "min_p": 0 if greedy else sampling.min_p,
            "repetition_penalty": 1,
            "min_tokens": sampling.min_tokens,
            "ignore_eos": sampling.ignore_eos,
            "seed": job.seed,
            "return_token_ids": True,
        }
        if job.logprobs is not None:
            body |= {
                "logprobs": max(job.logprobs, job.prompt_logprobs or 0),
                "echo": job.prompt_logprobs is not None,
                "return_tokens_as_token_ids": True,
            }
        return f"{api.address.base}/completions", body

    def _speller(self, tokenizer: AnyTokenizer) -> _Speller:
        def ended(choice: _Choice) -> list[int]:
            ids = choice.token_ids or []
            if choice.finish_reason == "stop" and ids and isinstance(tokenizer, RemoteTokenizer):
                # No stop strings are sent, so that only an end token can be meant.
                ids[-1] = tokenizer.end(ids[-1])
            return ids

        return _Speller(ended, _numbered)


class OpenaiDialect(_Completions):
    """Any hosted endpoint: text in, text out, and log-probabilities where it has them."""

    name = "openai"
    title = "an OpenAI-like endpoint"
    lacks: Mapping[str, str] = {
        "ids": "has no tokenizer",
        "suffix": "has no tokenizer",
        "scoring": "cannot say which tokens of a prompt it scored",
        "top_k": "does not know it",
        "min_p": "does not know it",
        "min_tokens": "does not know it",
        "ignore_eos": "does not know it",
    }
    notes: Mapping[str, str] = {
        "text": "yes, `max_tokens` must be given",
        "logprobs": "where it has them, at most 5",
        "bytes": "as it writes them",
        "seed": "as far as it keeps them",
        "usage": "its own count; up to a `stop`, by chunks",
        "cached_tokens": "where it tells",
    }

    def health(self, api: Api) -> str:
        """There is no other path that all of them have."""
        return f"{api.address.base}/models"

    async def survey(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await self._model(api, name)
        return Facts(
            model=model.id,
            context_tokens=UNKNOWN_CONTEXT,
            max_logprobs=_LEAST_LOGPROBS,
            identity=identity(self.name, api.address.origin, model.id, model.root),
        )

    def request(
        self, api: Api, job: Job, seqs: Sequence[int], facts: Facts, tokenizer: AnyTokenizer
    ) -> tuple[str, object]:
        """See ``Dialect``."""
        assert isinstance(tokenizer, TextTokenizer)  # noqa: S101 - it has no vocabulary
        sampling = job.sampling
        prompt = tokenizer.text(job.prompt_ids)
        # An empty prompt is what the endpoint itself takes for the start of a document.
        body = _body(job, seqs, facts, prompt or None) | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": job.seed,
        }
        if job.logprobs is not None:
            body["logprobs"] = job.logprobs
        return f"{api.address.base}/completions", body

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        reading = Reading(index, job, seqs, tokenizer.end_ids)
        return _LateReader(reading, job, self._speller(tokenizer))

    def _speller(self, tokenizer: AnyTokenizer) -> _Speller:
        def pieces(choice: _Choice) -> list[int]:
            if choice.logprobs is not None:
                return [id_of(token) for token in choice.logprobs.tokens]
            return [tokenizer.id_of(choice.text.encode())] if choice.text else []

        def id_of(token: str) -> int:
            return tokenizer.id_of(piece_of(token))

        return _Speller(pieces, id_of)


class _Speller(msgspec.Struct, frozen=True):
    """Ids of a choice's tokens, and the id that a name in its log-probabilities means."""

    ids: Callable[[_Choice], list[int]]
    id_of: Callable[[str], int]


class _Reader:
    """Reads chunks. With ``echo`` the first chunk of each choice has the prompt's entries."""

    def __init__(self, reading: Reading, job: Job, speller: _Speller) -> None:
        self._reading = reading
        self._job = job
        self._speller = speller
        self._echoed: set[int] = set()

    @property
    def over(self) -> bool:
        return self._reading.over

    def close(self, seq: int) -> None:
        self._reading.close(seq)

    def read(self, payload: bytes) -> list[Event]:
        try:
            chunk = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamBroke("it sent an event that is no chunk") from None
        if chunk.error is not None:
            raise failure_in_stream(chunk.error)
        events: list[Event] = []
        for choice in chunk.choices:
            part, first = self._part(choice)
            if first:
                events += first
            events += self._taken(part)
        if chunk.usage is not None and not chunk.choices:
            events += self._counted(chunk.usage)
        return events

    def done(self) -> list[Event]:
        if not self._reading.over:
            raise StreamBroke("it ended its stream without ending its choices")
        return []

    def _taken(self, part: Part) -> list[Event]:
        return self._reading.sampled(part)

    def _counted(self, usage: _Usage) -> list[Event]:
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        return [self._reading.counted(usage.prompt_tokens, cached)]

    def _part(self, choice: _Choice) -> tuple[Part, list[Event]]:
        """What a choice adds, and the events before it."""
        seq = self._reading.seq(choice.index)
        ids = self._speller.ids(choice)
        logprobs: list[float] = []
        tops: list[Top] = []
        first: list[Event] = []
        if self._job.logprobs is not None and choice.logprobs is not None:
            logprobs, tops = self._scores(choice.logprobs)
            if self._job.prompt_logprobs is not None and seq not in self._echoed:
                self._echoed.add(seq)
                prompt = len(self._job.prompt_ids)
                if len(logprobs) < prompt:
                    raise StreamBroke("it did not score the whole prompt")
                scored = scored_prompt(
                    logprobs[1:prompt], tops[1:prompt], self._job.prompt_logprobs
                )
                first = self._reading.prefilled(scored)
                logprobs, tops = logprobs[prompt:], tops[prompt:]
                # Ids beside the log-probabilities are of generated tokens alone.
                ids = ids[-len(logprobs) :] if logprobs else []
            if len(logprobs) != len(ids):
                raise StreamBroke("its log-probabilities are not one for each token")
        elif self._job.logprobs is not None and ids:
            raise StreamBroke("it sent tokens without the log-probabilities that were asked for")
        if not self._reading.begun:
            first = self._reading.prefilled()
        return Part(seq, ids, logprobs, tops, choice.finish_reason), first

    def _scores(self, given: _Logprobs) -> tuple[list[float], list[Top]]:
        values = [0.0 if value is None else value for value in given.token_logprobs]
        id_of = self._speller.id_of
        tops: list[Top] = [
            [(id_of(name), value) for name, value in top.items()] if top else ()
            for top in given.top_logprobs or [None] * len(values)
        ]
        return values, tops


class _LateReader(_Reader):
    """Reads text: how many tokens it was is said only at the end, in the usage."""

    def __init__(self, reading: Reading, job: Job, speller: _Speller) -> None:
        super().__init__(reading, job, speller)
        self._reasons: dict[int, FinishReason] = {}
        self._made: dict[int, int] = {}

    def done(self) -> list[Event]:
        events = self._ends(None)
        return events + super().done()

    def _taken(self, part: Part) -> list[Event]:
        if part.seq in self._reasons:
            return []
        if part.finish is not None:
            self._reasons[part.seq] = reason_of(part.finish)
            part.finish = None
        self._made[part.seq] = self._made.get(part.seq, 0) + len(part.ids)
        return self._reading.sampled(part)

    def _counted(self, usage: _Usage) -> list[Event]:
        return super()._counted(usage) + self._ends(usage.completion_tokens)

    def _ends(self, completion_tokens: int | None) -> list[Event]:
        """The end of every choice; where several were counted together, the last has the rest."""
        ends: list[Event] = []
        reasons, self._reasons = self._reasons, {}
        for at, (seq, reason) in enumerate(reasons.items(), 1):
            if not self._reading.wants(seq):
                continue
            made = self._made[seq]
            if completion_tokens is not None:
                rest = sum(self._made[other] for other in list(reasons)[at:])
                made = max(completion_tokens - rest, 0) if at == 1 else made
            ends.append(self._reading.ended(seq, reason, made))
        return ends


def piece_of(token: str) -> bytes:
    r"""The bytes of a token as the contract writes it: text, or ``bytes:\xe2\x80`` (L4)."""
    if token.startswith("bytes:\\x"):
        try:
            return bytes.fromhex(token[6:].replace("\\x", ""))
        except ValueError:
            return token.encode()
    return token.encode()


def failure_in_stream(error: Any) -> UpstreamFailure:  # noqa: ANN401 - whatever JSON gave
    """What an error event means: the request's fault, or the upstream's."""
    said = error if isinstance(error, dict) else {}
    if said.get("code") in {400, "400"} or said.get("type") in _REQUESTS_FAULT:
        return ClientsFault(clients_fault(msgspec.json.encode(error)))
    return Refused("it reported an error of its own")


def _numbered(token: str) -> int:
    """``token_id:123``, as vLLM writes ids where it is asked for them."""
    try:
        return int(token.removeprefix("token_id:"))
    except ValueError:
        raise StreamBroke("it did not write tokens as ids") from None


def _body(
    job: Job, seqs: Sequence[int], facts: Facts, prompt: str | list[int] | None
) -> dict[str, Any]:
    """The fields that all of them know."""
    sampling = job.sampling
    body: dict[str, Any] = {
        "model": facts.model,
        "prompt": prompt,
        "max_tokens": job.max_tokens,
        "n": len(seqs),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if prompt is None:
        del body["prompt"]
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return body
