"""``afterword keys``: makes, lists, rotates and revokes keys."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rich_click as click

from afterword.cli.database import database, key_store, unknown_models
from afterword.cli.ledger import ledger_place
from afterword.cli.options import Command, read_settings
from afterword.cli.terminal import print_facts, print_rows
from afterword.config import Settings
from afterword.core.account import KeyTerms, KeyView, NewKey
from afterword.core.moments import iso, parse_span

_LEDGER = ("config", "data_dir", "database")


def ledger_flags(command: Command) -> Command:
    """Adds the flags that name a ledger."""
    for flag, metavar, text in (
        ("--database", "URL", "The ledger's database. [default: a file in the data folder]"),
        ("--data-dir", "FOLDER", "Where the ledger is kept. [default: the user's data folder]"),
        ("--config", "FILE", "A TOML file of settings."),
    ):
        command = click.option(flag, metavar=metavar, help=text)(command)
    return command


def ledger_settings(given: dict[str, Any]) -> Settings:
    """Returns the settings, with the ledger flags that it takes out of ``given``.

    Says on standard error which ledger they mean.
    """
    flags = {name: given.pop(name) for name in _LEDGER}
    settings = read_settings(flags, os.environ).settings
    click.echo(f"ledger: {ledger_place(settings)}", err=True)
    return settings


@click.group(short_help="Make, list, rotate and revoke keys.")
def keys() -> None:
    """Keys: who may use the server, and how much.

    From the first key on, servers of this ledger need a key for every request. Changes reach
    running servers within a second.
    """


@keys.command(short_help="Make a key.")
@click.argument("name")
@click.option(
    "--models", metavar="NAMES", help="Only these models, separated by commas. [default: all]"
)
@click.option("--rpm", type=int, metavar="N", help="Requests in any minute.")
@click.option("--tpm", type=int, metavar="N", help="Tokens in any minute.")
@click.option("--concurrent", type=int, metavar="N", help="Requests at once.")
@click.option("--budget-tokens", type=int, metavar="N", help="Tokens in a day or month.")
@click.option("--per", type=click.Choice(["day", "month"]), help="The period of the budget. "
              "[default: month]")  # fmt: skip
@click.option(
    "--expires", metavar="SPAN", help="How long it is valid, as in 90d. [default: for ever]"
)
@click.option("--admin", is_flag=True, help="It may also manage keys and see usage over HTTP.")
@ledger_flags
def create(name: str, **given: Any) -> None:  # noqa: ANN401 - the terms' and the ledger's flags
    """Make a key for NAME, a person or a program. It is shown once; the ledger keeps its hash."""
    if given["per"] and given["budget_tokens"] is None:
        raise click.UsageError("--per is for a budget: give --budget-tokens, too")
    settings = ledger_settings(given)
    models, expires = given["models"], given["expires"]
    terms = KeyTerms(
        name=name,
        models=None if models is None else tuple(filter(None, map(str.strip, models.split(",")))),
        rpm=given["rpm"],
        tpm=given["tpm"],
        concurrent=given["concurrent"],
        budget_tokens=given["budget_tokens"],
        budget_per=given["per"] or "month",
        expires_at=None if expires is None else time.time() + parse_span(expires, param="expires"),
        admin=given["admin"],
    )
    with database(settings) as engine:
        made = key_store(engine).create(terms)
        unserved = unknown_models(engine, settings, terms.models or ())
    _show_secret(made)
    for model, served in unserved:
        click.echo(f"WARNING: nobody serves {model!a} ({served})", err=True)


@keys.command("list", short_help="Show all keys.")
@ledger_flags
def list_keys(**given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """List keys, their limits, and how much of their budgets they used."""
    names = ("NAME", "KEY", "STATE", "MODELS", "RPM", "TPM", "AT ONCE", "BUDGET", "USED")
    with database(ledger_settings(given)) as engine:
        print_rows(names, map(_row, key_store(engine).all()))


@keys.command(short_help="Show a key.")
@click.argument("key")
@ledger_flags
def show(key: str, **given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Show everything about KEY, a name or an id, except its secret."""
    with database(ledger_settings(given)) as engine:
        print_facts(_facts(key_store(engine).find(key)))


@keys.command(short_help="Give a key a new secret.")
@click.argument("key")
@click.option("--overlap", default="0s", show_default=True, metavar="SPAN",
              help="How long the old secret stays valid, as in 24h.")  # fmt: skip
@ledger_flags
def rotate(key: str, overlap: str, **given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Give KEY a new secret. Limits, budget and usage stay."""
    overlap_s = parse_span(overlap, param="overlap")
    with database(ledger_settings(given)) as engine:
        _show_secret(key_store(engine).rotate(key, overlap_s))


@keys.command(short_help="End a key.")
@click.argument("key")
@ledger_flags
def revoke(key: str, **given: Any) -> None:  # noqa: ANN401 - the ledger's flags
    """Revoke KEY. Running servers refuse it within a second. Its records stay."""
    with database(ledger_settings(given)) as engine:
        view = key_store(engine).revoke(key)
    click.echo(f"{view.terms.name} is revoked")


def _show_secret(made: NewKey) -> None:
    """Print the secret on standard output, the rest on standard error."""
    click.echo(made.secret)
    click.echo(f"This is the key of {made.view.terms.name}; it is not shown again.", err=True)


def _row(view: KeyView) -> Sequence[str]:
    terms = view.terms
    limits = (terms.rpm, terms.tpm, terms.concurrent)
    return (
        terms.name, f"{view.prefix}…", _state(view), ",".join(terms.models or ("all",)),
        *("-" if limit is None else str(limit) for limit in limits),
        _budget(terms), str(view.period_used_tokens),
    )  # fmt: skip


def _state(view: KeyView) -> str:
    if view.revoked_at is not None:
        return "revoked"
    expires_at = view.terms.expires_at
    if expires_at is None:
        return "good"
    if expires_at <= time.time():
        return "expired"
    return f"until {iso(expires_at)[:10]}"


def _budget(terms: KeyTerms) -> str:
    return "-" if terms.budget_tokens is None else f"{terms.budget_tokens}/{terms.budget_per}"


def _facts(view: KeyView) -> Iterator[tuple[str, object]]:
    terms = view.terms
    shown: Callable[[object], object] = lambda value: "-" if value is None else value  # noqa: E731
    yield "name", terms.name
    yield "id", view.id
    yield "key", f"{view.prefix}…"
    yield "state", _state(view)
    yield "admin", "yes" if terms.admin else "no"
    yield "models", ", ".join(terms.models or ("all",))
    yield "rpm", shown(terms.rpm)
    yield "tpm", shown(terms.tpm)
    yield "concurrent", shown(terms.concurrent)
    yield "budget", _budget(terms)
    yield "used", f"{view.period_used_tokens} tokens this {terms.budget_per}"
    yield "reserved", f"{view.period_reserved_tokens} tokens"
    yield "created", iso(view.created_at)
    yield "expires", "-" if terms.expires_at is None else iso(terms.expires_at)
    yield "revoked", "-" if view.revoked_at is None else iso(view.revoked_at)
