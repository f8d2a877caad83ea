"""What is said to people: lines, and bars where there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

# Bars and tables are rare: a server that starts need not wait for what draws them.
if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_WIDE = 10_000
_LINE_EVERY = 0.25
"""Without a terminal, one line for each quarter."""


def plain(text: str) -> Text:
    """A text of others for a table: no markup, and nothing that would control the terminal."""
    from rich.text import Text  # noqa: PLC0415

    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def print_table(table: Table) -> None:
    """A table on standard output; where that is no terminal, a row is a line."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(table)


class Terminal:
    """Standard error; standard output is for results."""

    def say(self, text: str) -> None:
        """One line."""
        click.echo(text, err=True)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A bar that the block moves on by bytes, or plain lines where there is no terminal."""
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
        done = said = 0.0

        def advance(size: int) -> None:
            nonlocal done, said
            done += size / max(total_bytes, 1)
            if done >= said + _LINE_EVERY:
                said = done // _LINE_EVERY * _LINE_EVERY
                self.say(f"{label}: {said:.0%}")

        yield advance
