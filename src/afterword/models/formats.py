"""Which tensors the library computes with in F32 only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_PLAIN = re.compile(r"norm|conv1d|shortconv\.conv|lerp|time_mix_first")
"""Tensors with several rows that are neither in a product nor a table of rows."""
_PRODUCTS = (".weight", ".lora_a", ".lora_b")
_ONE_ROW = "ffn_gate_inp"
"""A gate in front of one expert is a product although it has one row."""


def needs_f32(name: str, shape: Sequence[int]) -> bool:
    """Returns whether the library computes with a tensor in F32 only: norms, biases, convolutions.

    ``shape`` begins with the length of a row. In another format, a step ends the process, or reads
    the bytes as F32 (``time_mix_first``). Products and tables of rows may have any format.
    """
    if not name.endswith(_PRODUCTS) or _PLAIN.search(name):
        return True
    return math.prod(shape[1:]) == 1 and _ONE_ROW not in name
