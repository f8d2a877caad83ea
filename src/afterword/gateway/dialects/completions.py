"""The base of dialects whose upstreams serve ``/v1/completions`` themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from afterword.core.job import Job, OutputGrammar, SamplingParams
from afterword.gateway.dialects.chunk_reader import ChunkReader, IdResolver
from afterword.gateway.dialects.dialect import AnyTokenizer, Facts, Reader, stop_ids_of
from afterword.gateway.dialects.routes import encode
from afterword.gateway.dialects.stream_reader import StreamReader
from afterword.gateway.transport.api import Api


class CompletionsDialect:
    """A ``Dialect`` without ``introspect`` and ``request``; ``_resolver`` is the subclass's."""

    name = ""
    title = ""
    takes_names_as_text = False
    lacks: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}

    def health(self, api: Api) -> str:
        """See ``Dialect``."""
        return f"{api.address.root}/health"

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:  # noqa: ARG002 - the engine splits names
        """See ``Dialect``."""
        return await encode(api, model, text)

    def unusable(self, grammar: OutputGrammar) -> str | None:  # noqa: ARG002 - it takes all kinds
        """See ``Dialect``."""
        return None

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """See ``Dialect``."""
        return [range(job.n)]

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        return ChunkReader(
            StreamReader(index, job, seqs, tokenizer.end_ids), job, self._resolver(tokenizer, job)
        )

    def _resolver(self, tokenizer: AnyTokenizer, job: Job) -> IdResolver:
        raise NotImplementedError


def body_of(
    job: Job, seqs: Sequence[int], facts: Facts, prompt: str | list[int] | None
) -> dict[str, Any]:
    """Returns the fields that these upstreams know; without a prompt if ``prompt`` is None."""
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
    if job.cache_scope:
        body["cache_salt"] = job.cache_scope
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return body


def extensions_of(job: Job) -> dict[str, Any]:
    """Returns the fields with vLLM's names that a job uses."""
    sampling, constraint = job.sampling, job.constraint
    body: dict[str, Any] = {}
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
        if sampling.repetition_window:
            body["repetition_penalty_range"] = sampling.repetition_window
    if sampling.allowed_ids:
        body["allowed_token_ids"] = sampling.allowed_ids
    stop_ids = stop_ids_of(job)
    if stop_ids:
        body["stop_token_ids"] = stop_ids
    if job.scored_ids:
        body["logprob_token_ids"] = job.scored_ids
    if constraint is not None:
        grammar = constraint.grammar
        text = json.loads(grammar.text) if grammar.kind == "choice" else grammar.text
        body["structured_outputs"] = {grammar.kind: text}
    return body


def dry_fields(sampling: SamplingParams) -> dict[str, Any]:
    """Returns the fields of the DRY penalty, by llama.cpp's names; none if it is off."""
    repetition = sampling.repetition
    if repetition is None:
        return {}
    return {
        "dry_multiplier": repetition.multiplier,
        "dry_base": repetition.base,
        "dry_allowed_length": repetition.allowed_length,
        "dry_penalty_last_n": repetition.window,
        "dry_sequence_breakers": repetition.breaker_texts,
    }
