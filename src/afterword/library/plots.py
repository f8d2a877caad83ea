"""Plots of probabilities by matplotlib, which ``afterword[plot]`` installs."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

from afterword.core.errors import InvalidRequest
from afterword.library.answers import TextChoice, TextCompletion, TextScore
from afterword.library.tints import PLOTS, step_of
from afterword.library.token_names import visible

_MOST_BARS = 2000
_WIDTH_OF_BAR, _LEAST_WIDTH, _MOST_WIDTH, _HEIGHT = 0.22, 4.0, 40.0, 2.6
"""In inches."""
_MOST_LABELS = 120


def plot(answer: TextCompletion | TextChoice | TextScore, *, choice: int = 0) -> Any:  # noqa: ANN401 - matplotlib is an extra
    """Returns a matplotlib figure: a bar for each token, as high as its probability.

    ``choice`` is the index of a completion's choice. Raises ``InvalidRequest`` if the answer is
    none, has no log-probabilities, or has more than 2,000 tokens, and ``ImportError`` without
    matplotlib.
    """
    tokens, logprobs = _values(answer, choice)
    if len(tokens) > _MOST_BARS:
        raise InvalidRequest(f"A plot has at most {_MOST_BARS} tokens, and these are {len(tokens)}")
    try:
        figures: Any = import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ImportError("plot needs matplotlib: pip install 'afterword[plot]'") from error
    width = min(max(len(tokens) * _WIDTH_OF_BAR, _LEAST_WIDTH), _MOST_WIDTH)
    # A figure without pyplot belongs to no window and is freed with its last reference.
    drawn = figures.Figure(figsize=(width, _HEIGHT), layout="constrained")
    axes = drawn.add_subplot()
    heights = [0.0 if value is None else math.exp(value) for value in logprobs]
    colours = [PLOTS[0] if value is None else PLOTS[step_of(value)] for value in logprobs]
    axes.bar(range(len(tokens)), heights, color=colours, width=0.9)
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability")
    axes.set_xlim(-0.6, max(len(tokens), 1) - 0.4)
    if len(tokens) <= _MOST_LABELS:
        # Dollar signs begin formulas in matplotlib's text.
        labels = [visible(token).replace("$", r"\$") for token in tokens]
        axes.set_xticks(range(len(tokens)), labels, rotation=90, family="monospace", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Notebooks show figures of pyplot only, unless they say how.
    drawn._repr_png_ = partial(_png, drawn)
    return drawn


def _png(figure: Any) -> bytes:  # noqa: ANN401 - matplotlib is an extra
    written = BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _values(
    answer: TextCompletion | TextChoice | TextScore, choice: int
) -> tuple[list[str], list[float | None]]:
    if isinstance(answer, TextScore):
        return list(answer.tokens), list(answer.token_logprobs)
    if isinstance(answer, TextCompletion):
        if not 0 <= choice < len(answer.choices):
            raise InvalidRequest(
                f"Invalid value for 'choice': expected 0 to {len(answer.choices) - 1}, but got "
                f"{choice} instead.",
                param="choice",
            )
        answer = answer.choices[choice]
    if not isinstance(answer, TextChoice):
        raise InvalidRequest(
            "Invalid type for 'answer': expected what complete() or score() returned, but got "
            f"{type(answer).__name__} instead.",
            param="answer",
        )
    if answer.logprobs is None:
        raise InvalidRequest("There is nothing to plot: ask with logprobs.", param="logprobs")
    return answer.logprobs.tokens, answer.logprobs.token_logprobs
