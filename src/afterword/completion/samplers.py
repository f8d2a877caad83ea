"""llama-server's ``samplers``: which stages are on, and whether their order means ours (F5).

The order here is temperature, top_k, typ_p, top_p, min_p, xtc. Another order is refused unless it
gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterword.core.errors import InvalidRequest

INFILL = "infill"
_TEMPERATURE = "temperature"
_NAMES: Mapping[str, str] = {"typical_p": "typ_p", "temp": _TEMPERATURE}
"""Other names of stages."""
MOST_INFILL_CANDIDATES = 256
"""The infill filter compares each candidate with all others."""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of all stages, by llama-server's names. The defaults are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0


_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "penalties": ("repeat_penalty", "presence_penalty", "frequency_penalty"),
    "dry": ("dry_multiplier",),
    "top_k": ("top_k",),
    "typ_p": ("typical_p",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc_probability",),
    INFILL: (),
    _TEMPERATURE: ("temperature",),
    "top_n_sigma": (),
}
"""The parameters of each stage, in the order here; the place of temperature is checked apart."""
STAGES = tuple(_PARAMETERS)
_BEFORE_GREEDY = frozenset(("typ_p", "xtc", INFILL))
_BEFORE_TEMPERATURE = _BEFORE_GREEDY.union(("top_p", "min_p"))
"""Stages that choose other tokens if they come before the temperature; 0 takes the likeliest."""


def chosen_stages(wanted: Stages, samplers: Sequence[str] | None) -> tuple[Stages, bool]:
    """Returns the parameters with all other stages off, and whether the infill filter is on.

    None means all stages but that filter. Raises ``InvalidRequest`` if the order means something
    else than it does here.
    """
    if samplers is None:
        return wanted, False
    names = [_NAMES.get(name, name) for name in samplers]
    for given, name in zip(samplers, names, strict=True):
        if name not in _PARAMETERS:
            raise _refusal(f"{given!r:.40} is not offered here; known are {', '.join(STAGES)}.")
    off = Stages()
    kept = {
        field: getattr(wanted if stage in names else off, field)
        for stage, fields in _PARAMETERS.items()
        for field in fields
    }
    stages = Stages(**kept)
    active = [name for name in names if name == INFILL or _is_on(name, stages)]
    _refuse_order(active, stages)
    filtered = INFILL in active
    if filtered and not 1 <= stages.top_k <= MOST_INFILL_CANDIDATES:
        raise _refusal(
            f"'{INFILL}' needs top_k from 1 to {MOST_INFILL_CANDIDATES} before it.",
        )
    return stages, filtered


def _is_on(stage: str, stages: Stages) -> bool:
    off = Stages()
    return any(getattr(stages, name) != getattr(off, name) for name in _PARAMETERS[stage])


def _refuse_order(active: Sequence[str], stages: Stages) -> None:
    """Raises ``InvalidRequest`` for stages that do not mean the same in the order here."""
    others = [name for name in active if name != _TEMPERATURE]
    agrees = others == sorted(set(others), key=STAGES.index)
    if agrees and _TEMPERATURE in active:
        before = active[: active.index(_TEMPERATURE)]
        matters = _BEFORE_GREEDY if stages.temperature == 0 else _BEFORE_TEMPERATURE
        agrees = active.count(_TEMPERATURE) == 1 and not matters.intersection(before)
    if not agrees:
        raise _refusal(f"the order here is {', '.join(_order(active))}, each once.")


def _order(active: Sequence[str]) -> list[str]:
    """Returns the stages in the order here."""
    first = [name for name in ("penalties", "dry", _TEMPERATURE) if name in active]
    return first + [name for name in STAGES if name in active and name not in first]


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'samplers': {reason}", param="samplers", code="invalid_value"
    )
