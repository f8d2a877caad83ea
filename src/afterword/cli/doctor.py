"""``afterword doctor``: reports the models, the machine and the settings, and what to change."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import rich_click as click

from afterword import __version__
from afterword.cli import checkup
from afterword.cli.options import SettingsCommand, read_settings, setting_flags
from afterword.cli.terminal import Terminal, print_facts
from afterword.completion.catalog import ServedModel
from afterword.completion.search import infill_way
from afterword.compose.services import load_service
from afterword.config import Settings
from afterword.core.machine import memory_limit, usable_cores
from afterword.core.protocols import PrefixSharing
from afterword.gateway.address import is_remote
from afterword.gateway.dialects.dialect import UNKNOWN_CONTEXT

_MEMORY = {
    "kv_bytes": ("kv memory", " at most"),
    "weights_bytes": ("memory of weights", ""),
    "buffer_bytes": ("buffers", ""),
    "process_bytes": (
        "process",
        ", and what is kept of scores and graphs, when all KV memory is used",
    ),
}
_GIB = 2**30


@click.command(
    cls=SettingsCommand, short_help="Open the models, report memory and problems, start nothing."
)
@setting_flags("Models", "Network", "Engine", "Ledger", "Access")
def doctor(**given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Open the configured models and report memory, slots and batch invariance.

    Also checks machine, disk, port and ledger, and says what to change. Exits with status 1 if
    the server would not start, or if --kv exact is set and an answer could depend on the rest of
    its batch.
    """
    settings = read_settings(given, os.environ).settings
    sys.exit(asyncio.run(_examine(settings)))


async def _examine(settings: Settings) -> int:
    print_facts(_machine(settings))
    click.echo()
    surroundings = list(checkup.surroundings(settings))
    print_facts((finding.name, finding.text) for finding in surroundings)
    async with load_service(settings, Terminal(), fresh=True) as service:
        served = service.catalog.engines
        for model in served:
            click.echo()
            print_facts(_model(model, settings))
        # Upstreams are responsible for their own batch invariance.
        kept = all(
            model.engine.card.batch_invariant or is_remote(settings.models[model.name])
            for model in served
        )
    click.echo()
    print_facts(("change", finding.change) for finding in surroundings if finding.change)
    stopped = any(finding.fatal for finding in surroundings)
    return int(stopped or (settings.kv == "exact" and not kept))


def _machine(settings: Settings) -> Iterator[tuple[str, object]]:
    cores = usable_cores()
    yield "afterword", __version__
    yield "python", platform.python_version()
    yield "cores", cores
    yield "memory", f"{memory_limit() / _GIB:.1f} GiB"
    yield "threads", settings.threads or cores
    yield "kernels", ", ".join(checkup.instructions()) or "no vector instructions known"
    yield "gpu", checkup.gpus()


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
    yield "suffix", _INFILL[infill_way(model.engine)]
    if is_remote(settings.models[model.name]):
        invariance = "that of the servers behind"
    elif card.batch_invariant:
        invariance = "kept: answers do not depend on the rest of the batch"
    elif settings.kv == "exact":
        invariance = "NOT kept: rows differ in larger batches"
        if card.details.get("gpu_layers"):
            invariance += " (--gpu-layers 0 keeps it, --kv fast gives it up)"
    else:
        invariance = "given up (--kv fast): answers may depend on the rest of the batch"
    yield "batch invariance", invariance
    if card.prefix_sharing is not None:
        yield "prefix cache", _SHARING[card.prefix_sharing]


_INFILL: Mapping[Literal["tokens", "search"] | None, str] = {
    "tokens": "by the model's infill tokens",
    "search": "by a search: the model has no infill tokens",
    None: "refused: no infill tokens, and prompts share too little for a search",
}
_SHARING: Mapping[PrefixSharing, str] = {
    "cells": "prompts share any common prefix",
    "checkpoints": "prompts share prefixes that end at a kept state (recurrent layers)",
    "none": "OFF: a shared prefix changes answers on this machine",
}


def _context(tokens: int, *, remote: bool) -> str:
    if not remote:
        return f"{tokens} tokens a sequence"
    # Upstreams have slots of their own, and some do not report their context.
    return f"{tokens} tokens a request" if tokens < UNKNOWN_CONTEXT else "not reported"
