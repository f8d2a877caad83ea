"""``afterword doctor --bench``: the forms of a model's weights, measured, as a table."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

import rich_click as click
from rich.table import Table

from afterword.cli.loading import checked
from afterword.cli.sources import Store
from afterword.cli.terminal import Terminal, plain, print_table
from afterword.config import EMBEDDED_SOURCE, Settings
from afterword.engine.llama.preparing import examine
from afterword.engine.llama.verdict import LEAST_GAIN, LEAST_RATIO, MARGIN_KL, Figures, gain
from afterword.engine.llama.weights import AS_IS
from afterword.engine.remote.address import is_remote

_NOTES = f"""\
Tokens a second: a prompt of 512 tokens; 1, 8 and 32 streams at their begin; a prompt with
log-probabilities of all its tokens. Memory is resident with 32 short streams. KL is the mean
divergence from the float32 weights over 2,000 tokens, in nats; top-1 is how often the likeliest
token is theirs. Speed is the geometric mean of prefill, 1 and 32 streams against the file as it is.
auto takes the fastest form with a speed of {LEAST_GAIN} at least, none of the three under
{LEAST_RATIO}, a KL at most {MARGIN_KL} above the file's own, and, for --kv exact, the promise
kept."""


def bench(settings: Settings, terminal: Terminal) -> None:
    """Measure every form of every model that is a file; print tables and what to run."""
    store = Store(settings.models_dir, terminal)
    exact = settings.kv == "exact"
    for name, source in settings.models.items():
        if is_remote(source):
            terminal.say(f"{name}: other servers are not measured")
            continue
        found, choice = examine(store.weights, checked(store, settings, name), terminal.say)
        click.echo(f"\n{name}")
        print_table(_table(found, exact=exact))
        click.echo(f"\n{_NOTES}\n")
        click.echo(f"recommended: {choice.form}: {choice.why}")
        click.echo(f"  {_command(settings, name, source, choice.form)}")


def _table(found: Mapping[str, Figures], *, exact: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("FORM")
    for title in ("PREFILL", "1 STREAM", "8", "32", "SCORING", "SPEED", "MEMORY", "FILE", "KL",
                  "TOP-1"):  # fmt: skip
        table.add_column(title, justify="right")
    table.add_column("SEED PROMISE")
    for form, figures in found.items():
        if figures.left_out is not None:
            table.add_row(form, *[""] * 10, plain(figures.left_out))
        else:
            table.add_row(form, *_cells(figures, found[AS_IS]), _promise(figures, exact=exact))
    return table


def _cells(figures: Figures, as_is: Figures) -> Iterator[str]:
    speeds, fidelity = figures.speeds, figures.fidelity
    rates: tuple[float | None, ...] = (None,) * 5
    if speeds is not None:
        rates = (speeds.prefill, speeds.one, speeds.few, speeds.many, speeds.scoring)
    yield from ("-" if rate is None else f"{rate:.0f}" for rate in rates)
    speed = gain(figures, as_is)
    yield "-" if speed is None else f"{speed:.2f}"
    for size in (figures.memory_bytes, figures.file_bytes):
        yield "-" if size is None else f"{size / 1e6:,.0f} MB"
    yield "-" if fidelity is None else f"{fidelity.kl:.5f}"
    yield "-" if fidelity is None else f"{fidelity.agreement:.1%}"


def _promise(figures: Figures, *, exact: bool) -> str:
    if not exact:
        return "given up"
    return "kept" if figures.batch_invariant else "not kept"


def _command(settings: Settings, name: str, source: str, form: str) -> str:
    """How to start a server of this model in a form."""
    words = ["afterword", "serve"]
    if source != EMBEDDED_SOURCE:
        words += ["--model", f"{name}={source}"]
    if settings.kv != "exact":
        words += ["--kv", settings.kv]
    if settings.threads is not None:
        words += ["--threads", str(settings.threads)]
    return shlex.join([*words, "--weights", form])
