"""Routes that several kinds of server have: which models there are, and which ids a text has."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT, Facts, chosen
from afterword.gateway.dialects.introspection import Spell, introspect_vocabulary
from afterword.gateway.transport.api import Api


class Listed(msgspec.Struct):
    """A model as it is listed."""

    id: str
    root: str | None = None
    max_model_len: int | None = None
    afterword: dict[str, Any] = {}


class _Models(msgspec.Struct):
    data: list[Listed] = []


class _Tokens(msgspec.Struct):
    tokens: list[int]


async def model_of(api: Api, name: str) -> Listed:
    """The model that is meant by ``name``. Raises ``UpstreamFailure`` and ``ConfigError``."""
    listed = (await api.get(f"{api.address.base}/models", _Models)).data
    wanted = chosen([model.id for model in listed], api, name)
    return next(model for model in listed if model.id == wanted)


async def encode(api: Api, model: str, text: str, *, add_special: bool = False) -> list[int]:
    """The ids of a text, as vLLM and who follows it are asked for them."""
    body = {"model": model, "prompt": text, "add_special_tokens": add_special}
    return (await api.post(f"{api.address.root}/tokenize", body, _Tokens)).tokens


async def facts_of(
    api: Api, model: Listed, *, identity: str, max_logprobs: int, spell: Spell
) -> Facts:
    """What a server is whose vocabulary has to be asked for piece by piece."""
    return Facts(
        model=model.id,
        context_tokens=model.max_model_len or UNKNOWN_CONTEXT,
        max_logprobs=max_logprobs,
        identity=identity,
        vocabulary=await introspect_vocabulary(spell, partial(encode, api, model.id)),
    )
