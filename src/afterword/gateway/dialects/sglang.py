"""The dialect of SGLang: its own ``/generate``, which sends ids and scores prompts.

Source of the format: SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from afterword.core.job import Event, Job, OutputGrammar
from afterword.core.wire import LOWEST
from afterword.gateway.dialects.dialect import (
    AnyTokenizer,
    Facts,
    Reader,
    identity,
    is_greedy,
    stop_ids_of,
)
from afterword.gateway.dialects.grammars import SCHEMA_KEYWORDS, gbnf_of_choices, unusable
from afterword.gateway.dialects.routes import encode, facts_of, model_of
from afterword.gateway.dialects.single import SingleReader
from afterword.gateway.dialects.stream_reader import (
    StreamReader,
    TokenDelta,
    Top,
    gathered,
    scored_prompt,
)
from afterword.gateway.failures import Incapable, StreamBroke, UpstreamFailure
from afterword.gateway.lenient import decoder
from afterword.gateway.long_payload import LongPayload
from afterword.gateway.transport.api import Api, clients_fault, failure_in_stream
from afterword.gateway.vocabulary import RemoteTokenizer

_MOST_LOGPROBS = 1000
_Entry = tuple[float | None, int, str | None]
"""Log-probability, id, and text if the server sends it."""


class _Server(msgspec.Struct):
    version: str = ""


class _Text(msgspec.Struct):
    text: str


class _Finish(msgspec.Struct):
    type: str
    status_code: int | None = None
    message: str = ""


class _MetaInfo(msgspec.Struct):
    finish_reason: _Finish | None = None
    prompt_tokens: Any = None
    completion_tokens: int = 0
    cached_tokens: Any = None
    input_token_logprobs: list[_Entry] | None = None
    input_top_logprobs: list[list[_Entry] | None] | None = None
    input_token_ids_logprobs: list[list[_Entry] | None] | None = None
    output_token_logprobs: list[_Entry] | None = None
    output_top_logprobs: list[list[_Entry] | None] | None = None
    output_token_ids_logprobs: list[list[_Entry] | None] | None = None


class _Output(msgspec.Struct):
    output_ids: list[int] = []
    meta_info: _MetaInfo = msgspec.field(default_factory=_MetaInfo)
    index: int = 0
    error: Any = None


_decode = decoder(_Output)


class SglangDialect:
    """SGLang: every feature; it keeps seeds only if an option at its start asks for that."""

    name = "sglang"
    title = "SGLang"
    takes_names_as_text = False
    lacks: Mapping[str, str] = {
        "repetition_penalty": "does not count the prompt's tokens",
        "penalty_range": "has no such parameter",
        "typical_p": "has no such parameter",
        "typical_min_p": "has no such parameter",
        "xtc": "has no such parameter",
        "dry": "has no such parameter",
        "dry_unbroken": "has no such parameter",
        "allowed_ids": "has no such parameter",
        "ranks": "sends no ranks",
        "structured_scores": "scores what the grammar has masked already",
    }
    notes: Mapping[str, str] = {
        "special": "tokens with the usual names: `<\\|im_start\\|>`, `<s>`, `[INST]`",
        "logprobs": "after `logit_bias` and penalties; after `temperature` too, unless its "
        "environment has `SGLANG_RETURN_ORIGINAL_LOGPROB=1`",
        "structured": "yes; grammars in GBNF, and schemas of "
        + ", ".join(f"`{keyword}`" for keyword in SCHEMA_KEYWORDS),
        "seed": "if started with `--enable-deterministic-inference`",
    }

    def health(self, api: Api) -> str:
        """See ``Dialect``."""
        return f"{api.address.root}/health"

    async def introspect(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await model_of(api, name)
        root = api.address.root
        version = (await api.get(f"{root}/server_info", _Server)).version

        async def spell(ids: Sequence[int]) -> str:
            body = {"model": model.id, "tokens": list(ids), "skip_special_tokens": False}
            return (await api.post(f"{root}/detokenize", body, _Text)).text

        return await facts_of(
            api,
            model,
            identity=identity(self.name, version, model.id, model.root),
            max_logprobs=_MOST_LOGPROBS,
            spell=spell,
        )

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:  # noqa: ARG002 - the engine splits names
        """See ``Dialect``."""
        return await encode(api, model, text)

    def unusable(self, grammar: OutputGrammar) -> str | None:
        """See ``Dialect``."""
        return unusable(grammar)

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """Returns single siblings, because all siblings of a request share its seed."""
        return [[seq] for seq in range(job.n)]

    def request(
        self,
        api: Api,
        job: Job,
        seqs: Sequence[int],
        facts: Facts,  # noqa: ARG002 - it serves one model
        tokenizer: AnyTokenizer,  # noqa: ARG002 - the prompt is ids
    ) -> tuple[str, Mapping[str, object]]:
        """See ``Dialect``."""
        sampling = job.sampling
        greedy = is_greedy(job)
        params: dict[str, Any] = {
            "max_new_tokens": job.max_tokens,
            "temperature": 0 if greedy else sampling.temperature,
            "top_p": 1 if greedy else sampling.top_p,
            "top_k": sampling.top_k if sampling.top_k > 0 and not greedy else -1,
            "min_p": 0 if greedy else sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": 1,
            "min_new_tokens": sampling.min_tokens,
            "ignore_eos": sampling.ignore_eos,
            "sampling_seed": (job.seed + seqs[0]) % 2**31,
        }
        if sampling.logit_bias:
            params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
        stop_ids = stop_ids_of(job)
        if stop_ids:
            # With ``ignore_eos`` it does not stop at them; the stream reader does.
            params["stop_token_ids"] = stop_ids
        if job.constraint is not None:
            params |= _grammar(job.constraint.grammar)
        body: dict[str, Any] = {
            "input_ids": list(job.prompt_ids),
            "sampling_params": params,
            "stream": True,
        }
        if job.cache_scope:
            body["extra_key"] = job.cache_scope
        if job.logprobs is not None:
            body |= {
                "return_logprob": True,
                "top_logprobs_num": max(job.logprobs, job.prompt_logprobs or 0),
                "logprob_start_len": -1 if job.prompt_logprobs is None else 0,
            }
            if job.scored_ids:
                body["token_ids_logprob"] = job.scored_ids
        return f"{api.address.root}/generate", body

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        assert isinstance(tokenizer, RemoteTokenizer)  # noqa: S101 - it has a vocabulary
        stream = StreamReader(index, job, seqs, tokenizer.end_ids)
        return _OutputReader(stream, job, seqs[0], tokenizer)


class _OutputReader(SingleReader):
    """Reads outputs. Each lists all tokens so far, or only the new ones (a server option)."""

    def read(self, payload: bytes | LongPayload) -> list[Event]:
        """See ``Reader``."""
        output = _decode(payload)
        if output.error:
            raise _failure(output.error)
        meta = output.meta_info
        finish = meta.finish_reason
        if finish is not None and finish.type == "abort":
            # Also if its line is full (503), or if the request's grammar is not one (400).
            raise failure_in_stream({"code": finish.status_code, "message": finish.message})
        new = max(meta.completion_tokens - self._seen, 0)
        if new > len(output.output_ids):
            raise StreamBroke("it counts more tokens than it sent")
        self._seen += new
        ids = output.output_ids[-new:] if new else []
        self._tokenizer.check(ids)
        if finish is not None and finish.type == "stop" and ids and self._ends(ids[-1]):
            ids[-1] = self._tokenizer.end(ids[-1])
        logprobs: list[float] = []
        tops: Sequence[Top] = ()
        if self._job.logprobs is not None and new:
            logprobs = [_value(entry) for entry in _last(meta.output_token_logprobs or [], new)]
            tops = self._tops(
                _last(meta.output_top_logprobs or [None] * new, new),
                _last(meta.output_token_ids_logprobs or [None] * new, new),
            )
            if len(logprobs) != len(ids) or len(tops) != len(ids):
                raise Incapable("it did not send one log-probability for each token")
        events = self._prefilled(meta)
        reason = None if finish is None else self._stream.end_reason(finish.type)
        events += self._stream.sampled(TokenDelta(self._seq, ids, logprobs, tops, reason))
        if finish is not None:
            events.append(self._stream.counted(meta.prompt_tokens, meta.cached_tokens))
        return events

    def _ends(self, token: int) -> bool:
        """Returns whether a last token is an end token, which is no text.

        Some grammars end at their last token of text instead.
        """
        return token not in stop_ids_of(self._job) and self._job.constraint is None

    def _prefilled(self, meta: _MetaInfo) -> list[Event]:
        k = self._job.prompt_logprobs
        if k is None or self._stream.begun:
            return self._stream.prefilled()
        prompt = len(self._job.prompt_ids)
        entries = meta.input_token_logprobs or []
        if len(entries) < prompt:
            raise Incapable("it did not score the whole prompt")
        values = [_value(entry) for entry in entries[1:prompt]]
        nothing: list[list[_Entry] | None] = [None] * prompt
        tops = self._tops(
            (meta.input_top_logprobs or nothing)[1:prompt],
            (meta.input_token_ids_logprobs or nothing)[1:prompt],
        )
        if len(tops) != len(values):
            raise Incapable("it did not score the whole prompt")
        return self._stream.prefilled(scored_prompt(values, tops, k, self._job.scored_ids))

    def _tops(
        self,
        likeliest: Sequence[list[_Entry] | None],
        asked: Sequence[list[_Entry] | None],
    ) -> Sequence[Top]:
        """Returns the likeliest tokens of each position, with those that the job asks for."""
        if len(likeliest) != len(asked):
            raise Incapable("it did not score the tokens that were asked for")
        return gathered(map(self._top, likeliest, asked), len(likeliest))

    def _top(self, likeliest: list[_Entry] | None, asked: list[_Entry] | None) -> Top:
        entries = [*(likeliest or ()), *(asked or ())]
        self._tokenizer.check([i for _, i, *_ in entries])
        return [(entry[1], _value(entry)) for entry in entries]


def _failure(error: object) -> UpstreamFailure:
    """Returns the failure of an error event. What is wrong with a request is a message alone."""
    bare = isinstance(error, dict) and error.keys() == {"message"}
    return clients_fault(error) if bare else failure_in_stream(error)


def _grammar(grammar: OutputGrammar) -> dict[str, str]:
    """Returns the sampling parameter of a grammar that is not ``unusable``."""
    match grammar.kind:
        case "json":
            return {"json_schema": grammar.text}
        case "regex":
            return {"regex": grammar.text}
        case "choice":
            return {"ebnf": gbnf_of_choices(grammar)}
        case "grammar":
            return {"ebnf": grammar.text}


def _last(items: Sequence[Any], count: int) -> Sequence[Any]:
    return items[-count:] if count else []


def _value(entry: _Entry) -> float:
    """Returns a log-probability. Its JSON writes null for -inf, and for a prompt's first token.

    Some of its versions write the lowest number instead.
    """
    return LOWEST if entry[0] is None else max(entry[0], LOWEST)
