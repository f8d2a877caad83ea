"""The exception tree: what can go wrong, and how the wire says it.

AfterwordError
├── ConfigError              a setting, file or port that cannot be used: one line, exit status 2
├── UnusableGrammar          a grammar that an engine cannot keep to
├── UnspellableText          a vocabulary has no tokens for a text; a 400 that names the field
└── ApiError                 an answer with an error envelope
    ├── InvalidRequest       400 invalid_request_error
    │   └── ContextLengthExceeded   code context_length_exceeded
    ├── AuthenticationFailed 401 invalid_api_key
    ├── PermissionDenied     403 insufficient_permissions
    ├── ModelNotFound        404 model_not_found
    ├── UnknownUrl           404
    ├── MethodNotAllowed     405
    ├── UnreadableRequest    400 bytes that are no HTTP/1.1
    ├── RequestTimedOut      408
    ├── BodyTooLarge         413
    ├── UnsupportedEncoding  415
    ├── HeadersTooLarge      431
    ├── RateLimited          429 rate_limit_exceeded
    ├── BudgetExceeded       429 insufficient_quota
    ├── EngineFailed         500 server_error
    ├── UpstreamFailed       502 upstream_failed
    ├── EngineOverloaded     503 engine_overloaded
    ├── EngineUnavailable    503 the engine is dead or the server is shutting down
    └── LedgerUnavailable    503 ledger_unavailable
"""

from typing import ClassVar

from afterword.core.account import Rates


class AfterwordError(Exception):
    """The root of all exceptions that Afterword raises on purpose."""


class ConfigError(AfterwordError):
    """The operator gave something unusable. The message is one line for a terminal."""


class UnusableGrammar(AfterwordError):
    """A grammar that an engine cannot keep to. The message says why."""


class UnspellableText(AfterwordError):
    """The vocabulary has no tokens for some characters of a text, and no unknown token."""


class ApiError(AfterwordError):
    """An error that the client sees, in OpenAI's envelope."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_s = retry_after_s


class InvalidRequest(ApiError):
    """The request cannot be honoured. ``param`` names the field at fault."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and max_tokens do not fit into the model's context (H12)."""

    default_code = "context_length_exceeded"

    def __init__(self, *, context: int, prompt: int, completion: int) -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens, however you requested "
            f"{prompt + completion} tokens ({prompt} in your prompt; {completion} for the "
            "completion). Please reduce your prompt; or completion length."
        )


class AuthenticationFailed(ApiError):
    """The key is missing or wrong (H3)."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class PermissionDenied(ApiError):
    """The key is valid, but not for this."""

    status = 403
    type = "invalid_request_error"
    default_code = "insufficient_permissions"


class ModelNotFound(ApiError):
    """The model is not served, or not to this key (H4)."""

    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model}` does not exist or you do not have access to it.", param="model"
        )


class UnknownUrl(ApiError):
    """No route has this path (H5)."""

    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    """The path exists, but not with this method (H5)."""

    status = 405
    type = "invalid_request_error"


class BodyTooLarge(ApiError):
    """The body is over the operator's limit (H6)."""

    status = 413
    type = "invalid_request_error"


class UnreadableRequest(ApiError):
    """The bytes are no HTTP/1.1, or end too early (H15)."""

    status = 400
    type = "invalid_request_error"


class RequestTimedOut(ApiError):
    """The request did not arrive in time (H15)."""

    status = 408
    type = "invalid_request_error"


class UnsupportedEncoding(ApiError):
    """The body is compressed (H14)."""

    status = 415
    type = "invalid_request_error"


class HeadersTooLarge(ApiError):
    """The head of a request, with its trailers, is over the limit (H15)."""

    status = 431
    type = "invalid_request_error"


class RateLimited(ApiError):
    """The key's rate is used up for now (H7).

    ``limit`` names the limit, ``rates`` has the state of all. If the request is larger than the
    limit itself and never fits, ``retry_after_s`` is None.
    """

    status = 429
    type = "rate_limit_exceeded"
    default_code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, limit: str, rates: Rates, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.limit = limit
        self.rates = rates


class BudgetExceeded(ApiError):
    """The key's budget is spent (H8)."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class EngineFailed(ApiError):
    """A job's computation failed; other jobs go on (H10)."""


class UpstreamFailed(ApiError):
    """The answer of a server behind this one broke off, or cannot be read."""

    status = 502
    default_code = "upstream_failed"


class EngineOverloaded(ApiError):
    """The waiting line is full, or too many large requests are under way (H9)."""

    status = 503
    default_code = "engine_overloaded"


class EngineUnavailable(ApiError):
    """The engine is dead, or the server is shutting down."""

    status = 503


class LedgerUnavailable(ApiError):
    """The ledger cannot look up what a request may use, or cannot record what it used."""

    status = 503
    default_code = "ledger_unavailable"
