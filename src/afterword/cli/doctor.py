"""``afterword doctor``: what this machine and these settings come to, and what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import rich_click as click

from afterword import __version__
from afterword.cli import checkup
from afterword.cli.compose import load_service
from afterword.cli.options import SettingsCommand, read_settings, setting_flags
from afterword.cli.terminal import Terminal
from afterword.completion.catalog import ServedModel
from afterword.config import Settings
from afterword.core.protocols import PrefixSharing
from afterword.engine.llama.machine import memory_limit
from afterword.gateway.address import is_remote
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT

_MEMORY = {
    "kv_bytes": ("kv memory", " for all slots"),
    "weights_bytes": ("memory of weights", ""),
    "buffer_bytes": ("buffers", ""),
    "process_bytes": ("process", " at most, when all slots are full"),
}
_GIB = 2**30


@click.command(
    cls=SettingsCommand, short_help="Open the models, say what they come to, start nothing."
)
@setting_flags("Models", "Network", "Engine", "Ledger", "Access")
def doctor(**given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Open the models that are set up and say what the server would be: memory, slots, promises.

    Looks at machine, disk, port and ledger too, and says what to change. Exits with status 1 if
    the server would not start, or if answers could depend on what else is served although
    --kv exact asks that they do not.
    """
    settings = read_settings(given, os.environ).settings
    sys.exit(asyncio.run(_examine(settings)))


async def _examine(settings: Settings) -> int:
    _print(_machine(settings))
    click.echo()
    surroundings = list(checkup.surroundings(settings))
    _print((finding.name, finding.text) for finding in surroundings)
    async with load_service(settings, Terminal(), fresh=True) as service:
        served = service.catalog.engines
        for model in served:
            click.echo()
            _print(_model(model, settings))
        # What other servers promise is their own affair.
        kept = all(
            model.engine.card.batch_invariant or is_remote(settings.models[model.name])
            for model in served
        )
    click.echo()
    _print(("change", finding.change) for finding in surroundings if finding.change)
    stopped = any(finding.fatal for finding in surroundings)
    return int(stopped or (settings.kv == "exact" and not kept))


def _machine(settings: Settings) -> Iterator[tuple[str, object]]:
    cores = len(os.sched_getaffinity(0))
    yield "afterword", __version__
    yield "python", platform.python_version()
    yield "cores", cores
    yield "memory", f"{memory_limit() / _GIB:.1f} GiB"
    yield "threads", settings.threads or cores
    yield "kernels", ", ".join(checkup.instructions()) or "no vector instructions known"


def _model(model: ServedModel, settings: Settings) -> Iterator[tuple[str, object]]:
    card = model.engine.card
    yield "model", model.name
    yield "context", _context(card.context_tokens, remote=is_remote(settings.models[model.name]))
    for name, value in card.details.items():
        if name in _MEMORY:
            yield _MEMORY[name][0], f"{int(value) / _GIB:.2f} GiB{_MEMORY[name][1]}"
        else:
            yield name, value
    yield "fingerprint", card.fingerprint
    yield "suffix", "yes" if model.engine.tokenizer.infill else "refused: no infill tokens"
    if is_remote(settings.models[model.name]):
        promise = "that of the servers behind"
    elif card.batch_invariant:
        promise = "kept: answers do not depend on what else is served"
    elif settings.kv == "exact":
        promise = "NOT kept: rows were not found to be the same in larger batches"
    else:
        promise = "given up (--kv fast): answers may depend on what else is served"
    yield "seed promise", promise
    if card.prefix_sharing is not None:
        yield "prefix cache", _SHARING[card.prefix_sharing]


_SHARING: Mapping[PrefixSharing, str] = {
    "cells": "prompts share any tokens that they begin with",
    "checkpoints": "prompts share beginnings where a state was kept (recurrent layers)",
    "none": "OFF: a prefix of another prompt was not found to serve as well",
}


def _context(tokens: int, *, remote: bool) -> str:
    if not remote:
        return f"{tokens} tokens a slot"
    # Slots are the other server's, and some do not say how long their context is.
    return f"{tokens} tokens a request" if tokens < UNKNOWN_CONTEXT else "not told by the server"


def _print(rows: Iterator[tuple[str, object]]) -> None:
    for name, value in rows:
        click.echo(f"{name:<14} {value}")
