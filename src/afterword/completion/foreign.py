"""Fields of other servers that ask for nothing here, and what to say of the rest (R18, R20).

A field with a value that changes nothing is honoured by doing nothing. Any other value is refused
by name. Names that no server has are refused as typing errors.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

import msgspec

from afterword.completion.fields import Json, Schema, not_offered, unrecognized
from afterword.core.errors import InvalidRequest


class Foreign(msgspec.Struct, frozen=True):
    """A field of another server: its neutral values, and why they are neutral.

    Null is always neutral. ``schema`` is the JSON Schema of the others.
    """

    schema: Schema
    reason: str

    def neutral(self, given: Json) -> bool:
        """Whether a value asks for nothing. 1 and 1.0 are equal, 1 and true are not."""
        members = self.schema.get("properties")
        if members is not None:
            return isinstance(given, dict) and all(
                name in members and _is_one_of(value, members[name]["enum"])
                for name, value in given.items()
            )
        if "enum" not in self.schema:
            return type(given) in {int, float}
        return _is_one_of(given, self.schema["enum"])

    @property
    def values(self) -> str:
        """The neutral values, for a person."""
        members = self.schema.get("properties")
        if members is not None:
            each = (
                f"{name} {_shown(member['enum'][:-1]) or 'null'}"
                for name, member in members.items()
            )
            return "an object of " + ", ".join(each)
        known = self.schema.get("enum")
        if known is None:
            return "any number"
        return _shown(known) or "null"


def _is_one_of(given: Json, values: Iterable[Json]) -> bool:
    return any(
        given == value and isinstance(given, bool) == isinstance(value, bool) for value in values
    )


def _shown(values: Iterable[Json]) -> str:
    return " or ".join(msgspec.json.encode(value).decode() for value in values)


def _only(values: tuple[Json, ...], reason: str) -> Foreign:
    return Foreign({"enum": list(values)}, reason)


def _a_number(reason: str) -> Foreign:
    return Foreign({"type": "number"}, reason)


def _members(values: Mapping[str, tuple[Json, ...]], reason: str) -> Foreign:
    """An object of which each member has its own neutral values, and no other members."""
    members = {name: {"enum": [*known, None]} for name, known in values.items()}
    schema: Schema = {"type": "object", "properties": members, "additionalProperties": False}
    return Foreign(schema, reason)


_LONGEST_NAME = 40
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_OFF = "the sampler is off at this value, and this server does not have it"
_COMPANION = "it only tunes a sampler that is off"
_NONE = "this server does not have it"
_CHAT = "completions call no tools"
_EXPERTS = "see return_routed_experts, which this server does not have"

_FIELDS: Mapping[str, Foreign] = {
    "use_beam_search": _only((False,), reason="there are no beams"),
    "length_penalty": _only((1,), reason="it ranks beams, and there are none"),
    "early_stopping": _only((False,), reason="it ends beams, and there are none"),
    "spaces_between_special_tokens": _only(
        (True, False), reason="GGUF vocabularies have no such spaces"
    ),
    "typical": _only((1,), reason="the name of typical_p elsewhere; 1 is off"),
    "tfs": _only((1,), reason=_OFF),
    "tfs_z": _only((1,), reason=_OFF),
    "top_a": _only((0,), reason=_OFF),
    "min_keep": _only((0,), reason="every filter keeps a token anyway"),
    "mirostat": _only((0,), reason=_OFF),
    "mirostat_mode": _only((0,), reason=_OFF),
    "mirostat_tau": _a_number(_COMPANION),
    "mirostat_eta": _a_number(_COMPANION),
    "dynatemp_range": _only((0,), reason=_OFF),
    "dynatemp_exponent": _a_number(_COMPANION),
    "smoothing_factor": _only((0,), reason=_OFF),
    "smoothing_curve": _a_number(_COMPANION),
    "top_n_sigma": _only((-1,), reason=_OFF),
    "epsilon_cutoff": _only((0,), reason=_OFF),
    "eta_cutoff": _only((0,), reason=_OFF),
    "penalize_nl": _only((False,), reason="newlines are penalised as other tokens are"),
    "ban_eos_token": _only((False,), reason="an end token ends a choice; see ignore_eos"),
    "priority": _only((0,), reason="all requests have the same priority"),
    "n_probs": _only((0,), reason="log-probabilities are asked for with logprobs"),
    "cache_prompt": _only((True,), reason="prefixes are always cached"),
    "bad_words": _only(([],), reason=_NONE),
    "banned_tokens": _only(([],), reason=_NONE),
    "banned_strings": _only(([],), reason=_NONE),
    "prompt_embeds": _only((), reason=_NONE),
    "guided_json": _only((), reason="see response_format and structured_outputs"),
    "guided_regex": _only((), reason="see structured_outputs"),
    "guided_choice": _only((), reason="see structured_outputs"),
    "guided_grammar": _only((), reason="see structured_outputs"),
    "guided_decoding_backend": _only((), reason="there is one kind of structured output"),
    "guided_whitespace_pattern": _only((), reason=_NONE),
    "grammar": _only(("",), reason="see structured_outputs"),
    "json_schema": _only((), reason="see response_format"),
    "lora": _only(([],), reason="no adapters are served"),
    "lora_path": _only((), reason="no adapters are served"),
    "kv_transfer_params": _only((), reason=_NONE),
    "vllm_xargs": _only((), reason=_NONE),
    "request_id": _only((), reason="the server names requests; see x-request-id"),
    "metadata": _only(({},), reason=_NONE),
    "session_id": _only((), reason=_NONE),
    # Of vLLM, SGLang and TensorRT-LLM. Routers in front of them send every field of their class.
    "truncation_side": _only(("left",), reason="truncate_prompt_tokens keeps the end"),
    "detokenize": _only((True,), reason="answers have text; see return_token_ids"),
    "ec_transfer_params": _only((), reason=_NONE),
    "thinking_token_budget": _only((), reason=_NONE),
    "repetition_detection": _only((), reason=_NONE),
    "logits_processors": _only((), reason=_NONE),
    "custom_logit_processor": _only((), reason=_NONE),
    "stop_regex": _only(([],), reason="see stop"),
    "no_stop_trim": _only((False,), reason="see include_stop_str_in_output"),
    "regex": _only((), reason="see structured_outputs"),
    "ebnf": _only((), reason="see structured_outputs"),
    "return_hidden_states": _only((False,), reason=_NONE),
    "rid": _only((), reason="the server names requests; see x-request-id"),
    "watermarking": _only((False,), reason=_NONE),
    "stream_interval": _only((1,), reason="each token is sent at once"),
    "return_token_offsets": _only((False,), reason="see text_offset in logprobs"),
    "return_mm_kwargs": _only((True, False), reason="completions have no images"),
    "images_config": _only((), reason="completions have no images"),
    "return_routed_experts": _only((False,), reason=_NONE),
    "routed_experts_start_len": _only((0,), reason=_EXPERTS),
    "routed_experts_prompt_start": _only((0,), reason=_EXPERTS),
    "return_cached_tokens_details": _only((False,), reason="see prompt_tokens_details in usage"),
    "return_context_logits": _only((False,), reason="see echo and prompt_logprobs"),
    "top_p_min": _only((0,), reason=_OFF),
    "prompt_ignore_length": _only((0,), reason=_NONE),
    "custom_params": _only((), reason=_NONE),
    "custom_labels": _only((), reason=_NONE),
    "extra_key": _only((), reason="see cache_salt"),
    "ngram_corpus_id": _only((), reason="see the setting prompt_lookup"),
    "session_params": _only((), reason=_NONE),
    "conversation_params": _only((), reason=_NONE),
    "lora_request": _only((), reason="no adapters are served"),
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "routed_dp_rank",
            "disagg_prefill_dp_rank",
            "data_parallel_rank",
            "disaggregated_params",
        ),
        _only((), reason="one server computes the whole of an answer"),
    ),
    # Of TabbyAPI and Aphrodite.
    "nsigma": _only((0,), reason=_OFF),
    "skew": _only((0,), reason=_OFF),
    "cfg_scale": _only((1,), reason="there is one prompt, and no negative one"),
    "token_healing": _only((False,), reason=_NONE),
    "temperature_last": _only((False,), reason="the temperature comes before the filters"),
    "max_temp": _only((1,), reason=_OFF),
    "min_temp": _only((1,), reason=_OFF),
    "temp_exponent": _a_number(_COMPANION),
    "repetition_decay": _only((0,), reason="repetition_penalty_range has no slope"),
    "generate_window": _only((), reason="see truncate_prompt_tokens"),
    "allowed_tokens": _only(([],), reason="see allowed_token_ids"),
    "negative_prompt": _only(("",), reason="there is one prompt, and no negative one"),
    "regex_pattern": _only(("",), reason="see structured_outputs"),
    "grammar_string": _only(("",), reason="see structured_outputs"),
    "speculative_ngram": _only((True, False), reason="drafts change no answer"),
    # Of llama.cpp, llama-cpp-python and KoboldAI: other names of repetition_penalty.
    "repeat_penalty": _only((1,), reason="1 is off; see repetition_penalty"),
    "rep_pen": _only((1,), reason="1 is off; see repetition_penalty"),
    # Of Fireworks, Together, OpenRouter.
    "context_length_exceeded_behavior": _only(
        ("error",), reason="a request that does not fit is refused"
    ),
    "prompt_truncate_len": _only((), reason="see truncate_prompt_tokens"),
    "echo_last": _only((), reason="see echo"),
    "raw_output": _only((False,), reason=_NONE),
    "perf_metrics_in_response": _only((False,), reason="see openai-processing-ms"),
    "safety_model": _only((), reason=_NONE),
    "provider": _members(
        {
            "require_parameters": (True, False),
            "allow_fallbacks": (True, False),
            "data_collection": ("allow",),
            "zdr": (False,),
            "sort": (),
            "max_price": (),
            **dict.fromkeys(("order", "only", "ignore", "quantizations"), ([],)),
        },
        reason="there is one provider, which honours every parameter or refuses it",
    ),
    "usage": _members({"include": (False,)}, reason="see stream_options.include_usage"),
    "transforms": _only(([],), reason="prompts are taken as they are"),
    "models": _only(([],), reason="a request has one model"),
    "route": _only(("fallback",), reason="a request has one model"),
    "plugins": _only(([],), reason=_NONE),
    "include_reasoning": _only((False,), reason="completions have no reasoning"),
    "reasoning": _only((), reason="completions have no reasoning"),
    # Of OpenAI's other routes.
    "top_logprobs": _only((), reason="the number of alternatives is that of logprobs"),
    "tools": _only(([],), reason=_CHAT),
    "tool_choice": _only(("none", "auto"), reason=_CHAT),
    "functions": _only(([],), reason=_CHAT),
    "function_call": _only(("none", "auto"), reason=_CHAT),
    "parallel_tool_calls": _only((True, False), reason=_CHAT),
    "modalities": _only((["text"],), reason="completions are text"),
    "audio": _only((), reason="completions are text"),
    "prediction": _only((), reason="see the setting prompt_lookup"),
    "reasoning_effort": _only((), reason="completions have no reasoning"),
    "verbosity": _only((), reason=_NONE),
    "web_search_options": _only((), reason=_NONE),
    "store": _only((False,), reason="answers are not stored"),
    "service_tier": _only(("auto", "default"), reason="all requests have the same tier"),
    "safety_identifier": _only((), reason="see user"),
    "prompt_cache_key": _only((), reason="prefixes are always cached; see cache_salt"),
    "prompt_cache_retention": _only((), reason="prefixes are cached while there is room"),
}

_DIALECTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("max_new_tokens", "auto_max_new_tokens", "stopping_strings", "sampler_seed",
         "encoder_repetition_penalty", "no_repeat_ngram_size", "guidance_scale", "add_bos_token",
         "truncation_length", "rep_pen_size", "sampler_priority", "custom_token_bans",
         "do_sample", "penalty_alpha", "preset", "dynamic_temperature", "dynatemp_low",
         "dynatemp_high", "dynatemp_min", "dynatemp_max", "max_tokens_second",
         "prompt_lookup_num_tokens"),
        "text-generation-webui's; choose the client's type \"OpenAI compatible\" or \"vLLM\"",
    ),
    **dict.fromkeys(
        ("penalty_range", "repetition_range", "dry_range"),
        "TabbyAPI's; choose the client's type \"OpenAI compatible\" or \"vLLM\"",
    ),
    **dict.fromkeys(
        ("max_context_length", "max_length", "rep_pen_range", "rep_pen_slope",
         "sampler_order", "quiet", "trim_stop", "genkey", "render_special", "bypass_eos"),
        "KoboldAI's; choose the client's type \"OpenAI compatible\", without extra fields",
    ),
    **dict.fromkeys(
        ("options", "keep_alive", "raw", "format", "template", "system", "think"),
        "Ollama's; choose the client's type \"OpenAI compatible\", or \"LM Studio\" in twinny",
    ),
    **dict.fromkeys(
        ("parameters", "inputs"),
        "text-generation-inference's; choose the client's type \"OpenAI compatible\"",
    ),
    **dict.fromkeys(
        ("n_predict", "repeat_last_n", "samplers", "id_slot", "n_keep",
         "t_max_predict_ms", "t_max_prompt_ms", "n_indent", "response_fields", "input_prefix",
         "input_suffix", "input_extra", "timings_per_token"),
        "llama-server's; choose the client's type \"OpenAI compatible\", or use POST /infill",
    ),
    **dict.fromkeys(
        ("segments", "language", "debug_options"),
        "Tabby's; let the client talk to Tabby, and Tabby to this server",
    ),
    **dict.fromkeys(("nwo", "extra"), "GitHub Copilot's; a proxy for Copilot leaves it out"),
    **dict.fromkeys(
        ("messages",),
        "that of /v1/chat/completions; this server completes a prompt",
    ),
}  # fmt: skip


def schemas() -> dict[str, Schema]:
    """Returns the JSON Schema of each foreign field."""
    found = neutral_schemas(_FIELDS)
    for name, dialect in _DIALECTS.items():
        found[name] = {"type": "null", "description": f"The field is {dialect}."}
    return found


def neutral_schemas(known: Mapping[str, Foreign]) -> dict[str, Schema]:
    """Returns the JSON Schema of each of these fields."""
    return {
        name: {**_or_null(field.schema), "description": f"Asks for nothing: {field.reason}."}
        for name, field in known.items()
    }


def _or_null(schema: Schema) -> Schema:
    """Returns the schema with null; null alone if no other value is neutral."""
    null: Schema = {"type": "null"}
    # Tools refuse an enumeration of nothing.
    return null if schema.get("enum") == [] else {"anyOf": [schema, null]}


def ignore_or_refuse(body: Mapping[str, Json], name: str, known: Container[str]) -> None:
    """Return if the field of the body asks for nothing. Raises ``InvalidRequest`` otherwise.

    ``known`` are the fields that are honoured. One of them in camel case asks for nothing beside
    the same value under its own name: some libraries send both.
    """
    value = body[name]
    found = _FIELDS.get(name)
    if found is not None:
        if value is None or found.neutral(value):
            return
        raise not_offered(name, f"its only value is {found.values}: {found.reason}.")
    dialect = _DIALECTS.get(name)
    if dialect is not None:
        if value is None:
            return
        raise not_offered(name, f"the field is {dialect}.")
    twin = _CAMEL.sub("_", name[:_LONGEST_NAME]).lower()
    if twin != name and twin in known:
        if value is None or (twin in body and _is_one_of(value, (body[twin],))):
            return
        raise InvalidRequest(
            f"Unrecognized request argument supplied: {name}. Its name is {twin}.", param=name
        )
    raise unrecognized(name)
