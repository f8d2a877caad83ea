"""The sampling of a request, decided: defaults filled in, ids inside the vocabulary."""

from __future__ import annotations

from afterword.completion.breakers import breaker_tokens
from afterword.completion.encoding import known_ids
from afterword.completion.request import BREAKERS, CompletionRequest
from afterword.core.errors import InvalidRequest
from afterword.core.job import Repetition, SamplingParams
from afterword.core.protocols import Tokenizer


def sampling_params(
    request: CompletionRequest, tokenizer: Tokenizer, context_tokens: int, *, draws: bool
) -> SamplingParams:
    """Returns how a request draws its tokens; ``draws``: see ``EngineCard``.

    Raises ``InvalidRequest``.
    """
    given = SamplingParams()
    return SamplingParams(
        temperature=_or(request.temperature, given.temperature),
        top_p=_or(request.top_p, given.top_p),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        typical_p=_or(request.typical_p, given.typical_p),
        xtc_probability=request.xtc_probability or 0.0,
        xtc_threshold=_or(request.xtc_threshold, given.xtc_threshold),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, given.repetition_penalty),
        repetition_window=max(request.repetition_penalty_range or 0, 0),
        repetition=_repetition(request, tokenizer, context_tokens, draws=draws),
        logit_bias=_bias(request, tokenizer),
        allowed_ids=_allowed(request, tokenizer),
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
    )


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _bias(request: CompletionRequest, tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    bias = request.logit_bias or ()
    known_ids("logit_bias", [token for token, _ in bias], tokenizer)
    if bias and sum(value <= -100 for _, value in bias) >= len(tokenizer.pieces):
        raise InvalidRequest("'logit_bias' bans every token of the vocabulary.", param="logit_bias")
    return tuple(pair for pair in bias if pair[1])


def _allowed(request: CompletionRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    allowed = known_ids("allowed_token_ids", request.allowed_token_ids, tokenizer)
    banned = {token for token, value in request.logit_bias or () if value <= -100}
    if request.min_tokens:
        banned |= tokenizer.end_ids.union(request.stop_token_ids or ())
    if allowed and banned.issuperset(allowed):
        raise InvalidRequest(
            "No token of 'allowed_token_ids' can be drawn: 'logit_bias' or 'min_tokens' bans each.",
            param="allowed_token_ids",
        )
    return allowed


def _repetition(
    request: CompletionRequest, tokenizer: Tokenizer, context_tokens: int, *, draws: bool
) -> Repetition | None:
    window = request.dry_penalty_last_n
    if not request.dry_multiplier or window == 0:
        return None
    texts = BREAKERS if request.dry_sequence_breakers is None else request.dry_sequence_breakers
    return Repetition(
        multiplier=request.dry_multiplier,
        base=_or(request.dry_base, 1.75),
        allowed_length=2 if request.dry_allowed_length is None else request.dry_allowed_length,
        window=context_tokens if window in {None, -1} else min(window or 0, context_tokens),
        # A server behind gets the texts, and its tokenizer knows no others than the prompts.
        breakers=breaker_tokens(texts, tokenizer) if draws else {},
        breaker_texts=texts,
    )
