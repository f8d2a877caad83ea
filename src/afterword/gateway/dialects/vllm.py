"""The dialect of vLLM: ids in the stream, log-probabilities of prompts through ``echo``.

Source of the format: vLLM 0.32.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterword.core.job import Job
from afterword.gateway.dialects.chunk_reader import IdResolver
from afterword.gateway.dialects.chunks import ChoiceDelta
from afterword.gateway.dialects.completions import (
    CompletionsDialect,
    body_of,
    extensions_of,
)
from afterword.gateway.dialects.dialect import (
    AnyTokenizer,
    Facts,
    identity,
    is_greedy,
    stop_ids_of,
)
from afterword.gateway.dialects.routes import facts_of, model_of
from afterword.gateway.dialects.token_names import numbered
from afterword.gateway.failures import Incapable
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer

_MOST_LOGPROBS = 20


class _Version(msgspec.Struct):
    version: str = ""


class _Prompt(msgspec.Struct):
    prompt: str


class VllmDialect(CompletionsDialect):
    """vLLM: every feature; it keeps seeds as far as its own batches allow."""

    name = "vllm"
    title = "vLLM"
    lacks: Mapping[str, str] = {
        "penalty_range": "has no such parameter",
        "typical_p": "has no such parameter",
        "typical_min_p": "has no such parameter",
        "xtc": "has no such parameter",
        "dry": "has no such parameter",
        "dry_unbroken": "has no such parameter",
        "ranks": "streams no ranks of a prompt's tokens",
        "scored_ids_and_top": "scores these tokens alone, and only where it generates",
        "structured_scores": "scores what the grammar has masked already",
    }
    notes: Mapping[str, str] = {
        "special": "tokens with the usual names: `<\\|im_start\\|>`, `<s>`, `[INST]`",
        "structured": "yes; the server's backend decides which grammars it takes",
        "seed": "as far as the server keeps seeds",
        "cached_tokens": "if started with `--enable-prompt-tokens-details`",
    }

    async def introspect(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await model_of(api, name)
        root = api.address.root
        version = (await api.get(f"{root}/version", _Version)).version

        async def spell(ids: Sequence[int]) -> str:
            body = {"model": model.id, "tokens": list(ids)}
            return (await api.post(f"{root}/detokenize", body, _Prompt)).prompt

        return await facts_of(
            api,
            model,
            identity=identity(self.name, version, model.id, model.root),
            max_logprobs=_MOST_LOGPROBS,
            spell=spell,
        )

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """Returns single siblings if the job is greedy: it refuses several greedy ones together."""
        return [[seq] for seq in range(job.n)] if is_greedy(job) else [range(job.n)]

    def request(
        self,
        api: Api,
        job: Job,
        seqs: Sequence[int],
        facts: Facts,
        tokenizer: AnyTokenizer,  # noqa: ARG002 - the prompt is ids
    ) -> tuple[str, Mapping[str, object]]:
        """See ``Dialect``."""
        sampling = job.sampling
        greedy = is_greedy(job)
        body = (
            body_of(job, seqs, facts, list(job.prompt_ids))
            | extensions_of(job)
            | {
                # All values are explicit, because generation_config sets other defaults.
                "temperature": 0 if greedy else sampling.temperature,
                "top_p": 1 if greedy else sampling.top_p,
                "top_k": 0 if greedy else sampling.top_k,
                "min_p": 0 if greedy else sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "min_tokens": sampling.min_tokens,
                "ignore_eos": sampling.ignore_eos,
                "seed": job.seed,
                "return_token_ids": True,
            }
        )
        if job.logprobs is not None:
            body |= {
                "logprobs": max(job.logprobs, job.prompt_logprobs or 0),
                "echo": job.prompt_logprobs is not None,
                "return_tokens_as_token_ids": True,
            }
        return f"{api.address.base}/completions", body

    def _resolver(self, tokenizer: AnyTokenizer, job: Job) -> IdResolver:
        assert isinstance(tokenizer, RemoteTokenizer)  # noqa: S101 - it has a vocabulary

        def ended(choice: ChoiceDelta) -> list[int]:
            ids = choice.token_ids
            if ids is None:
                return tokenizer.pieces.spell(choice.text.encode()) if choice.text else []
            tokenizer.check(ids)
            if choice.finish_reason == "stop" and ids and ids[-1] not in stop_ids_of(job):
                # The request has no stop strings, so an end token has ended the choice.
                ids[-1] = tokenizer.end(ids[-1])
            return ids

        def id_of(token: str) -> int:
            number = numbered(token)
            if number is None:
                raise Incapable("it did not write its tokens as ids")
            tokenizer.check((number,))
            return number

        return IdResolver(ended, id_of)
