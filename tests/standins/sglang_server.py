"""A toy model behind the routes of SGLang 0.5.23, with the formats of its source.

Sources: ``srt/entrypoints/http_server.py`` (``/generate``), ``srt/managers/tokenizer_manager.py``
and ``openai/serving_tokenize.py``. Outputs list all tokens so far; log-probabilities are triples.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
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
    GrammarKind,
    Job,
    OutputGrammar,
    Prefilled,
    Sampled,
    SamplingParams,
    ScoredPrompt,
)
from afterword.engine.batching.engine import BatchingEngine

Entry = tuple[float | None, int, None]
_GRAMMARS: Mapping[str, GrammarKind] = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
_FIELDS = {
    "input_ids", "sampling_params", "stream", "extra_key", "return_logprob", "top_logprobs_num",
    "logprob_start_len", "token_ids_logprob",
}  # fmt: skip
_PARAMS = {
    "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "min_new_tokens", "ignore_eos", "sampling_seed",
    "logit_bias", "stop_token_ids", *_GRAMMARS,
}  # fmt: skip


class Sglang:
    """The routes over one engine; ``incremental`` is its ``--incremental-streaming-output``."""

    def __init__(self, engine: BatchingEngine, *, name: str, incremental: bool = False) -> None:
        self._engine = engine
        self._name = name
        self._incremental = incremental
        post = ["POST"]
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/server_info", self.server_info),
                Route("/health", self.health),
                Route("/tokenize", self.tokenize, methods=post),
                Route("/detokenize", self.detokenize, methods=post),
                Route("/generate", self.generate, methods=post),
            ]
        )

    async def models(self, _: Request) -> Response:
        card = {"id": self._name, "object": "model", "owned_by": "sglang", "root": self._name,
                "max_model_len": self._engine.card.context_tokens}  # fmt: skip
        return JSONResponse({"object": "list", "data": [card]})

    async def server_info(self, _: Request) -> Response:
        return JSONResponse({"version": "0.5.23", "internal_states": []})

    async def health(self, _: Request) -> Response:
        return Response(status_code=200)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        ids = self._engine.tokenizer.encode(body["prompt"])
        bos = self._engine.tokenizer.bos_id
        if body["add_special_tokens"] and bos is not None:
            ids = [bos, *ids]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": 256})

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        assert body["skip_special_tokens"] is False
        pieces = self._engine.tokenizer.pieces
        raw = b"".join(pieces[i] for i in body["tokens"] if i < len(pieces))
        return JSONResponse({"text": raw.decode(errors="replace")})

    async def generate(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        assert body["stream"]
        try:
            job = _job(body, _constraint(body["sampling_params"], self._engine))
        except UnusableGrammar as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=400)
        return StreamingResponse(self._stream(body, job), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], job: Job) -> AsyncIterator[str]:
        k = job.logprobs or 0
        width = k + len(job.scored_ids)
        meta: dict[str, Any] = {"id": "0", "prompt_tokens": len(job.prompt_ids),
                                "cached_tokens": 0, "finish_reason": None}  # fmt: skip
        ids: list[int] = []
        values: list[Entry] = []
        tops: list[list[Entry]] = []
        scores: list[list[Entry]] = []
        told = 0
        async with self._engine.open([job]) as generation:
            async for events in generation:
                for event in events:
                    match event:
                        case Prefilled():
                            meta["cached_tokens"] = event.cached_tokens
                            if event.scored is not None:
                                meta |= _scored(job, event.scored)
                        case Sampled():
                            ids += event.tokens
                            for at, token in enumerate(event.tokens):
                                if event.logprobs:
                                    values.append((event.logprobs[at], token, None))
                                    row = slice(at * width, (at + 1) * width)
                                    top = _top(event.top_ids[row], event.top_logprobs[row])
                                    tops.append(top[:k])
                                    scores.append(_asked(job, top))
                        case Ended():
                            meta["finish_reason"] = {"type": event.reason, "matched": ids[-1:]}
                start = told if self._incremental else 0
                meta["completion_tokens"] = len(ids)
                if body.get("return_logprob"):
                    meta["output_token_logprobs"] = values[start:]
                    meta["output_top_logprobs"] = tops[start:]
                    meta["output_token_ids_logprobs"] = scores[start:]
                told = len(ids)
                output = {"text": "", "output_ids": ids[start:], "meta_info": meta}
                yield f"data: {json.dumps(output)}\n\n"
        yield "data: [DONE]\n\n"


def _top(ids: Any, values: Any) -> list[Entry]:
    return [(value, token, None) for token, value in zip(ids, values, strict=True)]


def _asked(job: Job, row: list[Entry]) -> list[Entry]:
    """Returns the entries of ``token_ids_logprob``, also of those that are among the likeliest."""
    values = {token: value for value, token, _ in row if token != NO_TOKEN}
    return [(values[token], token, None) for token in job.scored_ids]


def _scored(job: Job, scored: ScoredPrompt) -> dict[str, Any]:
    values: list[Entry] = [(None, job.prompt_ids[0], None)]
    tops: list[list[Entry] | None] = [None]
    scores: list[list[Entry] | None] = [None]
    k = job.prompt_logprobs or 0
    width = k + len(job.scored_ids)
    for at, token in enumerate(job.prompt_ids[1:]):
        values.append((scored.logprobs[at], token, None))
        row = slice(at * width, (at + 1) * width)
        top = _top(scored.top_ids[row], scored.top_logprobs[row])
        tops.append(top[:k])
        scores.append(_asked(job, top))
    return {
        "input_token_logprobs": values,
        "input_top_logprobs": tops,
        "input_token_ids_logprobs": scores,
    }


def _constraint(params: dict[str, Any], engine: BatchingEngine) -> Constraint | None:
    """Compiles ``json_schema``, ``regex`` or ``ebnf``. Raises ``UnusableGrammar``."""
    for name, kind in _GRAMMARS.items():
        if name in params:
            return engine.constraint(OutputGrammar(kind, params[name]))
    return None


def _job(body: dict[str, Any], constraint: Constraint | None) -> Job:
    assert set(body) <= _FIELDS
    params = body["sampling_params"]
    assert set(params) <= _PARAMS
    assert params["repetition_penalty"] == 1
    scored = body.get("logprob_start_len", -1) == 0
    k = body.get("top_logprobs_num") if body.get("return_logprob") else None
    return Job(
        prompt_ids=tuple(body["input_ids"]),
        n=1,
        max_tokens=params["max_new_tokens"],
        sampling=SamplingParams(
            temperature=params["temperature"],
            top_p=params["top_p"],
            top_k=max(params["top_k"], 0),
            min_p=params["min_p"],
            presence_penalty=params["presence_penalty"],
            frequency_penalty=params["frequency_penalty"],
            logit_bias=tuple((int(i), v) for i, v in params.get("logit_bias", {}).items()),
            min_tokens=params["min_new_tokens"],
            ignore_eos=params["ignore_eos"],
        ),
        seed=params["sampling_seed"],
        logprobs=k,
        prompt_logprobs=k if scored else None,
        scored_ids=tuple(body.get("token_ids_logprob", ())),
        # With ``ignore_eos`` it bans them before ``min_new_tokens``, but goes on behind them.
        extra_end_ids=tuple(params.get("stop_token_ids", ())),
        constraint=constraint,
        cache_scope=body.get("extra_key", ""),
    )
