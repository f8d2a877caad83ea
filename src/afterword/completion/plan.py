"""Makes a plan of a request. In a plan nothing means "default", and nothing is left to refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from afterword.completion.answer_weight import AnswerWeight
from afterword.completion.choice import Presentation
from afterword.completion.context_budget import ContextBudget
from afterword.completion.fields import Prompt, shown
from afterword.completion.framing import Framing
from afterword.completion.infill import (
    INFILL_TOKENS,
    LaidOut,
    Place,
    PlaceRoom,
    infill_tokens,
    lay_out,
    lay_out_place,
)
from afterword.completion.prompt_text import (
    PromptText,
    Shown,
    VocabView,
    prompt_of_ids,
    prompt_of_text,
)
from afterword.completion.request import CompletionRequest
from afterword.completion.sampling import sampling_params, vocabulary_ids
from afterword.completion.search import (
    BEHIND_TOKENS,
    Around,
    Search,
    SearchSize,
    plan_search,
    refuse_search,
    search_size,
)
from afterword.completion.tokens import encode
from afterword.core.errors import InvalidRequest, UnusableGrammar
from afterword.core.job import (
    Constraint,
    GrammarKind,
    InfillFilter,
    Job,
    OutputGrammar,
)
from afterword.core.protocols import Feature, PrefixSharing, Tokenizer

_WHAT_FITS = -1
"""The value of ``truncate_prompt_tokens`` that keeps as many tokens as fit."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request, decided.

    ``model`` is the name that the client asked for. Job i makes ``candidates`` sequences of prompt
    i; the answer shows ``n`` of them. ``shown`` says what the answer shows, not what is computed.
    ``open_ended``: the request gave no max_tokens. ``cut``: not all of the text around a place fits
    the context. ``timed``: the answer says how long its parts took. ``search`` is how the middles
    are found if the model has no tokens for that (F3).
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
    shown: Presentation
    stream: bool
    include_usage: bool
    continuous_usage: bool
    include_obfuscation: bool
    user: str | None
    open_ended: bool = False
    cut: bool = False
    timed: bool = False
    search: Search | None = None

    @property
    def ranked(self) -> bool:
        """Whether candidates are ranked. Then none can be shown before the last has ended."""
        return self.candidates > self.n

    @property
    def most_tokens(self) -> int:
        """The most tokens that it uses: each prompt once, and every candidate in full (A5)."""
        if self.search is not None:
            return self.search.most_tokens
        return sum(len(job.prompt_ids) + job.n * job.max_tokens for job in self.jobs)


class InfillOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What ``POST /infill`` asks for beyond a completion; see ``Presentation``.

    ``filtered``: the last filter of an infill is on.
    """

    place: Place
    least_indent: int = 0
    most_ms: float | None = None
    filtered: bool = False


class PlanInputs(msgspec.Struct, frozen=True):
    """What a plan takes over. ``seed`` is for a request without one.

    ``constrain`` compiles a grammar; see ``core.protocols.Engine``. ``cache_scope`` is what the
    operator keeps apart; the request's salt divides it further. ``sharing`` says how the engine's
    prompts share what was computed. ``infill`` is there for a request that fills in a place,
    ``chat`` for one whose prompts stand in a chat template. ``draws``: see ``EngineCard``.
    """

    id: str
    model: str
    created: int
    fingerprint: str
    seed: int
    constrain: Callable[[OutputGrammar], Constraint]
    unsupported: Mapping[Feature, str] = {}
    sharing: PrefixSharing | None = None
    cache_scope: str = ""
    infill: InfillOptions | None = None
    chat: Framing | None = None
    draws: bool = True


def make_plan(
    request: CompletionRequest, tokenizer: Tokenizer, budget: ContextBudget, inputs: PlanInputs
) -> Plan:
    """Returns the plan of a request. Pure, but tokenising long text takes milliseconds.

    Raises ``InvalidRequest``.
    """
    n, candidates = _counts(request)
    _refuse_many(request, candidates, budget.limits.max_choices)
    _refuse_contradictions(request)
    _refuse_unsupported(request, inputs.unsupported)
    if inputs.chat is not None:
        inputs.chat.refuse_fields(request)
    asked = _asked(request)
    options = request.stream_options or {}
    logprobs, _ = _log_probabilities(request)
    common = _common_job(request, tokenizer, budget.context_tokens, inputs, (n, candidates))
    searched = _is_searched(request, tokenizer, inputs, budget)
    end_ids = tokenizer.end_ids.union(common.extra_end_ids)
    vocab = VocabView(tokenizer.pieces, end_ids, tokenizer.space_after, tokenizer.aliases)
    infill = inputs.infill
    cut = False
    weight = AnswerWeight(request, n, logprobs, budget.limits)
    jobs, prompts, sizes = [], [], list[SearchSize]()
    for prompt in request.prompt or ("",):
        ids, text, cut = _laid_out(prompt, request, tokenizer, budget, vocab, inputs)
        fits = asked if infill is None else _at_most(budget, len(ids), asked)
        most = budget.completion_tokens(len(ids), fits)
        if searched and most:
            sizes.append(search_size(asked, (n, candidates), len(ids), budget))
            most = sizes[-1].middle_tokens
        if common.sampling.min_tokens > most:
            raise _too_many_at_least(common.sampling.min_tokens, most, asked)
        weight.add(text)
        jobs.append(msgspec.structs.replace(common, prompt_ids=ids, max_tokens=most))
        prompts.append(text)
    silent = end_ids.union(() if request.include_stop_str_in_output else common.stop_ids)
    if request.skip_special_tokens:
        silent = silent.union(tokenizer.special_ids)
    presentation = _presentation(request, logprobs, silent, infill)
    search = None
    if sizes:
        # The search ranks middles itself.
        jobs = [msgspec.structs.replace(job, n=n, logprobs=logprobs) for job in jobs]
        around = Around(request.suffix or "", presentation, tokenizer, vocab, budget)
        search = plan_search(jobs, around, sizes)
        presentation = search.presentation
    return Plan(
        id=inputs.id,
        model=inputs.model,
        created=inputs.created,
        fingerprint=inputs.fingerprint,
        jobs=tuple(jobs),
        prompts=tuple(prompts),
        vocab=vocab,
        n=n,
        candidates=n if sizes else candidates,
        shown=presentation,
        stream=bool(request.stream),
        include_usage=options.get("include_usage", False),
        continuous_usage=options.get("continuous_usage_stats", False),
        include_obfuscation=options.get("include_obfuscation", False),
        user=request.user,
        open_ended=asked is None,
        cut=cut,
        timed=infill is not None,
        search=search,
    )


def _common_job(
    request: CompletionRequest,
    tokenizer: Tokenizer,
    context_tokens: int,
    inputs: PlanInputs,
    counts: tuple[int, int],
) -> Job:
    """Returns what the jobs of a request share; it has no prompt and no ``max_tokens`` yet.

    ``counts`` are the choices and the candidates of a prompt. Raises ``InvalidRequest``.
    """
    n, candidates = counts
    logprobs, scored = _log_probabilities(request)
    sampling = sampling_params(request, tokenizer, context_tokens, draws=inputs.draws)
    extra_end_ids = _extra_end_ids(request, tokenizer, inputs)
    if inputs.infill is not None and inputs.infill.filtered:
        last = InfillFilter(tokenizer.pieces, tokenizer.end_ids.union(extra_end_ids))
        sampling = msgspec.structs.replace(sampling, infill=last)
    return Job(
        prompt_ids=(),
        n=candidates,
        max_tokens=0,
        sampling=sampling,
        seed=inputs.seed if request.seed is None else request.seed,
        # Candidates are ranked by the log-probabilities of their tokens (A6).
        logprobs=0 if logprobs is None and candidates > n else logprobs,
        prompt_logprobs=scored,
        prompt_ranks=request.prompt_logprobs is not None,
        scored_ids=vocabulary_ids("logprob_token_ids", request.logprob_token_ids, tokenizer),
        extra_end_ids=extra_end_ids,
        stop_ids=vocabulary_ids("stop_token_ids", request.stop_token_ids, tokenizer),
        constraint=_constraint(request, inputs),
        cache_scope=_cache_scope(inputs.cache_scope, request.cache_salt),
        warm=inputs.infill is not None,
    )


def _log_probabilities(request: CompletionRequest) -> tuple[int | None, int | None]:
    """Returns the alternatives of generated tokens and of the prompt's; None for none."""
    logprobs = request.logprobs
    if logprobs is None and request.logprob_token_ids:
        logprobs = 0
    scored = logprobs if request.echo else None
    if request.prompt_logprobs is not None:
        scored = max(scored or 0, request.prompt_logprobs)
    return logprobs, scored


def _is_searched(
    request: CompletionRequest, tokenizer: Tokenizer, inputs: PlanInputs, budget: ContextBudget
) -> bool:
    """Whether middles are searched for (F3). Raises ``InvalidRequest`` if they cannot be."""
    if not request.suffix or inputs.infill is not None or tokenizer.infill is not None:
        return False
    refuse_search(inputs.sharing, len(request.prompt), budget.limits)
    return True


