"""The protocol of a dialect: what a kind of upstream can do, its requests and its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from afterword.core.errors import ConfigError, InvalidRequest
from afterword.core.job import Event, Job, OutputGrammar
from afterword.core.wire import Vocabulary
from afterword.gateway.long_payload import LongPayload
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer, TextTokenizer

UNKNOWN_CONTEXT = 1 << 30
"""Tokens of context of an upstream that does not report them."""

FEATURES: Mapping[str, Callable[[Job], bool]] = {
    "logprobs": lambda job: job.logprobs is not None,
    "scoring": lambda job: job.prompt_logprobs is not None,
    "penalties": lambda job: bool(job.sampling.presence_penalty or job.sampling.frequency_penalty),
    "top_k": lambda job: job.sampling.top_k > 0,
    "min_p": lambda job: job.sampling.min_p > 0,
    "min_tokens": lambda job: job.sampling.min_tokens > 0,
    "ignore_eos": lambda job: job.sampling.ignore_eos,
    "repetition_penalty": lambda job: job.sampling.repetition_penalty != 1,
    "penalty_range": lambda job: (
        job.sampling.repetition_penalty != 1 and job.sampling.repetition_window > 0
    ),
    "typical_p": lambda job: job.sampling.typical_p < 1,
    "typical_min_p": lambda job: job.sampling.typical_p < 1 and job.sampling.min_p > 0,
    "xtc": lambda job: job.sampling.xtc_probability > 0,
    "dry": lambda job: job.sampling.repetition is not None,
    "dry_unbroken": lambda job: (
        job.sampling.repetition is not None and not job.sampling.repetition.breaker_texts
    ),
    "allowed_ids": lambda job: bool(job.sampling.allowed_ids),
    "stop_ids": lambda job: bool(job.stop_ids),
    "ranks": lambda job: job.prompt_ranks,
    "scored_ids": lambda job: bool(job.scored_ids),
    "scored_ids_and_top": lambda job: (
        bool(job.scored_ids) and (bool(job.logprobs) or job.prompt_logprobs is not None)
    ),
    "structured": lambda job: job.constraint is not None,
    "structured_scores": lambda job: job.constraint is not None and job.logprobs is not None,
    "structured_truncation": lambda job: job.constraint is not None and truncates(job),
}
"""Features that an upstream may lack, and whether a job uses them."""
_PARAMS = {
    "scoring": "echo",
    "penalties": "presence_penalty",
    "penalty_range": "repetition_penalty_range",
    "typical_min_p": "typical_p",
    "xtc": "xtc_probability",
    "dry": "dry_multiplier",
    "dry_unbroken": "dry_sequence_breakers",
    "allowed_ids": "allowed_token_ids",
    "stop_ids": "stop_token_ids",
    "ranks": "prompt_logprobs",
    "scored_ids": "logprob_token_ids",
    "scored_ids_and_top": "logprob_token_ids",
    "structured": "structured_outputs",
    "structured_scores": "logprobs",
    "structured_truncation": "structured_outputs",
}
"""The parameters of features that are named otherwise."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an upstream reports about itself and its model.

    ``model`` is its name there. ``vocabulary`` is None if the upstream has no tokenizer.
    ``identity`` changes with everything that may change an answer.
    """

    model: str
    context_tokens: int
    max_logprobs: int
    identity: str
    batch_invariant: bool = False
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None


class Reader(Protocol):
    """Turns the stream of one request into events."""

    @property
    def over(self) -> bool:
        """Whether every sequence has ended or is closed; ``done`` may still count the tokens."""

    def read(self, payload: bytes | LongPayload) -> list[Event]:
        """Returns the events in the payload of one server-sent event. A thread reads a long one.

        Raises ``UpstreamFailure`` if the upstream reports an error or sends nonsense.
        """

    @property
    def remarks(self) -> Mapping[str, str]:
        """What was odd in the answer, by kind, and what stood there."""

    def done(self, *, said: bool) -> list[Event]:
        """Returns the events of the end of the stream. Called once.

        ``said``: the upstream itself said that its answer is whole. Then a sequence that got tokens
        needs no reason for its end. Raises ``StreamBroke`` if a sequence has not ended otherwise.
        """

    def close(self, seq: int) -> None:
        """Drop everything that still comes for a sequence."""


class Dialect(Protocol):
    """A kind of upstream. Keys of ``lacks`` and ``notes`` are the ``ROWS`` of scripts/tables.py."""

    @property
    def name(self) -> str:
        """Its name in addresses."""

    @property
    def title(self) -> str:
        """Its name in error texts."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """The features that are refused, each with the reason as a predicate of the server."""

    @property
    def takes_names_as_text(self) -> bool:
        """Whether its tokenizer can treat names of special tokens as text."""

    @property
    def notes(self) -> Mapping[str, str]:
        """The features that work in part, each with its limits."""

    def health(self, api: Api) -> str:
        """Returns the path that answers 200 if the upstream can compute."""

    async def introspect(self, api: Api, name: str) -> Facts:
        """Ask an upstream about itself; ``name`` is the gateway's name for the model.

        Raises ``UpstreamFailure`` if it does not answer, ``ConfigError`` if it does not serve the
        model.
        """

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:
        """Ask an upstream for the ids of a text. Raises ``UpstreamFailure``."""

    def unusable(self, grammar: OutputGrammar) -> str | None:
        """Returns why a grammar cannot be passed on, as a predicate of the server, or None."""

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """Returns the siblings of a job by request: each group shares one request."""

    def request(
        self, api: Api, job: Job, seqs: Sequence[int], facts: Facts, tokenizer: AnyTokenizer
    ) -> tuple[str, Mapping[str, object]]:
        """Returns path and body of a request for some siblings of a job."""

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """Returns the reader of such a request; its events name the job ``index``."""


AnyTokenizer = RemoteTokenizer | TextTokenizer


def refuse(dialect: Dialect, facts: Facts, jobs: Sequence[Job]) -> None:
    """Raises ``InvalidRequest``, with the parameter, if an upstream cannot honour a job."""
    first = jobs[0]
    server = dialect.title
    for feature, reason in dialect.lacks.items():
        asked = FEATURES.get(feature)
        if asked is not None and any(map(asked, jobs)):
            param = _param(feature, first)
            raise InvalidRequest(f"'{param}' cannot be honoured: {server} {reason}.", param=param)
    if first.sampling.infill is not None:
        raise InvalidRequest(
            f"'samplers' cannot be honoured: the filter 'infill' does not work through {server}.",
            param="samplers",
        )
    asked_logprobs = max(first.logprobs or 0, first.prompt_logprobs or 0)
    if asked_logprobs > facts.max_logprobs:
        raise InvalidRequest(
            f"'logprobs' cannot be {asked_logprobs}: {server} gives at most {facts.max_logprobs}.",
            param="logprobs",
        )
    if facts.context_tokens >= UNKNOWN_CONTEXT and first.max_tokens > UNKNOWN_CONTEXT // 2:
        raise InvalidRequest(
            f"'max_tokens' must be given: {server} does not say how long its context is.",
            param="max_tokens",
        )


def _param(feature: str, job: Job) -> str:
    """Returns the parameter of a job that uses a feature."""
    name = _PARAMS.get(feature, feature)
    if name == "structured_outputs" and job.constraint is not None:
        return job.constraint.field
    return name


def chosen(listed: Sequence[str], api: Api, name: str, *, aliases: Collection[str] = ()) -> str:
    """Returns the upstream's name for the model: the address's, else ours, else its only one.

    ``aliases`` are those of ``listed`` that are other names of its models. Raises ``ConfigError``
    if the upstream does not serve that model, or serves several.
    """
    wanted = api.address.model
    if wanted is not None:
        if wanted not in listed:
            raise ConfigError(f"model {name}: {api.address.origin} does not serve {wanted!r}")
        return wanted
    if name in listed:
        return name
    models = [one for one in listed if one not in aliases]
    if len(models) != 1:
        raise ConfigError(
            f"model {name}: {api.address.origin} serves {', '.join(sorted(listed)) or 'nothing'}; "
            "choose one with #MODEL at the end of the address"
        )
    return models[0]


def identity(*parts: object) -> str:
    """Returns a digest of everything that may change an answer."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def is_greedy(job: Job) -> bool:
    """Returns whether the sampling settings leave only the likeliest token."""
    sampling = job.sampling
    # typical_p may cut the likeliest token away before top_p keeps one.
    keeps_likeliest = sampling.top_p == 0 and sampling.typical_p >= 1
    return sampling.temperature == 0 or keeps_likeliest or sampling.top_k == 1


def stop_ids_of(job: Job) -> tuple[int, ...]:
    """Returns the ids that an upstream is told to stop at.

    Before ``min_tokens`` it bans only the end tokens that it knows, so it is told those of middles.
    """
    sampling = job.sampling
    if sampling.min_tokens and not sampling.ignore_eos:
        return job.stop_ids + job.extra_end_ids
    return job.stop_ids


def truncates(job: Job) -> bool:
    """Returns whether a job draws, and only from some of the likely tokens."""
    sampling = job.sampling
    return not is_greedy(job) and (
        sampling.top_k > 0
        or sampling.top_p < 1
        or sampling.min_p > 0
        or sampling.typical_p < 1
        or sampling.xtc_probability > 0
    )
