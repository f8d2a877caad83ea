"""Output for people: lines, tables and progress bars."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

# Most starts draw no bar and no table, so rich is imported only when used.
if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_WIDE = 10_000
_FOLDED = 24
"""Columns of text are folded to so many characters, at least, where a terminal is narrow."""
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Classes of characters that turn the direction of those behind them (Unicode's UAX #9)."""
_MEASURED_ROWS = 1000
_LINE_EVERY = 0.25
"""Without a terminal, progress is one line for each quarter."""


def printable(text: str) -> str:
    """Returns untrusted text without control characters, odd spaces and ends of lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable_prose(text: str) -> str:
    """Returns untrusted text of many lines without what controls a terminal or turns its lines.

    Carriage returns are left out: most of them stand before the end of a line.
    """
    if text.isprintable():
        return text
    shown = (c if _is_prose(c) else "\N{REPLACEMENT CHARACTER}" for c in text if c != "\r")
    return "".join(shown)


def _is_prose(character: str) -> bool:
    if character.isprintable() or character in "\n\t":
        return True
    # Among these are spaces that do not break lines, and joiners of letters and of emoji.
    return (
        unicodedata.category(character) in {"Zs", "Cf"}
        and unicodedata.bidirectional(character) not in _TURNING
    )


def plain(text: str) -> Text:
    """Returns untrusted text for a table, without markup or control characters."""
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(text))


def bare_table(*columns: str) -> Table:
    """Returns a table without lines, with these columns."""
    from rich.table import Table  # noqa: PLC0415

    return Table(*columns, box=None, pad_edge=False, header_style="")


def print_table(table: Table) -> None:
    """Print a table on standard output; without a terminal, each row is one line.

    Nothing is cut. Where a terminal is narrow, text is folded; columns that are aligned right have
    numbers, and stay as wide as those.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.measure import measure_renderables  # noqa: PLC0415

    console = Console()
    wide = console.options.update(max_width=_WIDE)
    least = len(table.columns)  # the gaps between them
    for column in table.columns:
        cells = [column.header, *column.cells]
        width = measure_renderables(console, wide, cells).maximum
        column.no_wrap = column.justify == "right"
        column.overflow = "fold"
        least += width if column.no_wrap else min(width, _FOLDED)
    width = max(console.width, least) if console.is_terminal else _WIDE
    # Rich ignores a width without a height if TERM is dumb.
    Console(width=width, height=console.height).print(table)


def print_rows(
    names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> None:
    """Print untrusted rows on standard output as they come, each as one line below its names.

    However many there are, they take no memory: the first ``_MEASURED_ROWS`` say how wide columns
    are. With ``numbers`` all columns but the first are aligned right.
    """
    from rich.cells import cell_len  # noqa: PLC0415

    shown = (tuple(map(printable, row)) for row in chain((names,), rows))
    first = list(islice(shown, _MEASURED_ROWS))
    widths = [max(map(cell_len, column)) for column in zip(*first, strict=True)]
    for row in chain(first, shown):
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - cell_len(cell))
            cells.append(gap + cell if numbers and at else cell + gap)
        click.echo(" ".join(cells).rstrip())


def write_utf8() -> None:
    """Write standard output in UTF-8 from here on, as for programs, whatever a terminal has."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values on standard output, one line each."""
    for name, value in facts:
        click.echo(f"{name:<17} {printable(str(value))}")


class Terminal:
    """Writes to standard error; standard output is for results."""

    def say(self, text: str) -> None:
        """Write one line."""
        click.echo(text, err=True)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar, or plain lines without a terminal; yields ``advance(bytes)``."""
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TransferSpeedColumn,
            )

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bars:
                bar = bars.add_task(label, total=total_bytes)
                yield lambda size: bars.advance(bar, size)
            return
        yield self.quarters(label, total_bytes)

    @contextmanager
    def counting(self, label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show how many of ``total`` things are done, and the time left; yields ``advance(n)``.

        Without a terminal it writes plain lines. ``done`` were done before.
        """
        if not sys.stderr.isatty():
            advance = self.quarters(label, total)
            advance(done)
            yield advance
            return
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
            bar = bars.add_task(label, total=total, completed=done)
            yield lambda count: bars.advance(bar, count)

    def quarters(self, label: str, total: int) -> Callable[[int], None]:
        """Returns ``advance(count)``, which says each quarter of a total of bytes or things."""
        done = said = 0.0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count / max(total, 1)
            if done >= said + _LINE_EVERY:
                said = done // _LINE_EVERY * _LINE_EVERY
                self.say(f"{label}: {said:.0%}")

        return advance
