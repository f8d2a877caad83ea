"""``POST /apply-template``: a conversation in a model's chat template, in llama-server's shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated

import msgspec

from afterword.completion import fields
from afterword.completion.chat_template import ChatTemplate, Message, TemplateUnusable
from afterword.completion.encoding import least_tokens
from afterword.completion.fields import Field, Json, Kind, shown
from afterword.completion.framing import end_of_turn_ids
from afterword.completion.tokens import MODEL, decode_object, refuse_without_ids
from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.protocols import EngineCard, Tokenizer

_ROLES = ("system", "user", "assistant")


def _messages(name: str, value: Json) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise fields.wrong_type(name, value, "an array of messages")
    if not value:
        raise fields.out_of_range(name, value, "an array of at least 1 message")
    return tuple(_message(f"{name}[{i}]", item) for i, item in enumerate(value))


def _message(name: str, value: Json) -> Message:
    if not isinstance(value, dict):
        raise fields.wrong_type(name, value, "an object with role and content")
    for key in value:
        if key not in {"role", "content"}:
            raise fields.unrecognized(f"{name}.{key}")
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES:
        raise InvalidRequest(
            f"Invalid value for '{name}.role': expected one of {', '.join(_ROLES)}, but got "
            f"{shown(role)} instead.",
            param=f"{name}.role",
            code="invalid_value",
        )
    return Message(role, fields.STRING.parse(f"{name}.content", content))


_MESSAGES = Kind(
    _messages,
    {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["role", "content"],
            "properties": {"role": {"enum": list(_ROLES)}, "content": {"type": "string"}},
        },
    },
)


class TemplateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /apply-template, and the declaration of each field."""

    messages: Annotated[
        tuple[Message, ...],
        Field(
            _MESSAGES,
            "The conversation. If its last message is the assistant's, the prompt ends with it, so "
            "that a completion goes on from there.",
            required=True,
        ),
    ]
    model: Annotated[str | None, MODEL] = None


class Templated(msgspec.Struct, frozen=True):
    """Answer of POST /apply-template.

    ``offsets`` says where the text of each message begins in the prompt, in characters; None if
    the template changes a text. ``stop_token_ids`` end the model's turn and would not end a
    completion by themselves.
    """

    prompt: str
    offsets: list[int | None]
    stop_token_ids: list[int]


def decode_template(body: bytes) -> TemplateRequest:
    """Parse the body of POST /apply-template. Raises ``InvalidRequest``."""
    return TemplateRequest(**decode_object(body, TemplateRequest))


def refuse_long_messages(request: TemplateRequest, tokenizer: Tokenizer, card: EngineCard) -> None:
    """Raises ``ContextLengthExceeded`` for messages that can be in no prompt, before rendering.

    A message takes a token at least.
    """
    refuse_without_ids(card, "messages")
    least = sum(max(1, least_tokens(each.content, tokenizer)) for each in request.messages)
    if least > card.context_tokens:
        raise ContextLengthExceeded(context=card.context_tokens, prompt=least, completion=0)


def ending(tokenizer: Tokenizer, now: int) -> Iterator[tuple[str, bool]]:
    """Yields the text that ``apply`` tokenises, and whether special tokens are parsed."""
    yield _template(tokenizer).end_of_turn(now), True


def apply(request: TemplateRequest, tokenizer: Tokenizer, now: int) -> Templated:
    """Returns a conversation in the template. ``now``, in Unix seconds, is for dates.

    Raises ``InvalidRequest`` if the template is none or does not take the conversation.
    """
    template = _template(tokenizer)
    try:
        prompt, offsets = template.converse(request.messages, now)
    except TemplateUnusable as error:
        raise _refusal(error) from error
    ends = end_of_turn_ids(template, now, tokenizer)
    return Templated(prompt, list(offsets), [i for i in ends if i not in tokenizer.end_ids])


def _refusal(error: TemplateUnusable) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'messages': {error}.", param="messages", code="invalid_value"
    )


def _template(tokenizer: Tokenizer) -> ChatTemplate:
    """Returns the model's template. Raises ``InvalidRequest``."""
    try:
        return _compiled(*ChatTemplate.source_of(tokenizer))
    except TemplateUnusable as error:
        raise _refusal(error) from error


@lru_cache(maxsize=32)
def _compiled(source: str, bos: str, eos: str) -> ChatTemplate:
    """Compile a template. It takes some milliseconds."""
    return ChatTemplate(source, bos=bos, eos=eos)
