"""The dialect of hosted endpoints like OpenAI's: text in, text out.

Source of the format: OpenAI's API reference of ``/v1/completions``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterword.core.job import Job
from afterword.core.token_text import piece_of
from afterword.gateway.dialects.chunk_reader import IdResolver, UsageCountReader
from afterword.gateway.dialects.chunks import ChoiceDelta
from afterword.gateway.dialects.completions import CompletionsDialect, body_of
from afterword.gateway.dialects.dialect import (
    UNKNOWN_CONTEXT,
    AnyTokenizer,
    Facts,
    Reader,
    identity,
)
from afterword.gateway.dialects.routes import model_of
from afterword.gateway.dialects.stream_reader import StreamReader
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import TextTokenizer

_MOST_PARTS = 64
_MOST_LOGPROBS = 5
"""The limit of OpenAI's endpoint, which other endpoints imitate."""


class OpenaiDialect(CompletionsDialect):
    """Any hosted endpoint: text in, text out, and log-probabilities if the endpoint has them."""

    name = "openai"
    title = "an OpenAI-like endpoint"
    lacks: Mapping[str, str] = {
        "ids": "has no tokenizer",
        "suffix": "has no tokenizer",
        "ranks": "does not report which tokens of a prompt it scored",
        "scoring": "does not report which tokens of a prompt it scored",
        "top_k": "has no such parameter",
        "min_p": "has no such parameter",
        "min_tokens": "has no such parameter",
        "ignore_eos": "has no such parameter",
        "repetition_penalty": "has no such parameter",
        "penalty_range": "has no such parameter",
        "typical_p": "has no such parameter",
        "typical_min_p": "has no such parameter",
        "xtc": "has no such parameter",
        "dry": "has no such parameter",
        "dry_unbroken": "has no such parameter",
        "allowed_ids": "has no tokenizer",
        "stop_ids": "has no tokenizer",
        "returned_ids": "has no tokenizer",
        "scored_ids": "has no tokenizer",
        "scored_ids_and_top": "has no tokenizer",
        "structured": "has no such parameter",
        "structured_scores": "has no such parameter",
        "structured_truncation": "has no such parameter",
        "cache_salt": "has no such parameter",
    }
    notes: Mapping[str, str] = {
        "text": "yes, `max_tokens` must be given",
        "special": "the endpoint sends none",
        "logprobs": "if the endpoint has them, at most 5",
        "bytes": "as the endpoint writes them",
        "seed": "the client's own, as far as the endpoint keeps seeds",
        "usage": "the endpoint's count; without one, an estimate",
        "cached_tokens": "if the endpoint reports them",
    }

    def health(self, api: Api) -> str:
        """Returns the list of models, the only path that every endpoint has."""
        return f"{api.address.base}/models"

    async def introspect(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await model_of(api, name)
        return Facts(
            model=model.id,
            context_tokens=UNKNOWN_CONTEXT,
            max_logprobs=_MOST_LOGPROBS,
            identity=identity(self.name, api.address.origin, model.id, model.root),
        )

    def request(
        self, api: Api, job: Job, seqs: Sequence[int], facts: Facts, tokenizer: AnyTokenizer
    ) -> tuple[str, Mapping[str, object]]:
        """See ``Dialect``."""
        assert isinstance(tokenizer, TextTokenizer)  # noqa: S101 - it has no vocabulary
        sampling = job.sampling
        prompt = tokenizer.text(job.prompt_ids)
        # Without a prompt, the endpoint itself starts a document.
        unscoped = msgspec.structs.replace(job, cache_scope="")
        body = body_of(unscoped, seqs, facts, prompt or None) | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if job.seeded:
            # Not one of ours: some endpoints have no seeds, or seeds of 32 bits.
            body["seed"] = job.seed
        if job.logprobs is not None:
            body["logprobs"] = job.logprobs
        return f"{api.address.base}/completions", body

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        stream = StreamReader(
            index, job, seqs, tokenizer.end_ids,
            estimated=True,
            # A chunk may have a part of a token, or one character.
            most=None if job.logprobs is not None else job.max_tokens * _MOST_PARTS,
        )  # fmt: skip
        pieces = _named if job.logprobs is not None else _written
        return UsageCountReader(stream, job, pieces(tokenizer))


def _written(tokenizer: AnyTokenizer) -> IdResolver:
    """Returns a resolver of text: a chunk is as many tokens as it seems."""

    def ids(choice: ChoiceDelta) -> list[int]:
        return tokenizer.pieces.spell(choice.text.encode()) if choice.text else []

    return IdResolver(ids, _no_names)


def _no_names(token: str) -> int:
    raise StreamBroke(f"a name of a token was not asked for: {token!r}")


def _named(tokenizer: AnyTokenizer) -> IdResolver:
    """Returns a resolver of the names in log-probabilities."""
    written = _written(tokenizer)

    def ids(choice: ChoiceDelta) -> list[int]:
        if choice.logprobs is not None and choice.logprobs.tokens:
            return [id_of(token) for token in choice.logprobs.tokens]
        return written.ids(choice)

    def id_of(token: str) -> int:
        return tokenizer.pieces.id_of(piece_of(token))

    return IdResolver(ids, id_of)
