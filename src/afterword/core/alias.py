"""Another name of a model, and how requests under that name are meant."""

from __future__ import annotations

from typing import Literal

import msgspec


class Alias(msgspec.Struct, frozen=True):
    """Another name of ``model``.

    With ``template`` "chat" a prompt is what a user says to the model in a chat.
    """

    model: str
    template: Literal["chat"] | None = None

    @property
    def written(self) -> str:
        """The alias as settings write it."""
        return self.model if self.template is None else f"{self.model},template={self.template}"
