"""The dialect of llama-server: its own ``/completion``.

Source of the format: llama.cpp's ``tools/server``, as llama-cpp-python 0.3.36 contains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from afterword.core.draws import mix64
from afterword.core.job import Event, Job, OutputGrammar
from afterword.core.wire import LOWEST
from afterword.gateway.dialects.completions import dry_fields
from afterword.gateway.dialects.dialect import (
    AnyTokenizer,
    Facts,
    Reader,
    chosen,
    identity,
    is_greedy,
)
from afterword.gateway.dialects.grammars import SCHEMA_KEYWORDS, gbnf_of_choices, unusable
from afterword.gateway.dialects.introspection import introspect_vocabulary
from afterword.gateway.dialects.routes import read_tokens
from afterword.gateway.dialects.single import SingleReader
from afterword.gateway.dialects.stream_reader import StreamReader, TokenDelta, Top, gathered
from afterword.gateway.failures import Incapable, StreamBroke
from afterword.gateway.lenient import decoder
from afterword.gateway.long_payload import LongPayload
from afterword.gateway.transport.api import Api, failure_in_stream
from afterword.gateway.vocabulary import RemoteTokenizer

_MOST_LOGPROBS = 1000
_MOST_UNREPORTED = 16
"""A character has few tokens. More are those of a server that sends no ids."""
_SAMPLERS = ["penalties", "dry", "temperature", "top_k", "top_p", "min_p", "xtc"]
"""The contract's order; the server's default order has the temperature last."""
_TYPICAL = ["penalties", "dry", "temperature", "top_k", "min_p", "typ_p", "top_p", "xtc"]
_NEXT_TO_NOTHING = 1e-30
"""Its typical sampling fails if a token's probability is 0; so ``min_p`` takes these away first."""


class _Top(msgspec.Struct):
    id: int
    logprob: float


class _Scored(msgspec.Struct):
    id: int
    logprob: float
    top_logprobs: list[_Top] = []


class _Timings(msgspec.Struct):
    cache_n: Any = None


class _Partial(msgspec.Struct):
    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = "none"
    tokens_predicted: int = 0
    tokens_evaluated: Any = None
    completion_probabilities: list[_Scored] = []
    timings: _Timings | None = None
    error: Any = None


class _ModelMeta(msgspec.Struct):
    n_vocab: int
    n_params: int = 0
    size: int = 0


class _Listed(msgspec.Struct):
    id: str
    meta: _ModelMeta


class _ListedModels(msgspec.Struct):
    data: list[_Listed]


