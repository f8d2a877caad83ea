"""A toy model behind the routes of vLLM 0.32.0, with the formats and refusals of its source.

Sources: ``vllm/entrypoints/openai/completion/{protocol,serving}.py``, ``serve/tokenize`` and
``sampling_params.py``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from afterword.core.errors import UnusableGrammar
from afterword.core.job import (
    NO_TOKEN,
    Constraint,
    Ended,
    Job,
    OutputGrammar,
    Prefilled,
    Sampled,
    SamplingParams,
)
from afterword.engine.batching.engine import BatchingEngine

_FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options",
    "seed", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs",
    "echo", "top_k", "min_p", "min_tokens", "ignore_eos", "cache_salt", "return_token_ids",
    "return_tokens_as_token_ids", "allowed_token_ids", "stop_token_ids", "logprob_token_ids",
    "structured_outputs",
}  # fmt: skip


class Vllm:
    """The routes, over engines by name."""

    def __init__(self, engines: dict[str, BatchingEngine]) -> None:
        self._engines = engines
        self._requests = count()
        post = ["POST"]
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/version", self.version),
                Route("/health", self.health),
                Route("/tokenize", self.tokenize, methods=post),
                Route("/detokenize", self.detokenize, methods=post),
                Route("/v1/completions", self.completions, methods=post),
            ]
        )

    async def models(self, _: Request) -> Response:
        cards: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": f"org/{name}",
             "parent": None, "max_model_len": engine.card.context_tokens, "permission": []}
            for name, engine in self._engines.items()
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": cards})

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def health(self, _: Request) -> Response:
        return Response(status_code=200)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        engine = self._engines[body["model"]]
        ids = engine.tokenizer.encode(body["prompt"])
        bos = engine.tokenizer.bos_id
        if body["add_special_tokens"] and bos is not None:
            ids = [bos, *ids]
        context = engine.card.context_tokens
        shape = {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": None}
        return JSONResponse(shape)

    async def detokenize(self, request: Request) -> Response:
        """Decodes like a fast tokenizer: ids beyond the vocabulary have no text."""
        body = await request.json()
        pieces = self._engines[body["model"]].tokenizer.pieces
        raw = b"".join(pieces[i] for i in body["tokens"] if i < len(pieces))
        return JSONResponse({"prompt": raw.decode(errors="replace")})

    async def completions(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        assert set(body) <= _FIELDS
        assert body["stream"]
        assert body["stream_options"] == {"include_usage": True}
        engine = self._engines.get(body["model"])
        if engine is None:
            return _refused(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        wrong = _wrong(body, engine)
        if wrong is not None:
            return _refused(wrong, "BadRequestError", 400)
        try:
            job = _job(body, _constraint(body, engine))
        except UnusableGrammar as error:
            return _refused(f"Grammar error: {error}", "BadRequestError", 400)
        name = f"cmpl-{next(self._requests):032x}"
        return StreamingResponse(_stream(engine, job, body, name), media_type="text/event-stream")


def _refused(message: str, kind: str, code: int) -> Response:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=code)


def _wrong(body: dict[str, Any], engine: BatchingEngine) -> str | None:
    """Returns the error of a body that ``SamplingParams`` and the validators refuse."""
    if body["max_tokens"] < 1 and not (body.get("echo") and body["max_tokens"] == 0):
        return f"max_tokens must be at least 1, got {body['max_tokens']}."
    if not 0 < body["top_p"] <= 1:
        return f"top_p must be in (0, 1], got {body['top_p']}."
    if body["temperature"] == 0 and body["n"] > 1:
        return f"n must be 1 when using greedy sampling, got {body['n']}."
    if (body.get("logprobs") or 0) > 20:
        return f"Requested sample logprobs of {body['logprobs']}, which is greater than max: 20"
    context = engine.card.context_tokens
    if len(body["prompt"]) + body["max_tokens"] > context:
        return f"This model's maximum context length is {context} tokens."
    return _wrong_extension(body)


def _wrong_extension(body: dict[str, Any]) -> str | None:
    if body["repetition_penalty"] <= 0:
        return f"repetition_penalty must be greater than zero, got {body['repetition_penalty']}."
    if "logprob_token_ids" in body:
        if body.get("logprobs") is None:
            return "when using `logprob_token_ids`, `logprobs` must be set."
        if body.get("echo") and body["max_tokens"] == 0:
            return "`logprob_token_ids` is not supported when `echo=True` and `max_tokens=0`."
    return None


def _constraint(body: dict[str, Any], engine: BatchingEngine) -> Constraint | None:
    """Compiles the grammar as ``StructuredOutputsParams`` has it. Raises ``UnusableGrammar``."""
    if "structured_outputs" not in body:
        return None
    ((kind, given),) = body["structured_outputs"].items()
    text = json.dumps(given) if kind == "choice" else given
    assert isinstance(text, str)
    return engine.constraint(OutputGrammar(kind, text))


def _job(body: dict[str, Any], constraint: Constraint | None) -> Job:
    logprobs = body.get("logprobs")
    scored_ids = tuple(body.get("logprob_token_ids", ()))
    if scored_ids:
        # It scores these instead of the likeliest ones, and only generated tokens.
        logprobs = 0
    return Job(
        prompt_ids=tuple(body["prompt"]),
        n=body["n"],
        max_tokens=body["max_tokens"] or 1,
        sampling=SamplingParams(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            min_p=body["min_p"],
            presence_penalty=body.get("presence_penalty", 0.0),
            frequency_penalty=body.get("frequency_penalty", 0.0),
            logit_bias=tuple((int(i), v) for i, v in body.get("logit_bias", {}).items()),
            repetition_penalty=body["repetition_penalty"],
            allowed_ids=tuple(body.get("allowed_token_ids", ())),
            min_tokens=body["min_tokens"],
            ignore_eos=body["ignore_eos"],
        ),
        seed=body["seed"],
        logprobs=logprobs,
        prompt_logprobs=logprobs if body.get("echo") else None,
        scored_ids=scored_ids,
        stop_ids=tuple(body.get("stop_token_ids", ())),
        constraint=constraint,
        cache_scope=body.get("cache_salt", ""),
    )


class _Choice:
    """The tokens of one choice that its next chunk sends."""

    def __init__(self, pieces: Sequence[bytes], end_ids: frozenset[int]) -> None:
        self._pieces = pieces
        self._end_ids = end_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.ids: list[int] = []
        self.entries: list[tuple[int, float, dict[int, float]]] = []
        self.finish: str | None = None
        self.echoed = False

    def add(self, event: Sampled) -> None:
        self.ids += event.tokens
        k = len(event.top_ids) // len(event.tokens)
        for at, (token, value) in enumerate(zip(event.tokens, event.logprobs, strict=False)):
            top = slice(at * k, (at + 1) * k)
            likely = dict(zip(event.top_ids[top], event.top_logprobs[top], strict=True))
            likely.pop(NO_TOKEN, None)
            self.entries.append((token, value, likely))

    def text(self) -> str:
        raw = b"".join(self._pieces[i] for i in self.ids if i not in self._end_ids)
        return self._decoder.decode(raw, final=self.finish is not None)


def _written(
    entries: Sequence[tuple[int, float | None, dict[int, float] | None]],
) -> dict[str, Any]:
    """Returns log-probabilities like ``_create_completion_logprobs``, with ids for names."""
    tops = [
        None if top is None or value is None
        else {f"token_id:{i}": max(v, -9999.0) for i, v in {token: value, **top}.items()}
        for token, value, top in entries
    ]  # fmt: skip
    return {
        "text_offset": [0] * len(entries),
        "token_logprobs": [v if v is None else max(v, -9999.0) for _, v, _ in entries],
        "tokens": [f"token_id:{token}" for token, _, _ in entries],
        "top_logprobs": tops,
    }


async def _stream(
    engine: BatchingEngine, job: Job, body: dict[str, Any], name: str
) -> AsyncIterator[str]:
    pieces, end_ids = engine.tokenizer.pieces, engine.tokenizer.end_ids
    choices = [_Choice(pieces, end_ids) for _ in range(job.n)]
    head = {"id": name, "object": "text_completion", "created": 1, "model": body["model"]}
    prompt: list[tuple[int, float | None, dict[int, float] | None]] = []
    made = cached = 0
    async with engine.open([job]) as generation:
        async for events in generation:
            touched: dict[int, None] = {}
            for event in events:
                match event:
                    case Prefilled():
                        cached = event.cached_tokens
                        prompt = _prompt_entries(job, event)
                    case Sampled(seq=seq):
                        made += len(event.tokens)
                        choices[seq].add(event)
                        touched[seq] = None
                    case Ended(seq=seq):
                        choices[seq].finish = event.reason
                        touched[seq] = None
            for seq in touched:
                yield _frame(head | {"choices": [_chunk(body, choices[seq], seq, prompt)]})
    usage = {"prompt_tokens": len(job.prompt_ids), "completion_tokens": made,
             "total_tokens": len(job.prompt_ids) + made,
             "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
    yield _frame(head | {"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _prompt_entries(
    job: Job, event: Prefilled
) -> list[tuple[int, float | None, dict[int, float] | None]]:
    entries: list[tuple[int, float | None, dict[int, float] | None]] = []
    entries.append((job.prompt_ids[0], None, None))
    if event.scored is not None:
        k = job.prompt_logprobs or 0
        for at, token in enumerate(job.prompt_ids[1:]):
            top = slice(at * k, (at + 1) * k)
            likely = dict(
                zip(event.scored.top_ids[top], event.scored.top_logprobs[top], strict=True)
            )
            entries.append((token, event.scored.logprobs[at], likely))
    return entries


def _chunk(
    body: dict[str, Any],
    choice: _Choice,
    index: int,
    prompt: Sequence[tuple[int, float | None, dict[int, float] | None]],
) -> dict[str, Any]:
    entries: list[tuple[int, float | None, dict[int, float] | None]] = [*choice.entries]
    text = choice.text()
    if body.get("echo") and not choice.echoed:
        choice.echoed = True
        # vLLM generates a token even with max_tokens 0, but does not send it.
        entries = [*prompt] if body["max_tokens"] == 0 else [*prompt, *entries]
        text = "" if body["max_tokens"] == 0 else text
    made = {
        "index": index,
        "text": text,
        "logprobs": _written(entries) if body.get("logprobs") is not None else None,
        "finish_reason": choice.finish,
        "stop_reason": None,
        "token_ids": choice.ids if body.get("return_token_ids") else None,
    }
    choice.ids, choice.entries = [], []
    return made


def _frame(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
