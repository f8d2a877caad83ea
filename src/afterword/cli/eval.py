"""``afterword eval``: the accuracy of models on a task in a file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import rich_click as click

from afterword.cli.options import SettingsCommand
from afterword.cli.served import model_flags, openers
from afterword.cli.terminal import Terminal, bare_table, plain, print_table
from afterword.core.errors import ConfigError
from afterword.evaluation.comparison import ModelRun, Summary, summarize
from afterword.evaluation.report import report as page_of
from afterword.evaluation.running import AT_ONCE, evaluate
from afterword.evaluation.state import RunHeader, StateFile
from afterword.evaluation.tasks import Task, digest_of, read_task
from afterword.library.async_llm import AsyncLLM
from afterword.library.backend import Opener

_NO_FILE_NAME = re.compile(r"[^\w.-]")


@click.command(cls=SettingsCommand, short_help="Evaluate models on a task in a file.")
@model_flags
@click.argument("task", type=click.Path(path_type=Path), metavar="TASK.jsonl")
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Only the first N items.")
@click.option("--at-once", type=click.IntRange(1, 256), default=AT_ONCE, show_default=True,
              metavar="N", help="Items under way at once.")  # fmt: skip
@click.option("--state", type=click.Path(path_type=Path), default=Path(), metavar="FOLDER",
              help="Where outcomes are kept, so that a run goes on after a break. "
              "[default: this folder]")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html",
              help="Write a page with a plot.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def eval(task: Path, **given: Any) -> None:  # noqa: A001, ANN401 - the command's name; the settings' flags
    """Evaluate models on the items of TASK.jsonl.

    A line is multiple choice, {"context", "choices", "label"}, or generation, {"prompt", "until",
    "target"} with "regex" and "max_tokens" if wanted. With two models a paired test compares them.
    Outcomes are written down item by item; the same command goes on where a run broke off.
    """
    first, at_once, folder, page, as_json = (
        given.pop(name) for name in ("first", "at_once", "state", "report", "as_json")
    )
    items = read_task(task, first=first)
    if page is not None and page.is_dir():
        raise ConfigError(f"{page}: cannot be written: it is a folder")
    if page is not None and not page.parent.is_dir():
        raise ConfigError(f"{page}: cannot be written: its folder is not there")
    runs: list[ModelRun] = []
    for opener in openers(given, patient=True):
        names = [run.model for run in runs]
        runs.append(asyncio.run(_run(opener, items, folder, names, at_once=at_once)))
    summary = summarize(items.name, items.digest, runs)
    if as_json:
        click.echo(msgspec.json.encode(summary))
    else:
        _show(summary)
    if page is not None:
        try:
            page.write_text(page_of(items, runs, summary), "utf-8")
        except OSError as error:
            raise ConfigError(f"{page}: cannot be written: {error.strerror}") from error


async def _run(
    opener: Opener, task: Task, folder: Path, others: Collection[str], *, at_once: int
) -> ModelRun:
    """Returns the outcomes of a model. Raises ``ConfigError`` if its name is one of ``others``."""
    async with AsyncLLM.opened_by(opener) as llm:
        facts = await llm.facts()
        if facts.name in others:
            raise ConfigError(f"two models have the name {facts.name}")
        header = RunHeader(task.name, facts.name, facts.fingerprint)
        state = StateFile(folder / _file_name(header), header)
        done = sum(digest_of(item) in state.outcomes for item in task.items)
        label = f"{facts.name}: items"
        with Terminal().counting(label, len(task.items), done) as advance:
            outcomes = await evaluate(llm, task, state, at_once=at_once, advance=advance)
    return ModelRun(facts.name, facts.fingerprint, outcomes)


def _file_name(header: RunHeader) -> str:
    """Returns the name of a state's file: other signs are escaped, so `a/b` and `a-b` differ."""
    parts = filter(None, (header.task, header.model, header.fingerprint))
    name = _NO_FILE_NAME.sub(lambda sign: quote(sign[0], safe=""), ".".join(parts))
    return f"{name}.state.jsonl"


def _show(summary: Summary) -> None:
    table = bare_table()
    for name in ("MODEL", "MEASURE"):
        table.add_column(name)
    for name in ("ITEMS", "SHARE", "INTERVAL (95 %)", "STANDARD ERROR"):
        table.add_column(name, justify="right")
    for model, shares in summary.models.items():
        for measure, value in shares.items():
            stderr = "-" if value.stderr is None else f"{value.stderr:.4f}"
            interval = f"{value.low:.4f} to {value.high:.4f}"
            cells = [str(value.items), f"{value.value:.4f}", interval, stderr]
            table.add_row(plain(model), measure, *cells)
    print_table(table)
    for pair in summary.pairs:
        _show_tests(pair.first, pair.second, list(pair.tests.items()))


def _show_tests(first: str, second: str, tests: Sequence[tuple[str, Any]]) -> None:
    table = bare_table()
    table.add_column("MCNEMAR")
    for name in ("BOTH", f"ONLY {first}", f"ONLY {second}", "NEITHER", "P"):
        table.add_column(plain(name), justify="right")
    for measure, test in tests:
        counts = (test.both, test.only_first, test.only_second, test.neither)
        table.add_row(measure, *map(str, counts), f"{test.p_value:.4g}")
    print_table(table)
