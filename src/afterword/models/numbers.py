"""What a header may say of the model's sizes. The library ends the process on other values."""

from __future__ import annotations

import math
from collections.abc import Iterator

from afterword.models.gguf import Header

_MOST_CONTEXT = 2**31
"""The library counts tokens in 32 bits, with a sign."""
_MOST_LAYERS, _MOST_EXPERTS = 512, 1024
_SCALINGS = ("none", "linear", "yarn", "longrope")
_NO_WEIGHTS = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
"""Formats of tensors that the library stores, and cannot multiply with."""
_TABLES_OF_EXPERTS = "deepseek4"
"""Some of its layers choose experts by a table of token ids, in I32."""


def wrong_number(header: Header) -> str | None:
    """Returns the first key whose value no model has, and the value; None if there is none."""
    return next(_wrong_numbers(header), None)


def wrong_format(header: Header) -> str | None:
    """Returns a format that no weights have, if a tensor has it; else None."""
    tables = ("I32",) if header.architecture == _TABLES_OF_EXPERTS else ()
    return next((one for one in _NO_WEIGHTS if one in header.formats and one not in tables), None)


def _wrong_numbers(header: Header) -> Iterator[str]:
    def whole(key: str) -> int | None:
        value = header.metadata.get(f"{header.architecture}.{key}")
        return value if isinstance(value, int) else None

    def said(key: str, value: object) -> str:
        return f"{header.architecture}.{key} is {value}"

    limits = ("context_length", _MOST_CONTEXT - 1), ("block_count", _MOST_LAYERS)
    for key, most in limits:
        value = whole(key)
        if value is not None and not 0 < value <= most:
            yield said(key, value)
    experts, used = whole("expert_count") or 0, whole("expert_used_count") or 0
    if experts > _MOST_EXPERTS:
        yield said("expert_count", experts)
    # Layers may have a number each; the library overlooks a single expert of Hunyuan's models.
    listed = f"{header.architecture}.expert_used_count" in header.array_lengths
    alone = experts <= 1 and header.architecture.startswith("hunyuan")
    if not listed and not alone and not min(experts, 1) <= used <= experts:
        yield said("expert_used_count", f"{used} of {experts}")
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling not in _SCALINGS:
        yield said("rope.scaling.type", str(scaling)[:80])
    for key in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
        epsilon = header.metadata.get(f"{header.architecture}.attention.{key}", 0.0)
        if not isinstance(epsilon, float) or not 0 <= epsilon < math.inf:
            yield said(f"attention.{key}", epsilon)
