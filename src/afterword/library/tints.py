"""The scale from probability to tint, as on the page: eight steps from blue to orange.

A test compares it with ``tint.js`` and ``theme.css``.
"""

from __future__ import annotations

import math

STEPS = (0.8, 0.5, 0.3, 0.15, 0.07, 0.03, 0.01)
"""The least probability of each step but the last."""
TINTS = (
    "#eef2f6", "#e2eaf2", "#dce4e9", "#ecdcba", "#f5d4a4", "#f6c386", "#f3ae69", "#ec9650",
)  # fmt: skip
"""The background of each step."""
PLOTS = (
    "#a9bfd4", "#94b0ca", "#8ba3b3", "#c7a766", "#d69a4a", "#d6853a", "#c86d28", "#ac4f12",
)  # fmt: skip
"""The bar of each step in a plot."""
INK = "#211e1a"
"""The text on a tint."""


def step_of(logprob: float) -> int:
    """Returns the step of a log-probability; 0 is the most expected."""
    probability = math.exp(logprob)
    return next((i for i, least in enumerate(STEPS) if probability >= least), len(STEPS))


def tint_of(logprob: float | None) -> str | None:
    """Returns the background of a token, None for one without a log-probability."""
    return None if logprob is None else TINTS[step_of(logprob)]
