"""Makes a plan of a request. In a plan nothing means "default", and nothing is left to refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from afterword.completion.answer_weight import AnswerWeight
from afterword.completion.choice import Presentation
from afterword.completion.context_budget import ContextBudget
from afterword.completion.encoding import known_ids
from afterword.completion.framing import Framing
from afterword.completion.infill import Place, infill_tokens
from afterword.completion.prompt_text import PromptText, VocabView
from afterword.completion.prompts import Prompts
from afterword.completion.refusals import (
    counts,
    refuse_contradictions,
    refuse_many,
    refuse_min_tokens,
    refuse_unsupported,
)
from afterword.completion.request import CompletionRequest
from afterword.completion.sampling import sampling_params
from afterword.completion.search import Around, Search, plan_search
from afterword.completion.search_size import (
    SearchSize,
    refuse_broken,
    refuse_search,
    search_size,
)
from afterword.core.errors import InvalidRequest, UnusableGrammar
from afterword.core.job import (
    Constraint,
    GrammarKind,
    InfillFilter,
    Job,
    OutputGrammar,
)
from afterword.core.protocols import Feature, PrefixSharing, Tokenizer


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
    ``chat`` for one whose prompts stand in a chat template. ``spelled``: names of special tokens in
    prompts are text. ``draws``: see ``EngineCard``.
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
    spelled: bool = False
    draws: bool = True


def make_plan(
    request: CompletionRequest, tokenizer: Tokenizer, budget: ContextBudget, inputs: PlanInputs
) -> Plan:
    """Returns the plan of a request. Pure, but tokenising long text takes milliseconds.

    Raises ``InvalidRequest``.
    """
    choices = n, candidates = counts(request)
    refuse_many(request, candidates, budget.limits.max_choices)
    refuse_contradictions(request)
    refuse_unsupported(request, inputs.unsupported)
    options = request.stream_options or {}
    common = _common_job(request, tokenizer, budget.context_tokens, inputs, choices)
    end_ids = tokenizer.end_ids.union(common.extra_end_ids)
    vocab = VocabView(tokenizer.pieces, end_ids, tokenizer.space_after, tokenizer.aliases)
    layout = Prompts(
        request=request,
        tokenizer=tokenizer,
        budget=budget,
        vocab=vocab,
        chat=inputs.chat,
        place=None if inputs.infill is None else inputs.infill.place,
        spelled=inputs.spelled,
    )
    searched = _is_searched(request, tokenizer, inputs, budget)
    laid = _lay_out(layout, common, choices, searched=searched)
    jobs = laid.jobs
    silent = end_ids.union(() if request.include_stop_str_in_output else common.stop_ids)
    if request.skip_special_tokens:
        silent = silent.union(tokenizer.special_ids)
    logprobs, _ = _log_probabilities(request)
    presentation = _presentation(request, logprobs, silent, inputs.infill)
    search = None
    if laid.sizes:
        # The search ranks middles itself.
        jobs = [msgspec.structs.replace(job, n=n, logprobs=logprobs) for job in jobs]
        around = Around(request.suffix or "", presentation, tokenizer, vocab, budget)
        search = plan_search(jobs, around, laid.sizes)
        presentation = search.presentation
    return Plan(
        id=inputs.id,
        model=inputs.model,
        created=inputs.created,
        fingerprint=inputs.fingerprint,
        jobs=tuple(jobs),
        prompts=tuple(laid.prompts),
        vocab=vocab,
        n=n,
        candidates=candidates if search is None else n,
        shown=presentation,
        stream=bool(request.stream),
        include_usage=options.get("include_usage", False),
        continuous_usage=options.get("continuous_usage_stats", False),
        include_obfuscation=options.get("include_obfuscation", False),
        user=request.user,
        open_ended=layout.asked is None,
        cut=laid.cut,
        timed=inputs.infill is not None,
        search=search,
    )


class _LaidOut(NamedTuple):
    """What the prompts of a request become. ``sizes`` are those of searches, one for each job."""

    jobs: list[Job]
    prompts: list[PromptText]
    sizes: list[SearchSize]
    cut: bool


def _lay_out(layout: Prompts, common: Job, choices: tuple[int, int], *, searched: bool) -> _LaidOut:
    """Returns what each prompt becomes; ``common`` is what the jobs share.

    ``choices`` are how many of a prompt are shown, and how many are made. Raises
    ``InvalidRequest``.
    """
    request, budget, asked = layout.request, layout.budget, layout.asked
    weight = AnswerWeight(request, choices[0], _log_probabilities(request)[0], budget.limits)
    jobs, prompts, sizes, any_cut = list[Job](), list[PromptText](), list[SearchSize](), False
    for prompt in request.prompt or ("",):
        ids, text, cut = layout.lay_out(prompt)
        most = layout.completion_tokens(len(ids))
        if searched and most:
            refuse_broken(text)
            size = search_size(asked, choices, len(ids), budget, asked_by=layout.asked_by)
            sizes.append(size)
            most = size.middle_tokens
        refuse_min_tokens(common.sampling.min_tokens, most, asked, layout.asked_by)
        weight.add(text)
        jobs.append(msgspec.structs.replace(common, prompt_ids=ids, max_tokens=most))
        prompts.append(text)
        any_cut |= cut
    return _LaidOut(jobs, prompts, sizes, any_cut)


def _common_job(
    request: CompletionRequest,
    tokenizer: Tokenizer,
    context_tokens: int,
    inputs: PlanInputs,
    choices: tuple[int, int],
) -> Job:
    """Returns what the jobs of a request share; it has no prompt and no ``max_tokens`` yet.

    ``choices`` are those of a prompt that are shown, and those that are made. Raises
    ``InvalidRequest``.
    """
    n, candidates = choices
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
        seeded=request.seed is not None,
        # Candidates are ranked by the log-probabilities of their tokens (A6).
        logprobs=0 if logprobs is None and candidates > n else logprobs,
        prompt_logprobs=scored,
        prompt_ranks=request.prompt_logprobs is not None,
        scored_ids=known_ids("logprob_token_ids", request.logprob_token_ids, tokenizer),
        extra_end_ids=extra_end_ids,
        stop_ids=known_ids("stop_token_ids", request.stop_token_ids, tokenizer),
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
        scored_ids=request.logprob_token_ids or (),
        stops=request.stop or (),
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=request.min_tokens or 0,
        silent_ids=silent,
        token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        least_indent=0 if infill is None else infill.least_indent,
        most_ms=None if infill is None else infill.most_ms,
    )


def _constraint(request: CompletionRequest, inputs: PlanInputs) -> Constraint | None:
    for name in ("response_format", "structured_outputs"):
        grammar: OutputGrammar | None = getattr(request, name)
        if grammar is None:
            continue
        try:
            return msgspec.structs.replace(inputs.constrain(grammar), field=name)
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


def _cache_scope(operators: str, salt: str | None) -> str:
    """Returns the scope of a request's jobs; a salt gives one that nobody else can name."""
    if salt is None:
        return operators
    return hashlib.sha256(f"{len(operators)} {operators} {salt}".encode()).hexdigest()
