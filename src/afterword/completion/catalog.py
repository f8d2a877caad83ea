"""The served models, by name and alias."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from afterword.completion.chat_template import ChatTemplate, TemplateUnusable
from afterword.completion.old_tokens import OldTokens, TokenTranslation
from afterword.completion.search import infill_way
from afterword.core.alias import Alias
from afterword.core.errors import ModelNotFound
from afterword.core.fingerprint import fingerprint
from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.core.wire import Model

CATCH_ALL = "*"
"""The alias that takes every name that is not served (R1)."""


class ServedModel(msgspec.Struct, frozen=True):
    """An engine and the name that it is served under. ``created`` is Unix seconds.

    ``chat`` is the template around the prompts of an alias that answers instructions, and ``old``
    the translation of token ids of an alias for clients that send OpenAI's.
    """

    name: str
    engine: Engine
    created: int
    chat: ChatTemplate | None = None
    old: TokenTranslation | None = None

    @property
    def fingerprint(self) -> str:
        """The engine's. An alias that changes what a request means has one of its own (D3)."""
        engine = self.engine.card.fingerprint
        if self.chat is None and self.old is None:
            return engine
        tokens = None if self.old is None else self.old.vocabulary.name
        return fingerprint(engine, self.chat is not None, tokens)


def _as_meant(
    served: ServedModel, name: str, alias: Alias, vocabularies: Mapping[str, OldTokens]
) -> ServedModel:
    """Returns a model as an alias means it. Raises ``ValueError``."""
    if alias.template is None and alias.tokens is None:
        return served
    reason = served.engine.card.unsupported.get("token_ids")
    if reason is not None:
        raise ValueError(f"alias {name}: {alias.written} needs token ids, and {reason}")
    tokenizer, template, old = served.engine.tokenizer, None, None
    if alias.template is not None:
        try:
            template = ChatTemplate.of(tokenizer)
        except TemplateUnusable as error:
            raise ValueError(f"alias {name}: {error}") from error
    if alias.tokens is not None:
        old = vocabularies[alias.tokens].translation(tokenizer)
    return msgspec.structs.replace(served, chat=template, old=old)


def _has_template(engine: Engine) -> bool:
    """Whether POST /apply-template has a template for a model."""
    return bool(engine.tokenizer.chat_template) and "token_ids" not in engine.card.unsupported


class Catalog:
    """Names and aliases of engines, in the given order.

    The alias ``*`` takes every name that is none of them. It is in no listing. Raises
    ``ValueError`` for no models, for a name given twice, and for an alias that names no model or is
    the name of one.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        aliases: Mapping[str, Alias] | None = None,
        vocabularies: Mapping[str, OldTokens] | None = None,
    ) -> None:
        self.engines: Sequence[ServedModel] = tuple(models)
        """All models, without aliases, also in a restricted catalog. Never empty."""
        self._names = {model.name: model for model in models}
        if len(self._names) < len(models) or not models:
            raise ValueError("there must be at least one model, and no two of the same name")
        self._all_names = self._names
        self._caught: ServedModel | None = None
        for name, alias in (aliases or {}).items():
            if alias.model not in self._names or name in self._names:
                raise ValueError(f"alias {name}={alias.model} names no model, or is one itself")
            served = _as_meant(self._names[alias.model], name, alias, vocabularies or {})
            if name == CATCH_ALL:
                self._caught = served
            else:
                self._names[name] = served

    def restricted_to(self, allowed: Collection[str]) -> Catalog:
        """Returns the catalog of a key for these names. A model's name includes its aliases.

        A name that is served, but not to this key, is still not found: the key gets no other model
        in its place.
        """
        seen = Catalog(self.engines)
        seen._names = {
            name: model
            for name, model in self._names.items()
            if name in allowed or model.name in allowed
        }
        seen._all_names = self._all_names
        caught = self._caught
        if caught is not None and not {CATCH_ALL, caught.name}.isdisjoint(allowed):
            seen._caught = caught
        return seen

    @property
    def default(self) -> ServedModel:
        """The first model, for requests that name none. Raises ``ModelNotFound`` if it is empty."""
        for model in self._names.values():
            return model
        raise ModelNotFound("-")

    @property
    def default_of_infills(self) -> ServedModel:
        """The first model with fill-in-the-middle tokens, else the first one.

        Raises ``ModelNotFound`` if the catalog is empty.
        """
        models = self._names.values()
        able = (model for model in models if model.engine.tokenizer.infill is not None)
        return next(able, None) or self.default

    def resolve(self, name: str) -> ServedModel:
        """Returns the model of a name or alias. Raises ``ModelNotFound``."""
        model = self._names.get(name)
        if model is None and self._caught is not None and name not in self._all_names:
            return self._caught
        if model is None:
            raise ModelNotFound(name if len(name) <= 200 else f"{name[:200]}…")
        return model

    def recorded(self, name: str) -> str:
        """Returns the name that records and metrics have for a name: clients invent no rows."""
        return name if name in self._names else self.resolve(name).name

    def listing(self, limits: Limits) -> list[Model]:
        """Returns every name and alias as clients see it."""
        return [self.describe(name, limits) for name in self._names]

    def describe(self, name: str, limits: Limits) -> Model:
        """Returns a model as clients see it, with the limits of a request."""
        served = self.resolve(name)
        card = served.engine.card
        way = infill_way(served.engine) if served.chat is None else None
        facts: dict[str, str | int | bool | None] = {
            "context_tokens": card.context_tokens,
            "system_fingerprint": served.fingerprint,
            "batch_invariant": card.batch_invariant,
            "prefix_sharing": card.prefix_sharing,
            "suffix": way is not None,
            "infill": way,
            "alias_of": served.name if name != served.name else None,
            "template": None if served.chat is None else "chat",
            "chat_template": _has_template(served.engine),
            "tokens": None if served.old is None else served.old.vocabulary.name,
        }
        facts |= {
            field: getattr(limits, field)
            for field in Limits.__struct_fields__
            if field != "require_model"
        }
        return Model(
            id=name,
            created=served.created,
            owned_by="afterword",
            max_model_len=card.context_tokens,
            afterword={**facts, **card.details},
        )