def _extra_end_ids(
    request: CompletionRequest, tokenizer: Tokenizer, inputs: PlanInputs
) -> tuple[int, ...]:
    """Returns the tokens that end a middle beside the vocabulary's end tokens."""
    if inputs.chat is not None:
        return inputs.chat.end_ids(tokenizer)
    if inputs.infill is not None:
        return infill_tokens(tokenizer, "input_suffix").end_ids
    if request.suffix and tokenizer.infill is not None:
        return tokenizer.infill.end_ids
    return ()


def _presentation(
    request: CompletionRequest,
    logprobs: int | None,
    silent: frozenset[int],
    infill: InfillOptions | None,
) -> Presentation:
    """Returns what the answer shows."""
    return Presentation(
        echo=bool(request.echo),
        logprobs=logprobs,
        prompt_logprobs=request.prompt_logprobs,
        stops=request.stop or (),
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=request.min_tokens or 0,
        silent_ids=silent,
        token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        least_indent=0 if infill is None else infill.least_indent,
        most_ms=None if infill is None else infill.most_ms,
    )


def _refuse_contradictions(request: CompletionRequest) -> None:
    """Raises ``InvalidRequest`` for fields that cannot be honoured together."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is true.",
            param="stream_options",
        )
    options = request.stream_options or {}
    if options.get("continuous_usage_stats") and not options.get("include_usage"):
        raise InvalidRequest(
            "'stream_options.continuous_usage_stats' is only allowed when "
            "'stream_options.include_usage' is true.",
            param="stream_options",
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' are two names of one limit: give one of "
            "them.",
            param="max_completion_tokens",
        )
    _refuse_with_grammar(request)
    if not request.suffix:
        return
    for name, asked in (
        ("echo' and 'logprobs", request.echo and request.logprobs is not None),
        ("echo' and 'logprob_token_ids", request.echo and request.logprob_token_ids),
        ("prompt_logprobs", request.prompt_logprobs is not None),
    ):
        if asked:
            raise InvalidRequest(
                f"'suffix' with '{name}' is not supported: the prompt is not scored in the order "
                "in which it is shown.",
                param="suffix",
            )


def _constraint(request: CompletionRequest, inputs: PlanInputs) -> Constraint | None:
    for name in ("response_format", "structured_outputs"):
        grammar: OutputGrammar | None = getattr(request, name)
        if grammar is None:
            continue
        try:
            return inputs.constrain(grammar)
        except UnusableGrammar as error:
            raise InvalidRequest(
                f"Invalid value for '{name}': the {_GRAMMARS[grammar.kind]} cannot be used: "
                f"{error}",
                param=name,
                code="invalid_value",
            ) from None
    return None


_GRAMMARS: Mapping[GrammarKind, str] = {
    "json": "JSON Schema", "regex": "regular expression", "choice": "choice", "grammar": "grammar",
}  # fmt: skip


def _refuse_with_grammar(request: CompletionRequest) -> None:
    """Raises ``InvalidRequest`` for what would go on after the end of a grammar."""
    name = "response_format" if request.response_format is not None else "structured_outputs"
    if request.response_format is None and request.structured_outputs is None:
        return
    if request.response_format is not None and request.structured_outputs is not None:
        raise InvalidRequest(
            "'response_format' and 'structured_outputs' are two ways of one thing: give one.",
            param="structured_outputs",
        )
    for other in ("min_tokens", "ignore_eos", "suffix"):
        if getattr(request, other):
            raise InvalidRequest(
                f"'{name}' with '{other}' is not supported: the text ends where the grammar does.",
                param=name,
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


def _laid_out(
    prompt: Prompt, request: CompletionRequest, tokenizer: Tokenizer, budget: ContextBudget,
    vocab: VocabView, inputs: PlanInputs,
) -> tuple[tuple[int, ...], PromptText, bool]:  # fmt: skip
    """Returns the ids to compute, the prompt as its choices show it, and whether it was cut."""
    asked = _asked(request)
    if inputs.chat is not None:
        return *inputs.chat.prompt(prompt, request, tokenizer, vocab), False
    if inputs.infill is None:
        return *_prompt(prompt, request, tokenizer, budget, vocab, asked), False
    placed = _place(prompt, request, inputs.infill.place, tokenizer, budget, asked)
    return placed.ids, PromptText(placed.ids, 0, ""), placed.cut


def _asked(request: CompletionRequest) -> int | None:
    """Returns the request's limit on generated tokens, under either name."""
    return request.max_tokens if request.max_tokens is not None else request.max_completion_tokens


