"""Prints a table of the architectures that are answered exactly: ``make zoo``.

Each model is tried in a child process with a time limit, so a crash is only a row of the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.models.parts import read_header
from zoo.architectures import ARCHITECTURES
from zoo.making import make_model
from zoo.others import OTHERS
from zoo.serving import Model
from zoo.trials import Verdict, again, alone, hostile_texts, shared, side_by_side

_COLUMNS = ("load", "alone", "again", "shared", "side by side", "texts", "promise")
_SHORTEST = 120
"""Maximum number of characters of a message in a cell."""


class Cell(msgspec.Struct):
    """One column of a model; its child process prints each as a line of JSON."""

    column: str
    text: str
    sound: bool = True
    refused: bool = False
    cached: float | None = None


class Row(msgspec.Struct):
    """A model and its results by column."""

    name: str
    cells: Mapping[str, Cell]

    @property
    def outcome(self) -> str:
        """The category in which the summary counts the model."""
        if any(cell.refused for cell in self.cells.values()):
            return "refused"
        if not all(column in self.cells and self.cells[column].sound for column in _COLUMNS):
            return "wrong or failed"
        return "exact, shares" if self.cells["shared"].cached else "exact, shares nothing"

    def __str__(self) -> str:
        texts = [self.cells[c].text if c in self.cells else "" for c in _COLUMNS]
        return "| " + " | ".join((self.name, *texts)) + " |"


def try_model(path: Path, rounds: int, stretch: int) -> None:
    """In a child process, try a model and print each column as soon as it is known."""
    try:
        read_header(path)
        model = Model(path, stretch=stretch)
        model.open(1).runner.close()
    except ConfigError as error:
        _tell(Cell("load", _short(str(error).rsplit(f"{path}: ", 1)[-1]), refused=True))
        return
    _tell(Cell("load", "yes"))
    _tell(Cell("promise", _promise(model)))
    trials: Mapping[str, Callable[[], Verdict]] = {
        "alone": lambda: alone(model),
        "again": lambda: again(model),
        "shared": lambda: shared(model, rounds),
        "side by side": lambda: side_by_side(model, rounds),
        "texts": lambda: hostile_texts(model),
    }
    for column, trial in trials.items():
        try:
            verdict = trial()
        except Exception as error:  # noqa: BLE001 - the row says what went wrong
            verdict = Verdict(failure=_short(str(error) or type(error).__name__))
        _tell(Cell(column, str(verdict), sound=verdict.sound, cached=verdict.cached))


def _promise(model: Model) -> str:
    facts = msgspec.structs.asdict(model.loaded)
    sharing = facts.get("sharing")
    batches = "in any batch" if model.batch_invariant else "alone"
    if not model.loaded.together:
        batches = "one at a time"
    return batches if sharing is None else f"{batches}; shares {sharing}"


def _tell(cell: Cell) -> None:
    print(msgspec.json.encode(cell).decode(), flush=True)


def _short(message: str) -> str:
    line = " ".join(message.replace("|", "/").split())
    return line if len(line) <= _SHORTEST else line[:_SHORTEST] + " …"


def row_of(path: Path, rounds: int, limit_s: float, stretch: int = 1) -> Row:
    """Try a model in a child process; returns the columns it printed, and how it ended."""
    command = [sys.executable, "-m", "zoo.table", "--one", str(path)]
    command += ["--rounds", str(rounds), "--stretch", str(stretch)]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(command, stdout=said, stderr=complained, env=env)
        try:
            status: int | None = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            status = None
        said.seek(0)
        complained.seek(0)
        cells = {cell.column: cell for line in said if (cell := _cell(line)) is not None}
        last = complained.read().decode(errors="replace").strip().rsplit("\n", 1)[-1]
    if status != 0:
        column = next((column for column in _COLUMNS if column not in cells), _COLUMNS[0])
        cells[column] = _end(column, status, last, limit_s)
    return Row(path.stem, cells)


def _end(column: str, status: int | None, last: str, limit_s: float) -> Cell:
    """Returns the cell of a child that ended early; ``last`` is its last line of errors."""
    if status is None:
        return Cell(column, f"**takes more than {limit_s:.0f} s**", sound=False)
    if column == "load" and status == 2:
        # The library gave up on the file; the process ended with the reason in one line.
        return Cell(column, _short(last.removeprefix("afterword: ")), refused=True)
    return Cell(column, f"**dies ({status})**: {_short(last)}", sound=False)


def _cell(line: bytes) -> Cell | None:
    try:
        return msgspec.json.decode(line, type=Cell)
    except msgspec.DecodeError:
        return None  # a line that the library printed


@contextmanager
def _files(folder: Path | None) -> Iterator[Sequence[Path]]:
    """Yields the files of a folder, or of tiny models in a temporary one."""
    if folder is not None:
        yield sorted(folder.glob("*.gguf"))
        return
    with tempfile.TemporaryDirectory() as made:
        names = sorted([*ARCHITECTURES, *OTHERS])
        yield [make_model(name, Path(made) / f"{name}.gguf") for name in names]


def main() -> int:
    """Print the table and a summary. Returns 1 if any model is wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="folder of GGUF files; default: tiny models")
    parser.add_argument("--only", nargs="*", help="names of files, without .gguf")
    parser.add_argument("--rounds", type=int, default=20, help="random histories of each kind")
    parser.add_argument("--limit-s", type=float, default=300, help="seconds for one model")
    parser.add_argument(
        "--stretch", type=int, default=1, help="factor of prompt lengths, for large windows"
    )
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        try_model(args.one, args.rounds, args.stretch)
        return 0
    print("| model | " + " | ".join(_COLUMNS) + " |")
    print("|---" * (1 + len(_COLUMNS)) + "|", flush=True)
    outcomes: Counter[str] = Counter()
    with _files(args.models) as files:
        for path in files:
            if args.only and path.stem not in args.only:
                continue
            row = row_of(path, args.rounds, args.limit_s, args.stretch)
            outcomes[row.outcome] += 1
            print(row, flush=True)
    counted = "; ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"\n{outcomes.total()} models: {counted}.")
    return int(outcomes["wrong or failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
