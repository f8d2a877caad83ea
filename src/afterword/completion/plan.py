"""Makes a plan of a request. In a plan nothing means "default", and nothing is left to refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from afterword.completion.fields import Prompt, out_of_range, shown
from afterword.completion.infill import infill_tokens, lay_out
from afterword.completion.prompt_text import (
    PromptText,
    Shown,
    VocabView,
    prompt_of_ids,
    prompt_of_text,
)
from afterword.completion.request import CompletionRequest
from afterword.completion.tokens import encode, least_tokens
from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.job import Job, SamplingParams
from afterword.core.limits import Limits
from afterword.core.protocols import Feature, Tokenizer

_CHOICE_BYTES = 80
_TOKEN_BYTES = 5
_POSITION_BYTES = 48
_TOP_BYTES = 28
"""Typical sizes in JSON: of a choice, a token's text, a position without and of a top entry."""
_SHORT_TEXT = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request, decided.

    ``model`` is the name that the client asked for. Job i makes ``candidates`` sequences of prompt
    i; the answer shows ``n`` of them. ``logprobs`` and ``echo`` say what the answer shows, not what
    is computed. ``open_ended``: the request gave no max_tokens.
    """

    id: str
    model: str
    created: int
    fingerprint: str
    jobs: tuple[Job, ...]
    prompts: tuple[PromptText, ...]
    vocab: VocabView
    n: int
    candidates: int
    echo: bool
    logprobs: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    include_obfuscation: bool
    user: str | None
    open_ended: bool = False

    @property
    def ranked(self) -> bool:
        """Whether candidates are ranked. Then none can be shown before the last has ended."""
        return self.candidates > self.n


class PlanInputs(msgspec.Struct, frozen=True):
    """What a plan takes over. ``seed`` is for a request without one.

    ``cache_scope`` is what the operator keeps apart; the request's salt divides it further.
    """

    id: str
    model: str
    created: int
    fingerprint: str
    seed: int
    unsupported: Mapping[Feature, str] = {}
    cache_scope: str = ""


class ContextBudget(msgspec.Struct, frozen=True):
    """The context, and the limits on how much a request may generate."""

    context_tokens: int
    limits: Limits

    def refuse_endless(self, prompt: Prompt, tokenizer: Tokenizer, asked: int | None) -> None:
        """Raises ``ContextLengthExceeded`` if no tokenisation of the prompt can fit (H12)."""
        least = least_tokens(prompt, tokenizer)
        if least > self.context_tokens:
            raise ContextLengthExceeded(
                context=self.context_tokens, prompt=least, completion=asked or 0
            )

    def fitting(
        self, texts: Iterable[tuple[str, bool]], tokenizer: Tokenizer
    ) -> list[tuple[str, bool]]:
        """Returns the texts that ``refuse_endless`` lets through."""
        return [text for text in texts if least_tokens(text[0], tokenizer) <= self.context_tokens]

    def completion_tokens(self, prompt_tokens: int, asked: int | None) -> int:
        """Returns how many tokens may be generated. Raises ``ContextLengthExceeded``."""
        left = self.context_tokens - prompt_tokens
        if asked is None:
            if left < 1:
                raise ContextLengthExceeded(
                    context=self.context_tokens, prompt=prompt_tokens, completion=1
                )
            default = self.limits.default_max_tokens
            return left if default is None else min(left, default)
        if asked > left:
            raise ContextLengthExceeded(
                context=self.context_tokens, prompt=prompt_tokens, completion=asked
            )
        return asked


class AnswerWeight:
    """The estimated size of an answer in bytes, which grows prompt by prompt (R7).

    It counts what the answer repeats of its prompts and what ``max_tokens`` asks for. Without
    ``max_tokens`` generated tokens do not count: the model ends them, and each takes a step.
    """

    def __init__(self, request: CompletionRequest, n: int, limits: Limits) -> None:
        self._request = request
        self._n = n
        self._most_bytes = limits.max_answer_mib * 2**20
        self._entry_bytes = 0
        if request.logprobs is not None:
            self._entry_bytes = _POSITION_BYTES + _TOP_BYTES * (request.logprobs + 1)
        self.bytes = 0

    def add(self, prompt: PromptText) -> None:
        """Count the choices of a prompt. Raises ``InvalidRequest`` over the limit."""
        request = self._request
        tokens = request.max_tokens or 0
        weight = _CHOICE_BYTES + tokens * (_TOKEN_BYTES + self._entry_bytes)
        if request.echo:
            weight += _json_bytes(prompt.text) + len(prompt.ids) * self._entry_bytes
        self.bytes += self._n * weight
        if self.bytes > self._most_bytes:
            raise self._refusal()

    def _refusal(self) -> InvalidRequest:
        request, causes = self._request, []
        if len(request.prompt) > 1:
            causes.append(f"{len(request.prompt)} prompts")
        if self._n > 1:
            causes.append(f"n {self._n}")
        if request.max_tokens:
            causes.append(f"max_tokens {request.max_tokens}")
        if request.echo:
            causes.append("echo")
        if request.logprobs is not None:
            causes.append(f"logprobs {request.logprobs}")
        name = "logprobs" if request.logprobs is not None else "echo" if request.echo else "n"
        return InvalidRequest(
            f"Invalid value for '{name}': the answer would have more than "
            f"{self._most_bytes // 2**20} MiB (max_answer_mib), because of "
            f"{', '.join(causes)}. Ask for it in several requests.",
            param=name,
            code="invalid_value",
        )


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) if len(text) > _SHORT_TEXT else 6 * len(text)


def make_plan(
    request: CompletionRequest, tokenizer: Tokenizer, budget: ContextBudget, inputs: PlanInputs
) -> Plan:
    """Returns the plan of a request. Pure, but tokenising long text takes milliseconds.

    Raises ``InvalidRequest``.
    """
    n, candidates = _counts(request)
    _refuse_many(request, candidates, budget.limits.max_choices)
    options = request.stream_options or {}
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is true.",
            param="stream_options",
        )
    suffix = request.suffix or None
    if suffix is not None and request.echo and request.logprobs is not None:
        raise InvalidRequest(
            "'suffix' with both 'echo' and 'logprobs' is not supported: the prompt is not scored "
            "in the order in which it is echoed.",
            param="suffix",
        )
    _refuse_unsupported(request, inputs.unsupported)
    sampling = _sampling(request, tokenizer)
    least = sampling.min_tokens
    extra_end_ids = infill_tokens(tokenizer).end_ids if suffix is not None else ()
    vocab = VocabView(
        tokenizer.pieces, tokenizer.end_ids.union(extra_end_ids), tokenizer.space_after
    )
    scope = _cache_scope(inputs.cache_scope, request.cache_salt)
    weight = AnswerWeight(request, n, budget.limits)
    jobs, prompts = [], []
    for prompt in request.prompt or ("",):
        ids, text = _prompt(prompt, request, tokenizer, budget, vocab)
        most = budget.completion_tokens(len(ids), request.max_tokens)
        if least > most:
            raise _too_many_at_least(least, most, request.max_tokens)
        weight.add(text)
        scored = request.echo and request.logprobs is not None
        jobs.append(
            Job(
                prompt_ids=ids,
                n=candidates,
                max_tokens=most,
                sampling=sampling,
                seed=inputs.seed if request.seed is None else request.seed,
                logprobs=0 if request.logprobs is None and candidates > n else request.logprobs,
                prompt_logprobs=request.logprobs if scored else None,
                extra_end_ids=extra_end_ids,
                cache_scope=scope,
            )
        )
        prompts.append(text)
    return Plan(
        id=inputs.id,
        model=inputs.model,
        created=inputs.created,
        fingerprint=inputs.fingerprint,
        jobs=tuple(jobs),
        prompts=tuple(prompts),
        vocab=vocab,
        n=n,
        candidates=candidates,
        echo=bool(request.echo),
        logprobs=request.logprobs,
        stops=request.stop or (),
        stream=bool(request.stream),
        include_usage=options.get("include_usage", False),
        include_obfuscation=options.get("include_obfuscation", False),
        user=request.user,
        open_ended=request.max_tokens is None,
    )


def _counts(request: CompletionRequest) -> tuple[int, int]:
    """Returns the choices and the candidates of each prompt (R7, R8, H11)."""
    n = request.n or 1
    best_of = request.best_of or n
    if best_of < n:
        raise InvalidRequest(
            "You requested that the server return more choices than it will generate (HINT: you "
            f"must set 'n' (currently {n}) to be at most 'best_of' (currently {best_of}), or omit "
            "either parameter if you don't specifically want to use them.)",
            param="best_of",
        )
    if best_of > n and request.stream:
        raise InvalidRequest(
            f"'best_of' ({best_of}) greater than 'n' ({n}) cannot be streamed: candidates are "
            "ranked when all have ended.",
            param="best_of",
        )
    return n, best_of


def _refuse_many(request: CompletionRequest, candidates: int, most: int) -> None:
    """Raises ``InvalidRequest`` for more sequences than a request may have (R7)."""
    prompts = max(len(request.prompt), 1)
    if prompts * candidates <= most:
        return
    name = "best_of" if candidates > (request.n or 1) else "n" if candidates > 1 else "prompt"
    raise InvalidRequest(
        f"Invalid value for '{name}': {prompts} prompts with {candidates} choices each are "
        f"{prompts * candidates} sequences; a request may have {most} (max_choices).",
        param=name,
        code="invalid_value",
    )


def _cache_scope(operators: str, salt: str | None) -> str:
    """Returns the scope of a request's jobs; a salt gives one that nobody else can name."""
    if salt is None:
        return operators
    return hashlib.sha256(f"{len(operators)} {operators} {salt}".encode()).hexdigest()


