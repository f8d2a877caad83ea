"""The paths of a route that clients use: without ``/v1``, with a slash too many, or Azure's."""

from __future__ import annotations

import re
from collections.abc import Mapping

_VERSION = "/v1"
_WITHOUT_VERSION = ("/completions", "/engines", "/models", "/fim", "/chat/completions")
_NEVER_VERSIONED = (
    "/infill", "/tokenize", "/detokenize", "/tokenizer_info", "/apply-template",
)  # fmt: skip
_CHAT = (
    "This server completes text and knows no chats: POST /apply-template turns the conversation "
    "into a text as the model's chat template has it, which you send as the prompt of POST "
    "/v1/completions."
)
_OTHER_KIND = (
    "This is a route of {}: send POST /v1/completions instead, or choose the kind "
    '"OpenAI-compatible" (text completion) in your client.'
)
_LLAMA = _OTHER_KIND.format("llama-server's own kind, of which /infill is here")
_KOBOLD = _OTHER_KIND.format("KoboldAI's kind")
_OLLAMA = _OTHER_KIND.format("Ollama's kind")
_TGI = _OTHER_KIND.format("text-generation-inference's, vLLM's or SGLang's own kind")
_NO_EMBEDDINGS = (
    "This server completes text and computes no embeddings: use a server with an embedding model."
)
_NO_RANKING = (
    "This server completes text and ranks nothing: with echo and logprobs, POST /v1/completions "
    "scores a text."
)
_NO_EDITS = (
    "This server completes text and edits none: write the text and the instruction into the prompt "
    "of POST /v1/completions."
)
_ONLY_COMPLETIONS = (
    "This server completes text and has nothing else of OpenAI's interface: GET /openapi.json "
    "lists its routes."
)
_TOKENS = "Use POST /tokenize with a prompt instead; it answers with the count and the ids."
INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(
        ("/v1/chat/completions", "/api/chat", "/api/v1/chat", "/v1/responses", "/responses",
         "/v1/messages", "/messages", "/v1/messages/count_tokens", "/api/show"),
        _CHAT,
    ),
    **dict.fromkeys(("/completion",), _LLAMA),
    **dict.fromkeys(
        ("/props", "/slots", "/v1/props", "/api/tags", "/api/ps", "/v1/internal/model/info",
         "/v1/model", "/api/v1/model", "/api/extra/version", "/api/v1/config/max_context_length",
         "/api/v1/info/version", "/api/extra/true_max_context_length", "/get_model_info",
         "/get_server_info", "/server_info", "/model_info", "/info"),
        "GET /v1/models lists the models with their context, GET /tokenizer_info has their special "
        "tokens, and GET /health says whether the server works.",
    ),
    **dict.fromkeys(("/api/generate",), _OLLAMA),
    **dict.fromkeys(
        ("/api/v1/generate", "/api/latest/generate", "/api/extra/generate/stream",
         "/api/extra/generate/check", "/api/extra/abort"),
        _KOBOLD,
    ),
    **dict.fromkeys(("/generate", "/generate_stream"), _TGI),
    **dict.fromkeys(
        ("/v1/embeddings", "/embeddings", "/embedding", "/api/embeddings", "/api/embed",
         "/embed"),
        _NO_EMBEDDINGS,
    ),
    **dict.fromkeys(("/v1/rerank", "/rerank", "/reranking", "/v1/reranking", "/v1/score", "/score"),
                    _NO_RANKING),
    **dict.fromkeys(("/v1/edits", "/edits"), _NO_EDITS),
    **{
        f"{version}/{name}": _ONLY_COMPLETIONS
        for version in ("/v1", "")
        for name in ("moderations", "files", "fine-tunes", "fine_tuning/jobs", "batches",
                     "images/generations", "audio/transcriptions", "audio/speech", "assistants",
                     "threads", "answers", "classifications")
    },
    **dict.fromkeys(
        ("/v1/tokenize", "/api/extra/tokencount", "/v1/internal/encode", "/v1/token/encode",
         "/v1/internal/token-count"),
        _TOKENS,
    ),
    **dict.fromkeys(
        ("/v1/detokenize", "/v1/internal/decode", "/v1/token/decode"),
        "Use POST /detokenize with the tokens instead.",
    ),
    **dict.fromkeys(("/version", "/v1/version", "/api/version"),
                    "GET /openapi.json has the server's version."),
    "/v1": "This is the base URL for an SDK: GET /docs describes the routes below it.",
    "/v1/infill": "Use POST /infill instead.",
    "/v1/apply-template": "Use POST /apply-template instead.",
}  # fmt: skip
"""What to do instead of asking for a path that other servers have, one sentence each."""


_AZURE = "/openai"
_DEPLOYMENTS = "/deployments/"
_MISTAKES = (
    (re.compile(r"^/v1/v1(/|$)"), "The client adds /v1 by itself: leave it out of its base URL."),
    (
        re.compile(r"^/v1/completions/(v1/|chat/)*(completions|models)$"),
        "The client adds the route by itself: end its base URL with /v1.",
    ),
    (
        re.compile(r"^/v1[a-z]"),
        "The client adds no slash between its base URL and the route: end its base URL with /v1/.",
    ),
)
"""What a base URL that is not meant for its client makes of a path."""


def canonical(path: str) -> str:
    """Returns the path as the table of routes has it."""
    path = path.removesuffix("/") or path
    # A base URL that ends with a slash, before a client's path that begins with one. Paths of
    # operators are left out: a proxy in front may know them by their first characters.
    single = "/" + path.lstrip("/")
    if single.startswith(f"{_AZURE}/"):
        single = _of_azure(single)
    if single.startswith(f"{_VERSION}/"):
        return f"{_VERSION}/{single.removeprefix(_VERSION).lstrip('/')}"
    for start in _WITHOUT_VERSION:
        if single == start or single.startswith(f"{start}/"):
            return f"{_VERSION}{single}"
    return single if single in _NEVER_VERSIONED else path


def _of_azure(path: str) -> str:
    """Returns OpenAI's path for one of Azure's, where a deployment is a model."""
    below = path.removeprefix(_AZURE)
    if not below.startswith(_DEPLOYMENTS):
        return below if below.startswith(("/v1/", "/models")) else path
    for other in ("/chat/completions", "/embeddings"):
        if below.endswith(other):
            return f"/v1{other}"
    return f"/engines/{below.removeprefix(_DEPLOYMENTS)}"


def instead_of(path: str) -> str | None:
    """Returns what to do instead of asking for a path that is not here, if that is known."""
    if path in INSTEAD:
        return INSTEAD[path]
    return next((said for mistake, said in _MISTAKES if mistake.match(path)), None)
