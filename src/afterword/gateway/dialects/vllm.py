"""vLLM, by its source (0.32.0): ids in the stream, prompt log-probabilities by ``echo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterword.core.job import Job
from afterword.gateway.dialects.chunks import ChoiceDelta, IdResolver
from afterword.gateway.dialects.completions import CompletionsDialect, body_of
from afterword.gateway.dialects.dialect import AnyTokenizer, Facts, identity, is_greedy
from afterword.gateway.dialects.routes import facts_of, model_of
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer

_MOST_LOGPROBS = 20


class _Version(msgspec.Struct):
    version: str = ""


class _Prompt(msgspec.Struct):
    prompt: str


class VllmDialect(CompletionsDialect):
    """vLLM, by its source (0.32.0): ids in the stream, prompt log-probabilities by ``echo``."""

    name = "vllm"
    title = "vLLM"
    notes: Mapping[str, str] = {
        "seed": "as far as it keeps them",
        "cached_tokens": "with its `--enable-prompt-tokens-details`",
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
        body = body_of(job, seqs, facts, list(job.prompt_ids)) | {
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

    def _resolver(self, tokenizer: AnyTokenizer) -> IdResolver:
        def ended(choice: ChoiceDelta) -> list[int]:
            ids = choice.token_ids or []
            if choice.finish_reason == "stop" and ids and isinstance(tokenizer, RemoteTokenizer):
                # No stop strings are sent, so that only an end token can be meant.
                ids[-1] = tokenizer.end(ids[-1])
            return ids

        return IdResolver(ended, _numbered)


def _numbered(token: str) -> int:
    """``token_id:123``, as vLLM writes ids where it is asked for them."""
    try:
        return int(token.removeprefix("token_id:"))
    except ValueError:
        raise StreamBroke("it did not write tokens as ids") from None
