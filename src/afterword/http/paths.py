"""The paths of a route that clients use: with and without ``/v1``, with a slash at the end."""

from __future__ import annotations

from collections.abc import Mapping

_WITHOUT_VERSION = ("/completions", "/engines", "/models", "/fim", "/chat/completions")
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
    "/v1/infill": "Use POST /infill instead.",
    "/v1/apply-template": "Use POST /apply-template instead.",
}  # fmt: skip
"""What to do instead of asking for a path that other servers have, one sentence each."""


def canonical(path: str) -> str:
    """Returns the path as the table of routes has it."""
    path = path.removesuffix("/") or path
    for start in _WITHOUT_VERSION:
        if path == start or path.startswith(f"{start}/"):
            return f"/v1{path}"
    return path
