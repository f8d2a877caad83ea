"""Output for people: lines, tables and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

# Most starts draw no bar and no table, so rich is imported only when used.
if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_WIDE = 10_000
_MEASURED_ROWS = 1000
_LINE_EVERY = 0.25
"""Without a terminal, progress is one line for each quarter."""


def printable(text: str, kept: str = "") -> str:
    """Returns untrusted text without control characters and ends of lines, but ``kept`` ones."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(text: str) -> Text:
    """Returns untrusted text for a table, without markup or control characters."""
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(text))


def bare_table(*columns: str) -> Table:
    """Returns a table without lines, with these columns."""
    from rich.table import Table  # noqa: PLC0415

    return Table(*columns, box=None, pad_edge=False, header_style="")


def print_table(table: Table) -> None:
    """Print a table on standard output; without a terminal, each row is one line."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(table)


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


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values on standard output, one line each."""
    for name, value in facts:
        click.echo(f"{name:<14} {printable(str(value))}")


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
