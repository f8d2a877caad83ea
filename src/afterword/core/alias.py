"""Another name of a model, and how requests under that name are meant."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

OldVocabulary: TypeAlias = Literal["cl100k_base", "p50k_base"]


class Alias(msgspec.Struct, frozen=True):
    """Another name of ``model``.

    With ``template`` "chat" a prompt is what a user says to the model in a chat. ``tokens`` names
    the vocabulary of OpenAI whose token ids requests have.
    """

    model: str
    template: Literal["chat"] | None = None
    tokens: OldVocabulary | None = None

    @property
    def written(self) -> str:
        """The alias as settings write it."""
        options = {"template": self.template, "tokens": self.tokens}
        given = (f",{name}={value}" for name, value in options.items() if value is not None)
        return self.model + "".join(given)
