"""``afterword score``: how likely texts are, token by token."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from afterword.cli.options import SettingsCommand
from afterword.cli.served import model_flags, openers
from afterword.cli.terminal import Terminal, bare_table, plain, print_table, write_utf8
from afterword.cli.texts import argument_text, file_text, standard_input
from afterword.cli.tinted import LIKELIEST, table_of_tokens, tinted_text
from afterword.library.answers import TextScore
from afterword.library.llm import LLM
from afterword.library.scoring import Advance

_MOST_ROWS = 500
_STDIN = "-"
_CSV = ("model", "text", "position", "token", "token_id", "logprob", "probability", "text_offset")


class ModelScores(msgspec.Struct, frozen=True):
    """A model and its score of each text."""

    model: str
    fingerprint: str
    scores: Sequence[TextScore]


@click.command(cls=SettingsCommand, short_help="Score texts, token by token.")
@model_flags
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--file", "files", multiple=True, metavar="FILE", help="Score a file, too.")
@click.option("--top", type=int, default=0, metavar="N", help="Show the N likeliest tokens.")
@click.option("--window", type=int, metavar="N", help="Tokens of a window. [default: the context]")
@click.option("--stride", type=int, metavar="N",
              help="Tokens from one window to the next. [default: half a window]")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="A line for each token; tokens are JSON.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each text and model.")
def score(texts: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Score each TEXT, each FILE, or standard input.

    Every token is scored, the first one behind the start of a document. Totals are in nats. A text
    longer than a window is scored in several, which overlap. With several --model their scores
    stand side by side.
    """
    as_csv, as_json = given.pop("as_csv"), given.pop("as_json")
    if as_csv and as_json:
        raise click.UsageError("--csv or --json, not both")
    if as_csv and given["top"]:
        raise click.UsageError("--csv has no alternatives: take --json with --top")
    if texts.count(_STDIN) > 1:
        raise click.UsageError(f"{_STDIN!r} is there twice: standard input can be read once")
    named = list(_texts(texts, given.pop("files")))
    top, window, stride = (given.pop(name) for name in ("top", "window", "stride"))
    names = [name for name, _ in named]
    if as_csv or as_json:
        # Escapes of an encoding would not be those of JSON.
        write_utf8()
    out = csv.writer(sys.stdout, lineterminator="\n")
    found: list[ModelScores] = []
    for opener in openers(given, patient=True):
        with LLM.opened_by(opener) as llm:
            with _progress(llm.facts.name) as advance:
                scores = llm.score(
                    [text for _, text in named],
                    top=top,
                    window=window,
                    stride=stride,
                    advance=advance,
                )
            model = ModelScores(llm.facts.name, llm.facts.fingerprint, scores)
        # What a model took minutes for is written before the next one begins.
        if as_json:
            for line in _json(names, model):
                click.echo(line)
        elif as_csv:
            out.writerows(_rows(names, model) if found else chain([_CSV], _rows(names, model)))
            sys.stdout.flush()
        found.append(model)
    if not (as_json or as_csv):
        _show(names, found, with_tops=top > 0)


def _texts(texts: Sequence[str], files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each text with its name. Raises ``ConfigError`` for a file that cannot be read."""
    if not texts and not files:
        texts = (_STDIN,)
    for number, text in enumerate(texts, 1):
        if text == _STDIN:
            yield "standard input", standard_input()
        else:
            name = f"text {number}"
            yield name, argument_text(text, name)
    for file in files:
        yield file, file_text(file)


@contextmanager
def _progress(model: str) -> Iterator[Advance]:
    """Yields what shows how far scoring is."""
    with ExitStack() as stack:
        bar: Callable[[int], None] | None = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            # What one request scores needs no progress.
            if bar is None and done < total:
                bar = stack.enter_context(Terminal().counting(f"{model}: tokens", total))
            if bar is not None:
                bar(done)

        yield advance


def _json(names: Sequence[str], model: ModelScores) -> Iterator[str]:
    for name, score in zip(names, model.scores, strict=True):
        figures = {
            "model": model.model,
            "system_fingerprint": model.fingerprint,
            "text": name,
            "bytes": len(score.text.encode()),
            "total_logprob": score.total_logprob,
            "mean_logprob": score.mean_logprob,
            # JSON has no infinity.
            "perplexity": score.perplexity if math.isfinite(score.perplexity) else None,
            "bits_per_byte": score.bits_per_byte,
            "windows": score.windows,
            "window_tokens": score.window_tokens,
            "stride_tokens": score.stride_tokens,
            "overlap_tokens": score.overlap_tokens,
            "tokens": list(score.rows()),
        }
        if any(score.top_logprobs):
            figures["top_logprobs"] = score.top_logprobs
        yield json.dumps(figures, ensure_ascii=False)


def _rows(names: Sequence[str], model: ModelScores) -> Iterator[Sequence[object]]:
    for name, score in zip(names, model.scores, strict=True):
        for row in score.rows():
            # As JSON a token needs no care of spreadsheets or ends of lines.
            token = json.dumps(row["token"], ensure_ascii=False)
            values = {**row, "model": model.model, "text": name, "token": token}
            yield [values[column] for column in _CSV]


def _show(names: Sequence[str], found: Sequence[ModelScores], *, with_tops: bool) -> None:
    console = Console(soft_wrap=True)
    for at, name in enumerate(names):
        console.print(plain(name), style="bold")
        groups: dict[tuple[str, ...], list[ModelScores]] = {}
        for model in found:
            groups.setdefault(model.scores[at].tokens, []).append(model)
        # Models with the same tokens share a table.
        for tokens, models in groups.items():
            first = models[0].scores[at]
            console.print(tinted_text(first.text, first.text_offset, first.token_logprobs))
            if len(tokens) > _MOST_ROWS:
                console.print(f"{len(tokens)} tokens: --csv and --json show each of them")
                continue
            columns = {model.model: model.scores[at].token_logprobs for model in models}
            tops = {_likeliest(model, models): model.scores[at].top_logprobs for model in models}
            print_table(table_of_tokens(tokens, columns, tops if with_tops else None))
        print_table(_summary(at, found))


def _likeliest(model: ModelScores, models: Sequence[ModelScores]) -> str:
    """Returns the name of the column for a model's likeliest tokens."""
    return LIKELIEST if len(models) == 1 else f"{LIKELIEST} {model.model}"


def _summary(at: int, found: Sequence[ModelScores]) -> Table:
    table = bare_table()
    table.add_column("MODEL")
    for name in ("TOKENS", "TOTAL", "MEAN", "PERPLEXITY", "BITS/BYTE"):
        table.add_column(name, justify="right")
    table.add_column("WINDOWS")
    for model in found:
        score = model.scores[at]
        windows = str(score.windows)
        if score.windows > 1:
            windows = (
                f"{score.windows} of {score.window_tokens} tokens, {score.stride_tokens} apart, "
                f"{score.overlap_tokens} overlap"
            )
        table.add_row(
            plain(model.model),
            f"{len(score.tokens):,}",
            f"{score.total_logprob:.4f}",
            f"{score.mean_logprob:.4f}",
            f"{score.perplexity:.4f}",
            f"{score.bits_per_byte:.4f}",
            windows,
        )
    return table
