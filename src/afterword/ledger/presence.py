"""What a running server tells commands on its machine."""

from __future__ import annotations

import msgspec


class Presence(msgspec.Struct, frozen=True):
    """The names and aliases of the models that a server serves."""

    serves: tuple[str, ...] = ()
