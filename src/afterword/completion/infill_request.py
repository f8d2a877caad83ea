"""The body of ``POST /infill``: llama-server's request as a completion request (F5)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from afterword.completion import fields, foreign, id_fields
from afterword.completion.bodies import parse_object
from afterword.completion.fields import Field, Json, Kind, Parser, Schema, out_of_range, wrong_type
from afterword.completion.foreign import Foreign
from afterword.completion.infill import Place, Snippet
from afterword.completion.plan import InfillOptions
from afterword.completion.request import CompletionRequest, parsers
from afterword.completion.samplers import STAGES, Stages, chosen_stages
from afterword.core.errors import InvalidRequest
from afterword.core.limits import Limits

_MOST = 2**31 - 1
_MOST_SNIPPETS = 4096
_MOST_RESPONSE_FIELDS = 256
_MOST_PATH_CHARACTERS = 256
_SEEDS = 2**32
_RANDOM_SEEDS = frozenset((-1, _SEEDS - 1))
_SHARED = {
    "model": "model", "stop": "stop", "stream": "stream", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "typical_p": "typical_p", "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold", "dry_multiplier": "dry_multiplier", "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length", "dry_penalty_last_n": "dry_penalty_last_n",
    "dry_sequence_breakers": "dry_sequence_breakers", "temperature": "temperature",
    "repeat_penalty": "repetition_penalty", "n_probs": "logprobs", "cache_salt": "cache_salt",
    "user": "user",
}  # fmt: skip
"""Fields with the kinds of a completion request's fields, and the names of these."""
_DEFAULTS: Mapping[str, Json] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
"""llama-server's defaults where they are not those of ``/v1/completions``."""
_ALIASES = {"max_tokens": "n_predict", "max_completion_tokens": "n_predict", "logprobs": "n_probs"}
_LAST_TOKENS = 64
"""What ``repeat_penalty`` sees without ``repeat_last_n``, as in llama-server."""
_NOTHING = "this server does not have it"
_NEUTRAL: Mapping[str, Foreign] = {
    "cache_prompt": Foreign({"enum": [True]}, "prefixes are always cached"),
    "id_slot": Foreign({"type": "number"}, "the slot with the longest common prefix is taken"),
    "t_max_prompt_ms": Foreign({"type": "number"}, "llama-server does nothing with it, either"),
    "penalty_last_n": Foreign({"enum": [0]}, "llama-server does nothing with it, either"),
    "n_keep": Foreign({"type": "number"}, "contexts are not shifted"),
    "n_discard": Foreign({"type": "number"}, "contexts are not shifted"),
    "n_cache_reuse": Foreign({"enum": [0]}, "shifted caches would change answers"),
    "n_cmpl": Foreign({"enum": [1]}, "there is one middle"),
    "n": Foreign({"enum": [1]}, "there is one middle"),
    "lora": Foreign({"enum": [[]]}, "no adapters are served"),
    "ignore_eos": Foreign({"enum": [False]}, "a middle ends where the model ends it"),
    "timings_per_token": Foreign({"enum": [False]}, "the last part has the timings"),
    "return_progress": Foreign({"enum": [False]}, _NOTHING),
    "post_sampling_probs": Foreign({"enum": [False]}, "probabilities are the model's own"),
    "backend_sampling": Foreign({"enum": [False]}, _NOTHING),
    "verbose": Foreign({"enum": [False]}, _NOTHING),
    "adaptive_target": Foreign({"enum": [-1]}, "the sampler is off at this value"),
    "adaptive_decay": Foreign({"type": "number"}, "it only tunes a sampler that is off"),
    **{
        f"speculative.{name}": Foreign({"type": "number"}, "drafts change no answer")
        for name in ("n_max", "n_min", "p_min")
    },
    "sse_ping_interval": Foreign({"type": "number"}, "the operator sets it"),
}
"""llama-server's fields with values that ask for nothing here; see ``foreign``."""


def _snippets(name: str, value: Json) -> tuple[Snippet, ...]:
    if not isinstance(value, list):
        raise wrong_type(name, value, _SNIPPETS)
    if len(value) > _MOST_SNIPPETS:
        raise out_of_range(name, value, f"an array of at most {_MOST_SNIPPETS} items")
    found = []
    for item in value:
        if not isinstance(item, dict):
            raise wrong_type(name, item, _SNIPPETS)
        for key in item:
            if key not in {"text", "filename"} and key not in _IGNORED_OF_SNIPPETS:
                raise fields.unrecognized(f"{name}.{key}")
        text = fields.STRING.parse(f"{name}.text", item.get("text"))
        filename = item.get("filename")
        if filename is None:
            filename = "tmp"
        found.append(Snippet(text, fields.STRING.parse(f"{name}.filename", filename)))
    return tuple(found)