def _too_many_at_least(least: int, most: int, asked: int | None) -> InvalidRequest:
    bound = "its default here" if asked is None else "as requested"
    return InvalidRequest(
        f"'min_tokens' ({least}) must be at most 'max_tokens' ({most}, {bound}).",
        param="min_tokens",
        code="invalid_value",
    )


def _sampling(request: CompletionRequest, tokenizer: Tokenizer) -> SamplingParams:
    bias = request.logit_bias or ()
    vocabulary = len(tokenizer.pieces)
    if bias and bias[-1][0] >= vocabulary:
        raise out_of_range(
            "logit_bias", bias[-1][0], f"token ids below the vocabulary's size of {vocabulary}"
        )
    if bias and sum(value <= -100 for _, value in bias) >= vocabulary:
        raise InvalidRequest("'logit_bias' bans every token of the vocabulary.", param="logit_bias")
    given = SamplingParams()
    return SamplingParams(
        temperature=given.temperature if request.temperature is None else request.temperature,
        top_p=given.top_p if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(pair for pair in bias if pair[1]),
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
    )


def _prompt(
    prompt: Prompt,
    request: CompletionRequest,
    tokenizer: Tokenizer,
    budget: ContextBudget,
    vocab: VocabView,
) -> tuple[tuple[int, ...], PromptText]:
    """Returns the ids to compute, and the prompt as its choices show it (R2, E2)."""
    suffix = request.suffix or ""
    for given in (prompt, suffix):
        budget.refuse_endless(given, tokenizer, request.max_tokens)
    echo, scored = bool(request.echo), request.logprobs is not None
    shown = Shown(text=echo or scored, offsets=echo and scored)
    visible = _ids(prompt, tokenizer, parse_special=not suffix)
    if isinstance(prompt, str):
        text = prompt_of_text(prompt, visible, vocab, shown)
    else:
        text = prompt_of_ids(visible, vocab, shown)
    if suffix:
        after = encode("suffix", suffix, tokenizer, parse_special=False, continues=True)
        ids = lay_out(infill_tokens(tokenizer), tokenizer.bos_id, visible, after)
        # The middle continues the prefix, so no space of the tokenizer comes between them.
        return ids, msgspec.structs.replace(text, fresh=False)
    bos = tokenizer.bos_id
    if not visible:
        return (tokenizer.document_start_id,), msgspec.structs.replace(text, hidden=1)
    if isinstance(prompt, str) and bos is not None and visible[0] != bos:
        return (bos, *visible), msgspec.structs.replace(text, hidden=1)
    return tuple(visible), text


