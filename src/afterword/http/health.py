"""What load balancers are told: whether the server can compute, and whether it takes work."""

from __future__ import annotations

import msgspec

from afterword.completion.catalog import ServedModel
from afterword.core import wire
from afterword.core.account import Principal
from afterword.core.protocols import PrefixSharing


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one model's engine.

    ``batch_invariant`` says whether a check found D1 to hold. ``prefix_sharing`` says how prompts
    share what was computed; it is null if another server decides. A key that may not use the model
    gets neither name nor fingerprint.
    """

    model: str | msgspec.UnsetType = msgspec.UNSET
    healthy: bool
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    batch_invariant: bool
    prefix_sharing: PrefixSharing | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server can complete prompts. ``error`` is there if it cannot.

    ``model`` and ``fingerprint`` are those of the first engine.
    """

    status: str
    model: str | msgspec.UnsetType = msgspec.UNSET
    fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    engines: list[EngineHealth]
    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET


class Readiness(msgspec.Struct, frozen=True):
    """Whether the server takes requests. ``error`` is there if it does not."""

    status: str
    ledger: str
    error: wire.ErrorBody | msgspec.UnsetType = msgspec.UNSET


def engine_health(model: ServedModel, principal: Principal) -> EngineHealth:
    """Returns an engine's health, with what the principal may see."""
    card, healthy = model.engine.card, model.engine.healthy()
    if principal.models is not None and model.name not in principal.models:
        return EngineHealth(
            healthy=healthy,
            batch_invariant=card.batch_invariant,
            prefix_sharing=card.prefix_sharing,
        )
    return EngineHealth(
        model=model.name,
        healthy=healthy,
        fingerprint=card.fingerprint,
        batch_invariant=card.batch_invariant,
        prefix_sharing=card.prefix_sharing,
    )
