"""Answers as HTML for notebooks. Every text of a model or a user is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from afterword.library.segments import TextSpan, segments
from afterword.library.tints import INK, tint_of
from afterword.library.token_names import visible

_BOX = (
    "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;line-height:1.7;"
    "font-family:ui-monospace,monospace;margin:0.3em 0"
)
_NO_FORMULAS = "tex2jax_ignore mathjax_ignore"
"""Classes that notebooks know: two dollar signs would be a formula."""
_MOST_SHOWN = 5


def tinted(
    text: str,
    tokens: Sequence[str],
    logprobs: Sequence[float | None],
    offsets: Sequence[int],
    tops: Sequence[Mapping[str, float] | None] = (),
    *,
    base: int = 0,
) -> str:
    """Returns a text with a tint for each token, and its alternatives as a tooltip.

    The sequences are those of one choice (L1), ``base`` is the offset of the text's first
    character. ``tops`` may be empty.
    """
    made = []
    for segment in segments(text, offsets, logprobs, base=base):
        colour = tint_of(segment.logprob)
        if colour is None:
            made.append(escape(segment.text))
            continue
        style = f"background:{colour};color:{INK};border-radius:2px"
        title = escape(_title(segment, tokens, tops), quote=True)
        made.append(f'<span style="{style}" title="{title}">{escape(segment.text)}</span>')
    return boxed("".join(made))


def boxed(html: str) -> str:
    """Returns escaped text in a box that keeps its white space."""
    return f'<div class="{_NO_FORMULAS}" style="{_BOX}">{html}</div>'


def figures(values: Mapping[str, object]) -> str:
    """Returns a line of names and values below a text."""
    shown = " · ".join(f"{escape(name)} {escape(str(value))}" for name, value in values.items())
    return f'<div class="{_NO_FORMULAS}" style="font-size:0.85em;opacity:0.75">{shown}</div>'


def _title(
    segment: TextSpan, tokens: Sequence[str], tops: Sequence[Mapping[str, float] | None]
) -> str:
    """Returns the tokens of a segment, its probability, and the alternatives of its first token."""
    names = " + ".join(map(_quoted, tokens[segment.first : segment.end]))
    lines = [f"{names} {percentage(segment.logprob or 0.0)}"]
    top = tops[segment.first] if tops else None
    likeliest = sorted((top or {}).items(), key=lambda pair: -pair[1])[:_MOST_SHOWN]
    lines += [f"{_quoted(token)} {percentage(value)}" for token, value in likeliest]
    return "\n".join(lines)


def _quoted(token: str) -> str:
    return f"'{visible(token)}'"


def percentage(logprob: float) -> str:
    """Returns a log-probability as a percentage for people."""
    share = 100 * math.exp(logprob)
    return f"{share:.1f} %" if share >= 0.1 else f"{share:.1g} %"
