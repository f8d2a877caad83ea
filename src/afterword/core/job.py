"""Jobs are what an engine is asked for, events are what it answers.

Log-probabilities are natural logarithms of the model's own distribution (log-softmax of the raw
logits, before bias, penalties and temperature), as float64 values of float32 arithmetic or better.
Arrays of the standard library hold them, so merging a hundred tokens makes no objects.
"""

# array is subscriptable at run time from Python 3.12 on; annotations stay text until then.
from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

NO_TOKEN = -1
"""The id of an empty entry."""
_BYTES_OF_A_TOKEN = 4
"""Of text in most languages and vocabularies, about."""
FinishReason: TypeAlias = Literal["stop", "length"]
GrammarKind: TypeAlias = Literal["json", "regex", "choice", "grammar"]


class Repetition(msgspec.Struct, frozen=True, kw_only=True):
    """The DRY penalty: what a token loses if it would extend a repetition.

    The logit falls by ``multiplier * base ** (n - allowed_length)`` for a repetition of n tokens.
    Repetitions shorter than ``allowed_length`` cost nothing. Only the last ``window`` tokens of
    prompt and choice are searched. A repetition does not reach back over a breaker. ``breakers``
    maps the first token of each breaker to the tokens that may follow it; a breaker of one token
    is followed by ``()``. ``breaker_texts`` are the same as text. Source: llama.cpp's DRY sampler.
    """

    multiplier: float
    base: float
    allowed_length: int
    window: int
    breakers: Mapping[int, tuple[tuple[int, ...], ...]] = {}
    breaker_texts: tuple[str, ...] = ()


class OutputGrammar(msgspec.Struct, frozen=True):
    """What the text of a sequence must be.

    ``text`` is a JSON Schema for "json", a JSON array of strings for "choice", and a grammar in
    Lark's syntax or in GBNF for "grammar".
    """

    kind: GrammarKind
    text: str


class Constraint(msgspec.Struct, frozen=True):
    """A grammar that an engine can keep to. ``compiled`` is the engine's own.

    ``field`` is the field of the request that it stands in, for errors.
    """

    grammar: OutputGrammar
    compiled: Any = None
    field: str = "structured_outputs"