def _prompt(
    prompt: Prompt,
    request: CompletionRequest,
    tokenizer: Tokenizer,
    budget: ContextBudget,
    vocab: VocabView,
    asked: int | None,
) -> tuple[tuple[int, ...], PromptText]:
    """Returns the ids to compute, and the prompt as its choices show it (R2, E2)."""
    suffix = request.suffix or ""
    laid_out = bool(suffix) and tokenizer.infill is not None
    kept = request.truncate_prompt_tokens
    budget.refuse_endless(prompt, tokenizer, asked, cut=kept is not None)
    budget.refuse_endless(suffix, tokenizer, asked)
    scored = request.logprobs is not None or request.logprob_token_ids is not None
    echo = bool(request.echo)
    shown = Shown(text=echo or scored, offsets=echo and scored)
    visible = _ids(prompt, tokenizer, parse_special=not suffix)
    after: Sequence[int] = ()
    if laid_out:
        after = encode("suffix", suffix, tokenizer, parse_special=False, continues=True)
    bos = tokenizer.bos_id
    adds_bos = (
        not laid_out
        and isinstance(prompt, str)
        and bos is not None
        and request.add_special_tokens is not False
        and visible[:1] != [bos]
    )
    is_text = isinstance(prompt, str)
    if kept is not None:
        added = len(after) + INFILL_TOKENS if laid_out else int(adds_bos)
        if suffix and not laid_out:
            added += BEHIND_TOKENS
        most = budget.room(asked) if kept == _WHAT_FITS else kept
        if len(visible) > max(most - added, 0):
            visible = visible[len(visible) - max(most - added, 0) :]
            is_text = False
    if isinstance(prompt, str) and is_text:
        text = prompt_of_text(prompt, visible, vocab, shown)
    else:
        text = prompt_of_ids(visible, vocab, shown)
    if suffix:
        # The middle continues the prefix, so no space of the tokenizer comes between them.
        text = msgspec.structs.replace(text, fresh=False)
    if laid_out:
        return lay_out(infill_tokens(tokenizer), bos, visible, after), text
    if adds_bos and bos is not None and visible:
        return (bos, *visible), msgspec.structs.replace(text, hidden=1)
    if not visible:
        return (tokenizer.document_start_id,), msgspec.structs.replace(text, hidden=1)
    return tuple(visible), text


def _place(
    prompt: Prompt, request: CompletionRequest, place: Place, tokenizer: Tokenizer,
    budget: ContextBudget, asked: int | None,
) -> LaidOut:  # fmt: skip
    """Returns the ids of a prompt that asks for the middle at a place."""
    suffix = request.suffix or ""
    for text in (prompt, place.typed, suffix):
        budget.refuse_endless(text, tokenizer, asked, cut=True)
    before = list(_ids(prompt, tokenizer, parse_special=False))
    if place.typed:
        continues = bool(before)
        before += encode("prompt", place.typed, tokenizer, parse_special=False, continues=continues)
    after: Sequence[int] = ()
    if suffix:
        after = encode("input_suffix", suffix, tokenizer, parse_special=False, continues=True)
    room = PlaceRoom.of(budget.context_tokens, asked)
    return lay_out_place(before, after, place, tokenizer, room)


def _at_most(budget: ContextBudget, prompt_tokens: int, asked: int | None) -> int | None:
    """Returns what was asked for, or what fits if that is less."""
    return None if asked is None else min(asked, budget.context_tokens - prompt_tokens)


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


_ID_FIELDS = ("logit_bias", "allowed_token_ids", "stop_token_ids", "logprob_token_ids")


def _refuse_unsupported(request: CompletionRequest, unsupported: Mapping[Feature, str]) -> None:
    """Raises ``InvalidRequest`` for what the engine cannot take."""
    asked_features: tuple[tuple[str, bool, Feature], ...] = (
        ("cache_salt", request.cache_salt is not None, "cache_salt"),
        ("return_token_ids", bool(request.return_token_ids), "returned_ids"),
    )
    for name, asked, feature in asked_features:
        lacking = unsupported.get(feature)
        if asked and lacking is not None:
            raise InvalidRequest(f"'{name}' cannot be honoured: {lacking}", param=name)
    reason = unsupported.get("token_ids")
    if reason is None:
        return
    if request.suffix:
        raise InvalidRequest(f"'suffix' cannot be honoured: {reason}", param="suffix")
    for name in _ID_FIELDS:
        if getattr(request, name):
            raise InvalidRequest(f"Token ids in '{name}': {reason}", param=name)
    if any(not isinstance(prompt, str) for prompt in request.prompt):
        raise InvalidRequest(f"Token ids in 'prompt': {reason}", param="prompt")


def texts_of(request: CompletionRequest, place: Place | None = None) -> Iterator[tuple[str, bool]]:
    """Yields the texts that ``make_plan`` tokenises, and whether special tokens are parsed."""
    suffix = request.suffix or ""
    if place is not None and place.typed:
        yield place.typed, False
    for prompt in request.prompt:
        if isinstance(prompt, str) and prompt:
            yield prompt, not suffix and place is None
    if suffix:
        yield suffix, False
