"""A kind of upstream: what it can do, what it calls things, how its answers are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from afterword.core.errors import ConfigError, InvalidRequest
from afterword.core.job import Event, Job
from afterword.core.wire import Vocabulary
from afterword.gateway.transport.api import Api
from afterword.gateway.vocabulary import RemoteTokenizer, TextTokenizer

UNKNOWN_CONTEXT = 1 << 30
"""The context of an upstream that does not say how long it is."""

FEATURES: Mapping[str, Callable[[Job], bool]] = {
    "logprobs": lambda job: job.logprobs is not None,
    "scoring": lambda job: job.prompt_logprobs is not None,
    "penalties": lambda job: bool(job.sampling.presence_penalty or job.sampling.frequency_penalty),
    "top_k": lambda job: job.sampling.top_k > 0,
    "min_p": lambda job: job.sampling.min_p > 0,
    "min_tokens": lambda job: job.sampling.min_tokens > 0,
    "ignore_eos": lambda job: job.sampling.ignore_eos,
}
"""What a job can ask for that an upstream may not have."""
_PARAMS = {"scoring": "echo", "penalties": "presence_penalty"}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an upstream said of itself when it was asked.

    ``vocabulary`` None: it has no tokenizer. ``identity`` changes with what may change an answer.
    """

    model: str
    context_tokens: int
    max_logprobs: int
    identity: str
    batch_invariant: bool = False
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None


class Reader(Protocol):
    """Reads the events of one request."""

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of the request."""

    def read(self, payload: bytes) -> list[Event]:
        """The events in a payload. Raises ``UpstreamFailure``."""

    def done(self) -> list[Event]:
        """The events that the end of the stream brings. Raises ``StreamBroke`` if it is early."""

    def close(self, seq: int) -> None:
        """Nothing more is wanted of a sequence."""


class Dialect(Protocol):
    """A kind of upstream. ``lacks`` says of each feature that it has not what is missing."""

    @property
    def name(self) -> str:
        """As in an address."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """Features that are refused, and why."""

    @property
    def takes_names_as_text(self) -> bool:
        """Whether its tokenizer can be told that names of special tokens are text."""

    @property
    def notes(self) -> Mapping[str, str]:
        """Features that are there in part, and in which."""

    def health(self, api: Api) -> str:
        """The path whose answer shows that it can compute."""

    async def introspect(self, api: Api, name: str) -> Facts:
        """What it is; ``name`` is the model's name here. ``UpstreamFailure``, ``ConfigError``."""

    async def encode(self, api: Api, model: str, text: str, *, parse_special: bool) -> list[int]:
        """Ask for the ids of a text."""

    def groups(self, job: Job) -> Sequence[Sequence[int]]:
        """Which siblings one request can ask for together."""

    def request(
        self, api: Api, job: Job, seqs: Sequence[int], facts: Facts, tokenizer: AnyTokenizer
    ) -> tuple[str, object]:
        """Path and body of a request for some siblings of a job."""

    def reader(self, index: int, job: Job, seqs: Sequence[int], tokenizer: AnyTokenizer) -> Reader:
        """Reads what such a request brings; events call the job ``index``."""


AnyTokenizer = RemoteTokenizer | TextTokenizer


def refuse(dialect: Dialect, facts: Facts, origin: str, jobs: Sequence[Job]) -> None:
    """Refuse what an upstream cannot give, by name. Raises ``InvalidRequest``."""
    first = jobs[0]
    server = f"{dialect.title} at {origin}"
    for feature, reason in dialect.lacks.items():
        asked = FEATURES.get(feature)
        if asked is not None and any(map(asked, jobs)):
            param = _PARAMS.get(feature, feature)
            raise InvalidRequest(f"'{param}' cannot be honoured: {server} {reason}.", param=param)
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


def chosen(listed: Sequence[str], api: Api, name: str) -> str:
    """The upstream's name for the model: the address's, else ours, else its only one."""
    wanted = api.address.model
    if wanted is not None:
        if wanted not in listed:
            raise ConfigError(f"model {name}: {api.address.origin} does not serve {wanted!r}")
        return wanted
    if name in listed:
        return name
    if len(listed) != 1:
        raise ConfigError(
            f"model {name}: {api.address.origin} serves {', '.join(sorted(listed)) or 'nothing'}; "
            "say which with #MODEL at the end of the address"
        )
    return listed[0]


def identity(*parts: object) -> str:
    """A digest of what may change an answer."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def is_greedy(job: Job) -> bool:
    """Whether the likeliest token is taken, however that was asked for."""
    sampling = job.sampling
    return sampling.temperature == 0 or sampling.top_p == 0 or sampling.top_k == 1