class InfillFilter(msgspec.Struct, frozen=True):
    """The last filter of an infill: it ends early, and draws only what is sure enough.

    The candidates end the text if their end tokens have a fair share of the probability, or if no
    other candidate is likely enough; a token counts together with the candidates that it begins,
    or that begin it. ``pieces`` are those of the vocabulary, ``end_ids`` end the text. Source:
    llama.cpp's sampler ``infill``.
    """

    pieces: Sequence[bytes]
    end_ids: frozenset[int]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How a token is drawn from a row of logits.

    Order: ``logit_bias``, ``repetition_penalty``, ``presence_penalty`` and ``frequency_penalty``,
    ``repetition``, ``allowed_ids``, the job's ``constraint``, ``temperature``, ``top_k``,
    ``typical_p``, ``top_p``, ``min_p``, ``xtc_probability`` with ``xtc_threshold``,
    ``infill``, draw.

    ``temperature`` 0 takes the highest logit, the lowest id on a tie. ``top_p`` 0 keeps the
    likeliest token alone. ``top_k`` 0, ``min_p`` 0, ``typical_p`` 1, ``xtc_probability`` 0 and
    ``repetition_penalty`` 1 are off. ``repetition_penalty`` sees the last ``repetition_window``
    tokens of prompt and choice; 0 means all. ``infill`` needs ``top_k``, because it compares each
    candidate with all others. Without ``allowed_ids`` all tokens are allowed. No end token can be
    drawn before ``min_tokens`` tokens are generated. With ``ignore_eos`` end tokens do not end a
    sequence.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    infill: InfillFilter | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0
    repetition: Repetition | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and its siblings, the unit that an engine schedules.

    ``prompt_ids``, a tuple or bytes, has at least one id, all inside the vocabulary, and
    ``len(prompt_ids) + max_tokens`` is at most the engine's context. ``n`` siblings continue the
    prompt, each for at most ``max_tokens`` tokens. A draw depends on ``(seed, sibling, position)``
    alone (D2). ``seeded``: the client chose the seed. ``logprobs`` k asks for the log-probability
    of each generated token and of the k likeliest tokens at its position; None asks for none.
    ``prompt_logprobs`` asks for the same of every prompt token after the first, and
    ``prompt_ranks`` for its rank. ``scored_ids`` are tokens whose log-probabilities are wanted at
    each of these positions, too. ``extra_end_ids`` end a sequence, as the vocabulary's end tokens
    do (infill needs them). ``stop_ids`` end it even with ``ignore_eos``. Each sequence keeps to the
    ``constraint``, which the engine made; an end token can be drawn where the grammar is complete.
    Only jobs of one ``cache_scope`` share what was computed for a prompt; the scope changes no
    answer. With ``warm`` a prompt is computed even if nothing is generated, so that later prompts
    find it in the cache.
    """

    prompt_ids: Sequence[int]
    n: int
    max_tokens: int
    sampling: SamplingParams
    seed: int
    seeded: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_ranks: bool = False
    scored_ids: tuple[int, ...] = ()
    extra_end_ids: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    cache_scope: str = ""
    warm: bool = False

    @property
    def prompt_tokens(self) -> int:
        """The tokens of the prompt. An estimate if its ids are bytes: its engine counts at the end.

        The other engines count ids.
        """
        count = len(self.prompt_ids)
        return -(-count // _BYTES_OF_A_TOKEN) if isinstance(self.prompt_ids, bytes) else count


class ScoredPrompt(msgspec.Struct, frozen=True, gc=False):
    """Log-probabilities of ``prompt_ids[1:]``.

    ``logprobs`` has one float for each id. ``top_ids`` and ``top_logprobs`` are flat, with k
    entries for each position, likeliest first, the lowest id first on a tie, and then one for each
    of the job's ``scored_ids``. ``ranks`` says for each id how many tokens are at least as likely;
    it is empty unless the job asks for ``prompt_ranks``.
    """

    logprobs: array[float]
    top_ids: array[int]
    top_logprobs: array[float]
    ranks: array[int] = msgspec.field(default_factory=lambda: array("i"))


class Prefilled(msgspec.Struct, frozen=True):
    """A job's prompt is computed. Sent once for each job, before its first ``Sampled``.

    ``cached_tokens`` of the ``prompt_tokens`` came from the prefix cache. ``scored`` is None if the
    job asked for no ``prompt_logprobs``.
    """

    job: int
    prompt_tokens: int
    cached_tokens: int
    scored: ScoredPrompt | None


class Sampled(msgspec.Struct, frozen=True):
    """One or more tokens that sibling ``seq`` of job ``job`` generated, in order.

    ``tokens`` holds ids. If the job asked for log-probabilities, ``logprobs`` has one float for
    each token, and ``top_ids`` and ``top_logprobs`` are flat, with k entries for each token,
    likeliest first, and then one for each of the job's ``scored_ids``. Otherwise all three are
    empty. A row with fewer than k candidates is filled up with ``NO_TOKEN``.
    """

    job: int
    seq: int
    tokens: array[int]
    logprobs: array[float]
    top_ids: array[int]
    top_logprobs: array[float]


class Counted(msgspec.Struct, frozen=True):
    """The token counts of a job's prompt, from an engine that learns them after ``Prefilled``.

    They replace the counts of ``Prefilled``. Engines that know them by then send no ``Counted``.
    ``discarded_tokens`` were generated for texts that no sequence shows.
    """

    job: int
    prompt_tokens: int
    cached_tokens: int
    discarded_tokens: int = 0


class Ended(msgspec.Struct, frozen=True):
    """Sibling ``seq`` of job ``job`` ended, at an end token (``stop``) or its limit (``length``).

    ``completion_tokens`` counts all generated tokens, the end token included.
    """

    job: int
    seq: int
    reason: FinishReason
    completion_tokens: int


Event: TypeAlias = Prefilled | Sampled | Counted | Ended
