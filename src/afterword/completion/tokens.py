"""Tokenising over HTTP, in the shapes of vLLM, because evaluation harnesses use them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from afterword.completion import fields, id_fields
from afterword.completion.bodies import parse_object
from afterword.completion.encoding import encode, known_ids, least_tokens
from afterword.completion.fields import Field
from afterword.completion.prompt_text import VocabView, text_of_ids
from afterword.core.errors import ContextLengthExceeded, InvalidRequest
from afterword.core.limits import Limits
from afterword.core.protocols import EngineCard, Tokenizer
from afterword.core.token_text import token_text
from afterword.core.wire import Vocabulary

MODEL = Field(fields.STRING, "The name or an alias of a served model. Without it, the first model.")


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize, and the declaration of each field."""

    prompt: Annotated[str, Field(fields.STRING, "The text to tokenise.", required=True)]
    model: Annotated[str | None, MODEL] = None
    add_special_tokens: Annotated[
        bool,
        Field(fields.BOOLEAN, "Put a BOS in front, if the model adds one.", True),  # noqa: FBT003 - the default
    ] = True
    return_token_strs: Annotated[
        bool,
        Field(fields.BOOLEAN, "Return the text of each token, too.", False),  # noqa: FBT003 - the default
    ] = False


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize, and the declaration of each field."""

    tokens: Annotated[
        tuple[int, ...],
        Field(id_fields.TOKEN_IDS, "The token ids to turn into text.", required=True),
    ]
    model: Annotated[str | None, MODEL] = None


class Tokenized(msgspec.Struct, frozen=True):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """Answer of POST /detokenize."""

    prompt: str


class TokenizerInfo(msgspec.Struct, frozen=True):
    """Answer of GET /tokenizer_info. Tokens are given by name, None if there is none."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    add_bos_token: bool
    chat_template: str | None
    vocabulary: Vocabulary | msgspec.UnsetType = msgspec.UNSET


def decode_tokenize(body: bytes) -> TokenizeRequest:
    """Parse the body of POST /tokenize. Raises ``InvalidRequest``."""
    return TokenizeRequest(**decode_object(body, TokenizeRequest))


def decode_detokenize(body: bytes) -> DetokenizeRequest:
    """Parse the body of POST /detokenize. Raises ``InvalidRequest``."""
    return DetokenizeRequest(**decode_object(body, DetokenizeRequest))


def decode_object(body: bytes, request: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns the fields of a body by their names. Raises ``InvalidRequest``."""
    declared = fields.declared(request)
    table = {name: field.kind_with(Limits()).parse for name, field in declared.items()}
    parsed: dict[str, Any] = {}
    for name, value in parse_object(body, table).items():
        if name not in table:
            raise fields.unrecognized(name)
        if value is not None:
            parsed[name] = table[name](name, value)
    for name, field in declared.items():
        if field.required and name not in parsed:
            raise InvalidRequest(f"you must provide a {name} parameter", param=name)
    return parsed


def refuse_long_text(request: TokenizeRequest, tokenizer: Tokenizer, card: EngineCard) -> None:
    """Raises ``ContextLengthExceeded`` for text that can be in no prompt, before it is tokenised.

    Text that takes a few more tokens than the context has is counted, so that clients can cut it.
    """
    refuse_without_ids(card, "prompt")
    least = least_tokens(request.prompt, tokenizer)
    if least > card.context_tokens:
        raise ContextLengthExceeded(context=card.context_tokens, prompt=least, completion=0)


def refuse_long_ids(request: DetokenizeRequest, card: EngineCard) -> None:
    """Raises ``ContextLengthExceeded`` for more ids than the context has."""
    refuse_without_ids(card, "tokens")
    if len(request.tokens) > card.context_tokens:
        raise ContextLengthExceeded(
            context=card.context_tokens, prompt=len(request.tokens), completion=0
        )


def tokenize(request: TokenizeRequest, tokenizer: Tokenizer, card: EngineCard) -> Tokenized:
    """Returns the ids of a text. Special tokens are parsed as in a prompt (R2)."""
    ids = list(encode("prompt", request.prompt, tokenizer))
    bos = tokenizer.bos_id
    if request.add_special_tokens and bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    strings = None
    if request.return_token_strs:
        strings = [token_text(tokenizer.pieces[i]) for i in ids]
    return Tokenized(len(ids), card.context_tokens, ids, strings)


def detokenize(request: DetokenizeRequest, tokenizer: Tokenizer) -> Detokenized:
    """Returns the text of token ids. Special tokens appear by their names.

    If the vocabulary adds a BOS, a BOS in front is not in the text (E2).
    """
    ids = known_ids("tokens", request.tokens, tokenizer)
    bos = tokenizer.bos_id
    if bos is not None and ids[:1] == (bos,):
        ids = ids[1:]
    vocab = VocabView(tokenizer.pieces, tokenizer.end_ids, tokenizer.space_after)
    return Detokenized(text_of_ids(ids, vocab))


def describe(tokenizer: Tokenizer, card: EngineCard, *, vocabulary: bool = False) -> TokenizerInfo:
    """Returns what a remote user of the tokenizer needs to know."""
    refuse_without_ids(card, None)

    def name(role: str) -> str | None:
        token = tokenizer.roles.get(role)
        return None if token is None else tokenizer.pieces[token].decode(errors="replace")

    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        vocab_size=len(tokenizer.pieces),
        model_max_length=card.context_tokens,
        bos_token=name("bos"),
        eos_token=name("eos"),
        pad_token=name("pad"),
        add_bos_token=tokenizer.bos_id is not None,
        chat_template=tokenizer.chat_template,
        vocabulary=_vocabulary(tokenizer) if vocabulary else msgspec.UNSET,
    )


def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(
        # Without the parts of text behind the last one, to which a gateway gave ids of its own.
        pieces=list(tokenizer.pieces[: len(tokenizer.pieces)]),
        special_ids=sorted(tokenizer.special_ids),
        end_ids=sorted(i for i in tokenizer.end_ids if i < len(tokenizer.pieces)),
        document_start_id=tokenizer.document_start_id,
        bos_id=tokenizer.bos_id,
        roles=tokenizer.roles,
        infill=tokenizer.infill,
        space_after=None if tokenizer.space_after is None else sorted(tokenizer.space_after),
    )


def refuse_without_ids(card: EngineCard, param: str | None) -> None:
    """Raises ``InvalidRequest`` if the engine does not take token ids."""
    reason = card.unsupported.get("token_ids")
    if reason is not None:
        raise InvalidRequest(f"This model cannot tokenise: {reason}", param=param)
