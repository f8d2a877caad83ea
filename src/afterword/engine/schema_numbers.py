"""Refuses numbers of JSON Schemas that llguidance would get wrong, or compile without end."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_MULTIPLE_OF = re.compile(rf'"multipleOf"\s*:\s*({_NUMBER})')
_BOUND = re.compile(rf'"(minimum|exclusiveMinimum|maximum|exclusiveMaximum)"\s*:\s*({_NUMBER})')
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_MEETING = ("allOf", "anyOf", "oneOf", "$ref")
_MOST_REMAINDERS = 10_000
_EXACT = 2**53
"""Up to here a double has every whole number."""
_LEAST, _MOST = -(2**63), 2**63 - 1


def refuse_numbers(text: str) -> None:
    """Raises ``ValueError`` for a number that cannot be kept to, in a schema or around one."""
    plain = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    _refuse_far_bounds(plain)
    _refuse_many_remainders(plain)


def _refuse_far_bounds(plain: str) -> None:
    """Refuse bounds that are moved outwards.

    llguidance reads a bound as a double, and moves an integer's into 64 bits. At the least of
    these its recursion has no end.
    """
    for name, written in _BOUND.findall(plain):
        bound = float(written)
        if abs(bound) >= _EXACT and not _is_kept(name, bound, written):
            raise ValueError(f"its {name} is too far from 0 to be kept exactly")


def _is_kept(name: str, bound: float, written: str) -> bool:
    """Whether every value that llguidance allows is within a bound beyond ``_EXACT``."""
    if not _LEAST < bound < math.inf:
        return False
    kept = min(int(bound), _MOST)
    return kept >= Decimal(written) if "inimum" in name else kept <= Decimal(written)


def _refuse_many_remainders(plain: str) -> None:
    """Refuse values of ``multipleOf`` that take too long to compile.

    llguidance makes a state for each remainder, without a bound. Where schemas meet, their values
    are multiplied.
    """
    doubles = {abs(float(number)) for number in _MULTIPLE_OF.findall(plain)} - {0.0}
    if math.inf in doubles:
        raise ValueError("its multipleOf is no number")
    # A double as it is written: 0.01 has 100 parts.
    values = {Fraction(repr(value)) for value in doubles}
    meet = any(f'"{name}"' in plain for name in _MEETING)
    scale = math.lcm(*(value.denominator for value in values))
    together = 1
    for value in values:
        alone = int(value * scale) if meet else value.numerator
        together = math.lcm(together, alone) if meet else alone
        if together > _MOST_REMAINDERS:
            raise ValueError(f"its multipleOf has more than {_MOST_REMAINDERS} remainders")