_SNIPPETS = 'an array of {"text": string, "filename": string}'
_IGNORED_OF_SNIPPETS = frozenset(("time",))
"""llama.vim's own bookkeeping; llama-server does nothing with it, either."""
_SNIPPET: Schema = {
    "type": "object",
    "properties": {
        "text": fields.STRING.schema,
        "filename": {"type": ["string", "null"], "default": "tmp"},
        "time": {"description": "Asks for nothing: an editor's own bookkeeping."},
    },
    "required": ["text"],
    "additionalProperties": False,
}
SNIPPETS = Kind(_snippets, {"type": "array", "items": _SNIPPET, "maxItems": _MOST_SNIPPETS})


def _texts(most: int, characters: int) -> Kind:
    """An array of at most ``most`` strings of at most ``characters`` characters."""

    def parse(name: str, value: Json) -> tuple[str, ...]:
        wanted = f"an array of at most {most} strings of at most {characters} characters"
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise wrong_type(name, value, wanted)
        if len(value) > most or any(len(item) > characters for item in value):
            raise out_of_range(name, value, wanted)
        return tuple(value)

    item = {"type": "string", "maxLength": characters}
    return Kind(parse, {"type": "array", "items": item, "maxItems": most})


def _bias(name: str, value: Json) -> tuple[tuple[int, float], ...]:
    """Parse an object as in ``/v1/completions``, or pairs of an id and a number or false."""
    if isinstance(value, list):
        pairs: dict[str, Json] = {}
        for item in value:
            if not isinstance(item, list) or len(item) != 2:
                raise wrong_type(name, item, "pairs of a token id and a number")
            (token,) = id_fields.token_ids(name, item[:1])
            if str(token) in pairs:
                raise fields.duplicate(name, str(token))
            pairs[str(token)] = -100 if item[1] is False else item[1]
        value = pairs
    found: tuple[tuple[int, float], ...] = fields.LOGIT_BIAS.parse(name, value)
    return found


_PAIR: Schema = {
    "type": "array",
    "prefixItems": [{"type": "integer", "minimum": 0},
                    {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100},
                               {"const": False}]}],
    "minItems": 2,
    "maxItems": 2,
}  # fmt: skip
_BIAS = Kind(_bias, {"anyOf": [fields.LOGIT_BIAS.schema, {"type": "array", "items": _PAIR}]})


class InfillRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that ``/v1/completions`` has not, or has with another meaning."""

    input_prefix: Annotated[
        str, Field(fields.STRING, "The text before the cursor's line, or before the cursor.",
                   required=True)
    ]  # fmt: skip
    input_suffix: Annotated[str, Field(fields.STRING, "The text after the cursor.", required=True)]
    input_extra: Annotated[
        tuple[Snippet, ...],
        Field(
            SNIPPETS,
            "Parts of other files, the most important last. If they do not fit, the first are "
            "left out.",
            [],
        ),
    ] = ()
    prompt: Annotated[
        str, Field(fields.STRING, "The text between input_prefix and the cursor.", "")
    ] = ""
    n_predict: Annotated[
        int,
        Field(
            fields.integer(-1, _MOST),
            "The most tokens to generate. 0 only computes the prompt, so that the next request "
            "finds it in the cache. -1 is no limit.",
            -1,
        ),
    ] = -1
    seed: Annotated[
        int,
        Field(fields.integer(-1, _SEEDS - 1), "Makes draws repeatable. -1 is a random one.", -1),
    ] = -1
    repeat_last_n: Annotated[
        int | None,
        Field(
            fields.integer(-1, _MOST),
            "repeat_penalty sees this many tokens at the end. -1 means all. 0 turns all penalties "
            "off.",
            _LAST_TOKENS,
        ),
    ] = None
    samplers: Annotated[
        tuple[str, ...] | None,
        Field(
            _texts(2 * len(STAGES), 64),
            "The stages of sampling that are on: "
            f"{', '.join(STAGES)}. Their order must mean what it means here.",
        ),
    ] = None
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        Field(_BIAS, "Numbers to add to the logits of tokens. false bans a token."),
    ] = ()
    n_indent: Annotated[
        int,
        Field(
            fields.integer(0, _MOST),
            "The text ends before a line that is indented less, or is empty.",
            0,
        ),
    ] = 0
    t_max_predict_ms: Annotated[
        int,
        Field(
            fields.integer(-1, 2**53),
            "After so many milliseconds of generating, the next line that is whole is the last.",
            -1,
        ),
    ] = -1
    response_fields: Annotated[
        tuple[str, ...],
        Field(
            _texts(_MOST_RESPONSE_FIELDS, _MOST_PATH_CHARACTERS),
            "Only these fields of the answer, by name or path: content, timings/prompt_ms.",
        ),
    ] = ()
    return_tokens: Annotated[
        bool,
        Field(fields.BOOLEAN, "Return the ids of the generated tokens.", False),  # noqa: FBT003 - the default
    ] = False


class Infill(msgspec.Struct, frozen=True, kw_only=True):
    """An infill request in terms of completions, and what its answer shows."""

    request: CompletionRequest
    options: InfillOptions
    n_predict: int
    response_fields: tuple[str, ...]
    return_tokens: bool
    n_probs: int


@lru_cache
def _parsers(limits: Limits) -> Mapping[str, Parser]:
    shared = parsers(limits)
    own = fields.declared(InfillRequest)
    return {
        **{name: shared[theirs] for name, theirs in _SHARED.items()},
        **{name: field.kind_with(limits).parse for name, field in own.items()},
    }


def decode_infill(body: bytes, limits: Limits) -> Infill:
    """Returns the infill that a body asks for. Raises ``InvalidRequest``."""
    table = _parsers(limits)
    raw, written = _with_names(
        parse_object(body, {**table, **dict.fromkeys(_ALIASES, table["n_predict"])})
    )
    parsed: dict[str, Any] = {}
    for name, value in raw.items():
        parser = table.get(name)
        if parser is None:
            _ignore_or_refuse(raw, name)
        elif value is not None:
            parsed[name] = parser(written[name], value)
    for name in ("input_prefix", "input_suffix"):
        if name not in parsed:
            raise InvalidRequest(f"you must provide an {name} parameter", param=name)
    theirs = {name: parsed.pop(name) for name in _SHARED if name in parsed}
    own = InfillRequest(**parsed)
    return _translated(own, {**_DEFAULTS, **theirs})


def _translated(own: InfillRequest, theirs: Mapping[str, Any]) -> Infill:
    theirs = _with_penalties(own, theirs)
    given = {name: theirs[name] for name in Stages.__struct_fields__ if name in theirs}
    stages, filtered = chosen_stages(Stages(**given), own.samplers)
    settings = {**theirs, **msgspec.structs.asdict(stages)}
    n_probs = settings.pop("n_probs", None) or 0
    request = CompletionRequest(
        prompt=(own.input_prefix,),
        suffix=own.input_suffix,
        max_tokens=None if own.n_predict < 0 else own.n_predict,
        seed=None if own.seed in _RANDOM_SEEDS else own.seed,
        logit_bias=own.logit_bias or None,
        logprobs=n_probs or None,
        # Entries by id, because llama-server's answer has ids and bytes.
        return_tokens_as_token_ids=True,
        return_token_ids=own.return_tokens,
        **{_SHARED.get(name, name): value for name, value in settings.items()},
    )
    options = InfillOptions(
        place=Place(own.input_extra, own.prompt),
        least_indent=own.n_indent,
        most_ms=own.t_max_predict_ms if own.t_max_predict_ms > 0 else None,
        filtered=filtered,
    )
    return Infill(
        request=request,
        options=options,
        n_predict=own.n_predict,
        response_fields=own.response_fields,
        return_tokens=own.return_tokens,
        n_probs=n_probs,
    )


def _with_penalties(own: InfillRequest, theirs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the shared fields with penalties that see the last ``repeat_last_n`` tokens."""
    off = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    last = own.repeat_last_n
    if last == 0:
        return {**theirs, **off}
    of_answer = any(theirs.get(name, 0.0) for name in ("presence_penalty", "frequency_penalty"))
    if of_answer and last not in {None, -1}:
        raise InvalidRequest(
            "Invalid value for 'repeat_last_n': presence_penalty and frequency_penalty see all "
            f"tokens of the answer; its values with them are -1 and 0, but got {last} instead.",
            param="repeat_last_n",
            code="invalid_value",
        )
    return {**theirs, "repetition_penalty_range": _LAST_TOKENS if last is None else last}


def _with_names(raw: Mapping[str, Json]) -> tuple[dict[str, Json], dict[str, str]]:
    """Returns the fields by their own names, and how the client wrote these.

    Raises ``InvalidRequest`` for two of one field. Null asks for nothing, so it is no second
    one (R19).
    """
    named: dict[str, Json] = {}
    written: dict[str, str] = {}
    for name, value in raw.items():
        known = _ALIASES.get(name, name)
        if value is None and known in _ALIASES.values():
            continue
        if known in named:
            raise InvalidRequest(
                f"'{name}' and another field are two names of '{known}': give one of them.",
                param=name,
            )
        named[known], written[known] = value, name
    return named, written


def _ignore_or_refuse(raw: Mapping[str, Json], name: str) -> None:
    neutral = _NEUTRAL.get(name)
    if neutral is None:
        foreign.ignore_or_refuse(raw, name, ())
        return
    value = raw[name]
    if value is None or neutral.neutral(value):
        return
    raise InvalidRequest(
        f"Unrecognized request argument supplied: {name}. Its only value here is "
        f"{neutral.values}: {neutral.reason}.",
        param=name,
    )


def infill_schema(limits: Limits) -> Schema:
    """Returns the JSON Schema of a body under the operator's limits."""
    found = fields.object_schema(InfillRequest, limits, "llama-server's request for a middle.")
    properties = found["properties"]
    shared = fields.declared(CompletionRequest)
    for name, theirs in _SHARED.items():
        properties[name] = shared[theirs].schema_with(limits)
        if name in _DEFAULTS:
            properties[name]["default"] = _DEFAULTS[name]
    for name, known in _ALIASES.items():
        properties[name] = {**properties[known], "description": f"Another name of {known}."}
    others = {**foreign.schemas(), **foreign.neutral_schemas(_NEUTRAL)}
    for name, schema in others.items():
        properties.setdefault(name, schema)
    return found