class _Defaults(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    default_generation_settings: _Defaults
    build_info: str = ""
    model_path: str = ""
    chat_template: str = ""


class _Content(msgspec.Struct):
    content: str


_decode = decoder(_Partial)


class LlamacppDialect:
    """llama-server: ids and log-probabilities in its own stream, but no scores of prompts."""

    name = "llamacpp"
    title = "llama-server"
    takes_names_as_text = True
    lacks: Mapping[str, str] = {
        "ranks": "does not score prompts",
        "scoring": "does not score prompts",
        "penalties": "counts the prompt's tokens too",
        "min_tokens": "has no such parameter",
        "ignore_eos": "bans end tokens instead of continuing after them",
        "typical_min_p": "has these cuts in another order",
        "dry_unbroken": "needs at least one breaker",
        "allowed_ids": "has no such parameter",
        "returned_ids": "does not report tokens that end inside a character",
        "scored_ids": "has no such parameter",
        "scored_ids_and_top": "has no such parameter",
        "structured_truncation": "cuts before it applies a grammar",
        "cache_salt": "shares all prefixes",
    }
    notes: Mapping[str, str] = {
        "special": "tokens with the usual names: `<\\|im_start\\|>`, `<s>`, `[INST]`",
        "stop_ids": "yes; those that end inside a character are not seen",
        "structured": "yes, but `regex`; grammars in GBNF, and schemas of "
        + ", ".join(f"`{keyword}`" for keyword in SCHEMA_KEYWORDS),
        "bytes": "yes; -9999.0 for tokens that end inside a character, which it does not report",
        "seed": "hashed to 32 bits; kept for one stream at a time",
    }

    def health(self, api: Api) -> str:
        """Returns a path that answers 503 until the model is loaded."""
        return f"{api.address.root}/health"

    async def introspect(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        root = api.address.root
        listed = (await api.get(f"{api.address.base}/models", _ListedModels)).data
        model = next(m for m in listed if m.id == chosen([m.id for m in listed], api, name))
        props = await api.get(f"{root}/props", _Props)

        async def spell(ids: Sequence[int]) -> str:
            return (await api.post(f"{root}/detokenize", {"tokens": list(ids)}, _Content)).content

        async def encode(text: str, *, add_special: bool = False) -> list[int]:
            body = {"content": text, "add_special": add_special, "parse_special": True}
            return await api.ask(f"{root}/tokenize", body, read_tokens)

        meta = model.meta
        return Facts(
            # Its name for a model is the path of the file, which clients must not see.
            model=model.id.rsplit("/", 1)[-1],
            context_tokens=props.default_generation_settings.n_ctx,
            max_logprobs=_MOST_LOGPROBS,
            identity=identity(
                self.name, props.build_info, props.model_path, meta.n_params, meta.size
            ),
            vocabulary=await introspect_vocabulary(spell, encode, size=meta.n_vocab),
            chat_template=props.chat_template or None,
        )

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:  # noqa: ARG002 - it serves one model
        """See ``Dialect``."""
        body = {"content": text, "add_special": False, "parse_special": parse_special}
        return await api.ask(f"{api.address.root}/tokenize", body, read_tokens)

    def unusable(self, grammar: OutputGrammar) -> str | None:
        """See ``Dialect``."""
        return "has no regular expressions" if grammar.kind == "regex" else unusable(grammar)

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """Returns single siblings, because its slots limit its ``n``."""
        return [[seq] for seq in range(job.n)]

    def request(
        self,
        api: Api,
        job: Job,
        seqs: Sequence[int],
        facts: Facts,
        tokenizer: AnyTokenizer,  # noqa: ARG002 - the prompt is ids
    ) -> tuple[str, Mapping[str, object]]:
        """See ``Dialect``."""
        sampling, most = job.sampling, facts.context_tokens
        typical = sampling.typical_p < 1 and not is_greedy(job)
        body: dict[str, Any] = {
            "prompt": list(job.prompt_ids),
            "n_predict": job.max_tokens,
            "stream": True,
            "cache_prompt": True,
            "return_tokens": True,
            "samplers": _TYPICAL if typical else _SAMPLERS,
            "temperature": 0 if is_greedy(job) else sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": _NEXT_TO_NOTHING if typical else sampling.min_p,
            "typical_p": sampling.typical_p if typical else 1,
            "xtc_probability": sampling.xtc_probability,
            "xtc_threshold": sampling.xtc_threshold,
            "repeat_penalty": sampling.repetition_penalty,
            # Not every version knows -1 for prompt and choice, whole.
            "repeat_last_n": min(sampling.repetition_window or most, most),
            "dry_multiplier": 0,
            # Siblings need different seeds. A seed has 32 bits; the highest value means "random".
            "seed": mix64(mix64(job.seed) ^ seqs[0]) % (2**32 - 1),
        }
        if sampling.logit_bias:
            body["logit_bias"] = [
                [token, False if bias <= -100 else bias] for token, bias in sampling.logit_bias
            ]
        body |= dry_fields(sampling)
        if job.constraint is not None:
            body |= _grammar(job.constraint.grammar)
        if job.logprobs is not None:
            body["n_probs"] = max(job.logprobs, 1)
        return f"{api.address.root}/completion", body

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        assert isinstance(tokenizer, RemoteTokenizer)  # noqa: S101 - it has a vocabulary
        stream = StreamReader(index, job, seqs, tokenizer.end_ids)
        return _PartialReader(stream, job, seqs[0], tokenizer)


def _grammar(grammar: OutputGrammar) -> dict[str, object]:
    """Returns the field of a grammar that is not ``unusable``."""
    if grammar.kind == "json":
        return {"json_schema": json.loads(grammar.text)}
    return {"grammar": gbnf_of_choices(grammar) if grammar.kind == "choice" else grammar.text}


class _PartialReader(SingleReader):
    """Reads partial results. The server sends no event for tokens that end inside a character.

    ``tokens_predicted`` counts them, and the text that completes the character has their bytes.
    """

    def __init__(
        self, stream: StreamReader, job: Job, seq: int, tokenizer: RemoteTokenizer
    ) -> None:
        super().__init__(stream, job, seq, tokenizer)
        self._held: TokenDelta | None = None

    def read(self, payload: bytes | LongPayload) -> list[Event]:
        """See ``Reader``."""
        partial = _decode(payload)
        if partial.error:
            raise failure_in_stream(partial.error)
        self._tokenizer.check(partial.tokens)
        events = self._stream.prefilled()
        ids, logprobs, tops = self._unreported(partial)
        ids += partial.tokens
        if self._job.logprobs is not None:
            tops = gathered(self._tops(partial, tops, logprobs), len(ids))
            if len(logprobs) != len(ids):
                raise Incapable("it did not send one log-probability for each token")
        self._seen += len(ids)
        finish = self._stream.end_reason(partial.stop_type) if partial.stop else None
        if self._held is not None:
            events += self._released(
                self._held, ended=partial.stop and partial.stop_type == "eos" and not ids
            )
        delta = TokenDelta(self._seq, ids, logprobs, tops, finish)
        self._held = delta if self._may_end(partial) else None
        if self._held is None:
            events += self._stream.sampled(delta)
        if partial.stop and partial.timings is not None:
            events.append(self._stream.counted(partial.tokens_evaluated, partial.timings.cache_n))
        return events

    def _tops(
        self, partial: _Partial, before: Sequence[Top], logprobs: list[float]
    ) -> Iterator[Top]:
        """Yields the tops of all tokens; appends the log-probabilities of the reported ones."""
        yield from before
        for scored in partial.completion_probabilities:
            logprobs.append(max(scored.logprob, LOWEST))
            self._tokenizer.check([t.id for t in scored.top_logprobs])
            yield [(t.id, max(t.logprob, LOWEST)) for t in scored.top_logprobs]

    def _may_end(self, partial: _Partial) -> bool:
        """Returns whether a part is one token without text: an end token if the end comes next."""
        if partial.stop or partial.content or len(partial.tokens) != 1:
            return False
        (token,) = partial.tokens
        return bool(self._tokenizer.pieces[token]) and token not in self._tokenizer.end_ids

    def _released(self, held: TokenDelta, *, ended: bool) -> list[Event]:
        if ended:
            held.ids[-1] = self._tokenizer.end(held.ids[-1])
        return self._stream.sampled(held)

    def _unreported(self, partial: _Partial) -> tuple[list[int], list[float], Sequence[Top]]:
        """Returns ids, log-probabilities and tops of tokens that the server has left out so far."""
        missing = partial.tokens_predicted - self._seen - len(partial.tokens)
        if missing <= 0:
            return [], [], []
        if missing > self._job.max_tokens:
            raise StreamBroke("it counts more tokens than were asked for")
        tokenizer = self._tokenizer
        if missing > _MOST_UNREPORTED:
            ids = tokenizer.pieces.spell(partial.content.encode())
        elif partial.stop and not partial.content:
            # The text ends inside a character; the server never sends its bytes.
            ids = tokenizer.pieces.spelling(b"", missing)
            if partial.stop_type == "eos" and tokenizer.declared_end_ids:
                ids[-1] = min(tokenizer.declared_end_ids)
        else:
            last = b"".join(
                tokenizer.pieces[i] for i in partial.tokens if i not in tokenizer.end_ids
            )
            spelled = partial.content.encode()
            ids = tokenizer.pieces.spelling(spelled[: len(spelled) - len(last)], missing)
        scored = self._job.logprobs is not None
        nothing: list[Top] = [()] * len(ids)
        return ids, [LOWEST] * len(ids) if scored else [], nothing if scored else []
