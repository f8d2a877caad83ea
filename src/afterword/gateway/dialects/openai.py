"""Any hosted endpoint of OpenAI's kind: text in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afterword.core.job import Job
from afterword.gateway.dialects.chunks import ChoiceDelta, IdResolver, UsageCountReader, piece_of
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
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import TextTokenizer

_MOST_LOGPROBS = 5
"""What OpenAI's endpoint gives, and so whoever imitates it."""


class OpenaiDialect(CompletionsDialect):
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
    ) -> tuple[str, object]:
        """See ``Dialect``."""
        assert isinstance(tokenizer, TextTokenizer)  # noqa: S101 - it has no vocabulary
        sampling = job.sampling
        prompt = tokenizer.text(job.prompt_ids)
        # An empty prompt is what the endpoint itself takes for the start of a document.
        body = body_of(job, seqs, facts, prompt or None) | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": job.seed,
        }
        if job.logprobs is not None:
            body["logprobs"] = job.logprobs
        return f"{api.address.base}/completions", body

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """See ``Dialect``."""
        stream = StreamReader(index, job, seqs, tokenizer.end_ids)
        return UsageCountReader(stream, job, self._resolver(tokenizer))

    def _resolver(self, tokenizer: AnyTokenizer) -> IdResolver:
        def pieces(choice: ChoiceDelta) -> list[int]:
            if choice.logprobs is not None:
                return [id_of(token) for token in choice.logprobs.tokens]
            return [tokenizer.id_of(choice.text.encode())] if choice.text else []

        def id_of(token: str) -> int:
            return tokenizer.id_of(piece_of(token))

        return IdResolver(pieces, id_of)