def _ids(prompt: Prompt, tokenizer: Tokenizer, *, parse_special: bool) -> Sequence[int]:
    if isinstance(prompt, str):
        return encode("prompt", prompt, tokenizer, parse_special=parse_special) if prompt else ()
    largest = max(prompt)
    if largest >= len(tokenizer.pieces):
        raise InvalidRequest(
            f"Invalid value for 'prompt': expected token ids below the vocabulary's size of "
            f"{len(tokenizer.pieces)}, but got {shown(largest)} instead.",
            param="prompt",
            code="invalid_value",
        )
    return prompt


def _refuse_unsupported(request: CompletionRequest, unsupported: Mapping[Feature, str]) -> None:
    """Raises ``InvalidRequest`` for what the engine cannot take."""
    unsalted = unsupported.get("cache_salt")
    if request.cache_salt is not None and unsalted is not None:
        raise InvalidRequest(f"'cache_salt' cannot be honoured: {unsalted}", param="cache_salt")
    reason = unsupported.get("token_ids")
    if reason is None:
        return
    if request.suffix:
        raise InvalidRequest(f"'suffix' cannot be honoured: {reason}", param="suffix")
    if request.logit_bias:
        raise InvalidRequest(f"Token ids in 'logit_bias': {reason}", param="logit_bias")
    if any(not isinstance(prompt, str) for prompt in request.prompt):
        raise InvalidRequest(f"Token ids in 'prompt': {reason}", param="prompt")


def texts_of(request: CompletionRequest) -> Iterator[tuple[str, bool]]:
    """Yields the texts that ``make_plan`` tokenises, and whether special tokens are parsed."""
    suffix = request.suffix or ""
    for prompt in request.prompt:
        if isinstance(prompt, str) and prompt:
            yield prompt, not suffix
    if suffix:
        yield suffix, False
