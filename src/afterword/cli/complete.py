"""``afterword complete``: one completion in the terminal, without a server."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import msgspec
import rich_click as click

from afterword.cli.compose import load_service
from afterword.cli.options import SettingsCommand, read_settings, setting_flags
from afterword.cli.terminal import Terminal
from afterword.config import Settings

_FIELDS = ("max_tokens", "temperature", "top_p", "seed", "suffix", "echo")


@click.command(cls=SettingsCommand, short_help="Complete a prompt in the terminal.")
@setting_flags("Models", "Engine")
@click.argument("prompt")
@click.option(
    "--max-tokens",
    type=int,
    default=128,
    show_default=True,
    help="Maximum number of tokens to generate.",
)
@click.option("--temperature", type=float, help="0 always takes the likeliest token. [default: 1]")
@click.option("--top-p", type=float, help="Nucleus sampling. [default: 1]")
@click.option("--seed", type=int, help="Makes the answer reproducible.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer. May be repeated.")
@click.option("--suffix", metavar="TEXT", help="Write the text between PROMPT and TEXT.")
@click.option("--echo", is_flag=True, help="Print the prompt first.")
def complete(prompt: str, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Complete PROMPT and print the answer as it streams. PROMPT "-" reads standard input."""
    if prompt == "-":
        prompt = sys.stdin.read()
    body: dict[str, Any] = {"prompt": prompt, "stream": True, "stop": list(given.pop("stop"))}
    for name in _FIELDS:
        value = given.pop(name)
        if value is not None:
            body[name] = value
    # One sequence runs; the operator may still say otherwise.
    given["max_sequences"] = given["slots"] or given["max_sequences"] or "1"
    settings = read_settings(given, os.environ).settings
    asyncio.run(_complete(msgspec.structs.replace(settings, require_model=False), body))


async def _complete(settings: Settings, body: dict[str, Any]) -> None:
    async with load_service(settings, Terminal(), probe=False) as service:
        plan = await service.plan(msgspec.json.encode(body))
        async with service.open(plan) as answer:
            async for chunks in answer.chunks():
                sys.stdout.write("".join(chunk.choices[0].text for chunk in chunks))
                sys.stdout.flush()
        sys.stdout.write("\n")
