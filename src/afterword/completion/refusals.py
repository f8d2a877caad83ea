"""What a request cannot have: fields that contradict each other, and what an engine cannot take."""

from __future__ import annotations

from collections.abc import Mapping

from afterword.completion.request import CompletionRequest
from afterword.core.errors import InvalidRequest
from afterword.core.protocols import Feature

_ID_FIELDS = ("logit_bias", "allowed_token_ids", "stop_token_ids", "logprob_token_ids")


def counts(request: CompletionRequest) -> tuple[int, int]:
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


def refuse_many(request: CompletionRequest, candidates: int, most: int) -> None:
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


def refuse_contradictions(request: CompletionRequest) -> None:
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


def refuse_unsupported(request: CompletionRequest, unsupported: Mapping[Feature, str]) -> None:
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


def refuse_min_tokens(least: int, most: int, asked: int | None, asked_by: str) -> None:
    """Raises ``InvalidRequest`` if ``min_tokens`` is more than what may be generated.

    ``asked_by`` is the name of the limit.
    """
    if least <= most:
        return
    bound = "its default here" if asked is None else "as requested"
    raise InvalidRequest(
        f"'min_tokens' ({least}) must be at most '{asked_by}' ({most}, {bound}).",
        param="min_tokens",
        code="invalid_value",
    )
