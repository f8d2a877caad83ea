"""The dialect of Afterword. Source of the format: ``docs/contract.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import msgspec

from afterword.core.job import Job
from afterword.core.token_text import piece_of
from afterword.core.wire import Vocabulary
from afterword.gateway.dialects.chunk_reader import IdResolver
from afterword.gateway.dialects.chunks import ChoiceDelta
from afterword.gateway.dialects.completions import (
    CompletionsDialect,
    body_of,
    dry_fields,
    extensions_of,
)
from afterword.gateway.dialects.dialect import AnyTokenizer, Facts, stop_ids_of
from afterword.gateway.dialects.routes import model_of
from afterword.gateway.dialects.token_names import numbered
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer


class _Info(msgspec.Struct):
    vocabulary: Vocabulary
    chat_template: str | None = None


class AfterwordDialect(CompletionsDialect):
    """Afterword in front of Afterword: every feature, exactly. Token names give the ids."""

    name = "afterword"
    title = "Afterword"
    notes: Mapping[str, str] = {"seed": "yes, as far as the servers behind keep seeds"}

    async def introspect(self, api: Api, name: str) -> Facts:
        """See ``Dialect``."""
        model = await model_of(api, name)
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
        except (KeyError, ValueError, TypeError, OverflowError):
            raise StreamBroke("its list of models lacks the facts that Afterword gives") from None

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
        body = (
            body_of(job, seqs, facts, list(job.prompt_ids))
            | extensions_of(job)
            | {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "min_tokens": sampling.min_tokens,
                "ignore_eos": sampling.ignore_eos,
                "seed": job.seed,
                # Tokens are named only in log-probabilities, so they are always requested.
                "logprobs": max(job.logprobs or 0, job.prompt_logprobs or 0),
                "return_tokens_as_token_ids": True,
                "echo": job.prompt_logprobs is not None,
            }
        )
        if sampling.typical_p < 1:
            body["typical_p"] = sampling.typical_p
        if sampling.xtc_probability:
            body["xtc_probability"] = sampling.xtc_probability
            body["xtc_threshold"] = sampling.xtc_threshold
        body |= dry_fields(sampling)
        if job.prompt_ranks:
            # The echo has the other scores.
            body["prompt_logprobs"] = 0
        return f"{api.address.base}/completions", body

    def _resolver(self, tokenizer: AnyTokenizer, job: Job) -> IdResolver:
        def named(choice: ChoiceDelta) -> list[int]:
            if choice.logprobs is not None:
                ids = [id_of(token) for token in choice.logprobs.tokens]
                if choice.finish_reason == "stop" and ids:
                    ids[-1] = ended(ids[-1])
                return ids
            return tokenizer.pieces.spell(choice.text.encode()) if choice.text else []

        def ended(token: int) -> int:
            """Returns the last id of a choice, which may be an end token of the servers behind."""
            if not isinstance(tokenizer, RemoteTokenizer) or token >= len(tokenizer.pieces):
                return token
            if token in stop_ids_of(job) or job.constraint is not None:
                return token
            return tokenizer.end(token)

        def id_of(token: str) -> int:
            number = numbered(token)
            if number is None:
                # The upstream is a gateway, and its own upstream did not report this id.
                return tokenizer.pieces.id_of(piece_of(token))
            if isinstance(tokenizer, RemoteTokenizer):
                tokenizer.check((number,))
            return number

        return IdResolver(named, id_of)
