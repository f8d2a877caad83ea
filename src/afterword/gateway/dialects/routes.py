"""Routes that several dialects share: the list of models, and the ids of a text."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts, chosen
from afterword.gateway.dialects.introspection import Spell, introspect_vocabulary
from afterword.gateway.lenient import decoder
from afterword.gateway.long_payload import LONG_BYTES, LongPayload
from afterword.gateway.transport.api import Api


class Listed(msgspec.Struct):
    """One model in the list; ``max_model_len`` is its context in tokens."""

    id: str
    root: str | None = None
    max_model_len: int | None = None
    afterword: dict[str, Any] = {}


class _Models(msgspec.Struct):
    """The list in OpenAI's shape. Some hosted endpoints send the bare list."""

    data: list[Listed] = []


_MODELS: Any = _Models | list[Listed]


class _Tokens(msgspec.Struct):
    tokens: list[int]


_decode = decoder(_Tokens)


async def model_of(api: Api, name: str) -> Listed:
    """Returns the upstream's model for the gateway's ``name``.

    Raises ``UpstreamFailure`` if the upstream does not answer, ``ConfigError`` if it does not
    serve the model.
    """
    answer = await api.get(f"{api.address.base}/models", _MODELS)
    listed: list[Listed] = answer if isinstance(answer, list) else answer.data
    aliases = {model.id for model in listed if model.afterword.get("alias_of") is not None}
    wanted = chosen([model.id for model in listed], api, name, aliases=aliases)
    return next(model for model in listed if model.id == wanted)


async def encode(api: Api, model: str, text: str, *, add_special: bool = False) -> list[int]:
    """Returns the ids of a text, by vLLM's route. Raises ``UpstreamFailure``."""
    body = {"model": model, "prompt": text, "add_special_tokens": add_special}
    return await api.ask(f"{api.address.root}/tokenize", body, read_tokens)


def read_tokens(received: bytes) -> list[int]:
    """Returns the ids in the answer to a text. Raises ``StreamBroke`` if there are none.

    Reads a long array in slices.
    """
    long = len(received) >= LONG_BYTES
    return _decode(LongPayload(received) if long else received).tokens


async def facts_of(
    api: Api, model: Listed, *, identity: str, max_logprobs: int, spell: Spell
) -> Facts:
    """Returns the facts of a server after introspection of its vocabulary through ``spell``."""
    return Facts(
        model=model.id,
        context_tokens=model.max_model_len or UNKNOWN_CONTEXT,
        max_logprobs=max_logprobs,
        identity=identity,
        vocabulary=await introspect_vocabulary(spell, partial(encode, api, model.id)),
    )
