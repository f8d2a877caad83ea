"""Texts and tables of tokens on a terminal, with the page's tints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.table import Table
from rich.text import Text

from afterword.cli.terminal import bare_table, printable, printable_prose
from afterword.library.html import percentage
from afterword.library.segments import segments
from afterword.library.tints import INK, tint_of
from afterword.library.token_names import visible

LIKELIEST = "LIKELIEST"


def tinted_text(
    text: str, offsets: Sequence[int], logprobs: Sequence[float | None], *, base: int = 0
) -> Text:
    """Returns a text in which each token has its tint."""
    made = Text()
    for segment in segments(text, offsets, logprobs, base=base):
        made.append(printable_prose(segment.text), style_of(segment.logprob))
    return made


def style_of(logprob: float | None) -> Style:
    """Returns the style of a log-probability."""
    tint = tint_of(logprob)
    return Style() if tint is None else Style(color=INK, bgcolor=tint)


def token_text(token: str, logprob: float | None = None) -> Text:
    """Returns a token as a table shows it: in quotes, with escapes for what cannot be seen."""
    return Text(visible(token).replace(" ", "\N{OPEN BOX}"), style_of(logprob))


def value_text(logprob: float | None) -> Text:
    """Returns a log-probability and its percentage."""
    if logprob is None:
        return Text("-")
    return Text(f"{logprob:.4f} {percentage(logprob):>8}", style_of(logprob))


def alternatives(top: Mapping[str, float] | None) -> Text:
    """Returns the likeliest tokens of a position with their percentages."""
    ordered = sorted((top or {}).items(), key=lambda pair: -pair[1])
    parts = [Text.assemble(token_text(name), f" {percentage(value)}") for name, value in ordered]
    return Text("  ").join(parts)


def table_of_tokens(
    tokens: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    tops: Mapping[str, Sequence[Mapping[str, float] | None]] | None = None,
) -> Table:
    """Returns a row for each token, with a column of log-probabilities for each name.

    ``tops`` are the likeliest tokens, by the names of their columns.
    """
    table = bare_table()
    table.add_column("#", justify="right")
    table.add_column("TOKEN")
    for name in columns:
        table.add_column(printable(name), justify="right")
    listed = tops or {}
    for name in listed:
        table.add_column(printable(name))
    for i, token in enumerate(tokens):
        values = [each[i] for each in columns.values()]
        cells = [Text(str(i)), token_text(token, values[0]), *map(value_text, values)]
        table.add_row(*cells, *(alternatives(each[i]) for each in listed.values()))
    return table
