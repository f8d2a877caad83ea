"""Models to begin with, by what they are for. Figures are those of docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from afterword.core.embedded import EMBEDDED_MODEL

Use: TypeAlias = Literal["try", "instructions", "text", "code"]
USES: Sequence[Use] = ("try", "instructions", "text", "code")


class RecommendedModel(msgspec.Struct, frozen=True):
    """A model, what it is for, and what is known.

    ``process_gib`` is the most memory of a server with room for 16,384 tokens. It is
    ``measured``, or estimated from the file's size.
    """

    source: str
    uses: tuple[Use, ...]
    process_gib: float
    measured: bool
    known: str


RECOMMENDED: Sequence[RecommendedModel] = (
    RecommendedModel(
        EMBEDDED_MODEL,
        ("try",),
        0.8,
        measured=True,
        known="the embedded model; 135 million parameters follow few instructions",
    ),
    RecommendedModel(
        "hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M",
        ("code",),
        1.0,
        measured=True,
        known="has fill-in-the-middle tokens and a chat template",
    ),
    RecommendedModel(
        "hf:ggml-org/gemma-3-270m-GGUF:Q8_0",
        ("text",),
        1.1,
        measured=False,
        known="a base model without a chat template; suffix by search; not tried as Q8_0, but as "
        "Q4_K_M",
    ),
    RecommendedModel(
        "hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
        ("code",),
        1.9,
        measured=True,
        known="has fill-in-the-middle tokens and a chat template",
    ),
    RecommendedModel(
        "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
        ("instructions", "text"),
        1.9,
        measured=False,
        known="not tried here; memory estimated from the file's size",
    ),
    RecommendedModel(
        "hf:Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
        ("instructions", "text"),
        6.1,
        measured=False,
        known="not tried here; memory estimated from the file's size",
    ),
)
"""Smallest first."""


def recommended(use: Use | None, most_gib: float) -> list[RecommendedModel]:
    """Returns the models for a use that fit into a memory, smallest first."""
    return [
        model
        for model in RECOMMENDED
        if (use is None or use in model.uses) and model.process_gib <= most_gib
    ]
