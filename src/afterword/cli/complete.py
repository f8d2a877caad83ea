"""``afterword complete``: one completion in the terminal, of a file or a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import rich_click as click

from afterword.cli.options import SettingsCommand
from afterword.cli.served import model_flags, openers
from afterword.cli.terminal import printable_prose
from afterword.cli.texts import argument_text, standard_input
from afterword.library.answers import TextChunk
from afterword.library.llm import LLM

_FIELDS = ("max_tokens", "temperature", "top_p", "seed", "suffix", "echo", "logprobs")


@click.command(cls=SettingsCommand, short_help="Complete a prompt in the terminal.")
@model_flags
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
@click.option("--echo", is_flag=True, default=None, help="Print the prompt first.")
@click.option("--logprobs", type=int, metavar="N",
              help="After the answer, list its tokens, each with the N likeliest.")  # fmt: skip
def complete(prompt: str, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Complete PROMPT and print the answer as it streams. PROMPT "-" reads standard input."""
    prompt = standard_input() if prompt == "-" else argument_text(prompt, "PROMPT")
    stop = [argument_text(text, "--stop") for text in given.pop("stop")]
    fields: Any = {name: given.pop(name) for name in _FIELDS} | {"stop": stop}
    if fields["suffix"] is not None:
        fields["suffix"] = argument_text(fields["suffix"], "--suffix")
    # Programs get the text as it is. A terminal would obey a server's or a model's text.
    shown = printable_prose if sys.stdout.isatty() else str
    # One sequence runs; the operator may still say otherwise.
    opener, *others = openers(given, probe=False, usual={"max_sequences": "1"})
    if others and len(given["models"]) > 1:
        raise click.UsageError("--model is there several times: one model completes a prompt")
    chunks = []
    with LLM.opened_by(opener) as llm, llm.stream(prompt, **fields) as stream:
        for chunk in stream:
            sys.stdout.write(shown(chunk.text))
            sys.stdout.flush()
            chunks.append(chunk)
    sys.stdout.write("\n")
    if fields["logprobs"] is not None:
        _show(chunks)


def _show(chunks: list[TextChunk]) -> None:
    # Drawing takes longer to import than a short answer to write.
    from afterword.cli.terminal import print_table  # noqa: PLC0415
    from afterword.cli.tinted import LIKELIEST, table_of_tokens  # noqa: PLC0415

    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[Mapping[str, float] | None] = []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        if choice.logprobs is not None:
            tokens += choice.logprobs.tokens
            values += choice.logprobs.token_logprobs
            tops += choice.logprobs.top_logprobs
    print_table(table_of_tokens(tokens, {"LOGPROB": values}, {LIKELIEST: tops}))
