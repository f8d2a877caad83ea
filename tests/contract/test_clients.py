"""What each kind of client sends, with the default settings: honoured, or refused by name.

The bodies are those of the clients' own code with other settings than the usual ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from afterword.completion.catalog import CATCH_ALL, Catalog, ServedModel
from afterword.core.alias import Alias
from afterword.core.errors import ModelNotFound
from afterword.core.limits import Limits
from afterword.core.protocols import Engine
from afterword.engine.toy import toy_engine
from conftest import make_client
from support.asgi import Client, fold

HERE = pytest.mark.parametrize("serve", ["here"], indirect=True)
STREAM = {"stream": True, "stream_options": {"include_usage": True}}

WRITERS: Mapping[str, Mapping[str, Any]] = {
    "SillyTavern, generic": {
        "temperature": 1.2, "top_p": 0.92, "frequency_penalty": 0.3, "presence_penalty": 0.1,
        "logprobs": 10, "stop": ["\nUser:", "\nBot:", "###"], "stream": True, "max_tokens": 12,
    },
    "SillyTavern, vLLM": {
        "n": 1, "ignore_eos": True, "spaces_between_special_tokens": False, "seed": 7,
        "repetition_penalty": 1.15, "top_k": -1, "min_p": 0.05, "min_tokens": 2, "best_of": None,
        "use_beam_search": False, "length_penalty": 1, "early_stopping": False,
        "stop_token_ids": [], "include_stop_str_in_output": False, "skip_special_tokens": False,
        "guided_grammar": None, "prompt_logprobs": None, "logprobs": 5, "stream": True,
        "stop": [f"\n{i}:" for i in range(9)], "max_tokens": 12,
    },
    "mikupad, every slider": {
        "temperature": 0.7, "dynatemp_range": 0, "dynatemp_exponent": 1,
        "repetition_penalty": 1.1, "repetition_penalty_range": 256, "penalize_nl": False,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 40, "top_p": 0.95,
        "typical_p": 0.9, "tfs_z": 1, "min_p": 0.1, "mirostat": 0, "mirostat_tau": 5,
        "mirostat_eta": 0.1, "xtc_threshold": 0.1, "xtc_probability": 0.5, "seed": 3,
        "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2,
        "ban_eos_token": False, "ignore_eos": True, "logprobs": 10, "max_tokens": 12,
        "stream": True,
    },
    "MiniLoom, OpenRouter": {
        "provider": {"require_parameters": True}, "top_k": 100, "repetition_penalty": 1, "n": 3,
        "max_tokens": 8,
    },
    "MiniLoom, Together": {"top_k": 100, "repetition_penalty": 1.05, "n": 2, "max_tokens": 8},
    "Tapestry Loom": {
        "logprobs": 20, "return_token_ids": True, "max_tokens": 8, "temperature": 1.0,
    },
    "SillyTavern, generic, every switch": {
        "temperature": 1.5, "top_p": 0.95, "frequency_penalty": 0.1, "presence_penalty": 0.1,
        "stop": ["\n\n"], "n": 1, "seed": -1, "logprobs": 10, "logit_bias": {}, "stream": True,
        "include_reasoning": False, "max_tokens": 12,
    },
    "RisuAI": {
        "temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.7,
        "stop": ["User:", " User:", "user:", " user:"], "stream": False, "max_tokens": 8,
    },
    "KoboldAI Lite": {"logprobs": 5, "stop": ["\nUser:"], "presence_penalty": 0.05, **STREAM},
}  # fmt: skip
PROGRAMS: Mapping[str, Mapping[str, Any]] = {
    "Vercel AI SDK": {
        "logit_bias": {"98": 1.5}, "logitBias": {"98": 1.5}, "user": "u", "echo": False,
        "suffix": None, "max_tokens": 8, **STREAM,
    },
    "LangChain": {
        "logit_bias": {}, "seed": None, "logprobs": None, "n": 2, "best_of": 2, "top_p": 1,
        "max_tokens": 8, "prompt": ["a", "b"],
    },
    "LiteLLM": {
        "metadata": {}, "tools": None, "tool_choice": None, "functions": None, "store": False,
        "parallel_tool_calls": None, "service_tier": None, "max_tokens": 8,
    },
    "go-openai": {
        "best_of": 1, "echo": False, "frequency_penalty": 0.1, "logit_bias": None, "store": False,
        "metadata": None, "logprobs": 0, "max_tokens": 8, "n": 1, "seed": None, "suffix": "",
        "stop": ["x"], "stream": False, "temperature": 0.1, "top_p": 0.1, "user": "u",
    },
    "promptfoo": {"best_of": 1, "stop": ["<|im_end|>", "<|endoftext|>"], "max_tokens": 8},
    "simonw/llm with a schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "boolean"}},
        },
        "max_tokens": 8,
    },
    "LMQL": {"logprobs": 1, "echo": True, "max_tokens": 0, "user": "lmql", "stream": True},
    "Semantic Kernel": {"echo": False, "suffix": None, "stop": [], "user": None, **STREAM},
}  # fmt: skip
EVALUATIONS: Mapping[str, Mapping[str, Any]] = {
    "lm-eval, likelihoods": {
        "prompt": [[97, 98, 99], [98, 99]], "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": True,
    },
    "lm-eval, six ends": {
        "prompt": [[97, 98]], "temperature": 0, "max_tokens": 8, "seed": 1234,
        "stop": ["\n\n", "</s>", "Q:", "Question:", "A:", "<|im_end|>"],
    },
    "HELM": {
        "best_of": 10, "n": 1, "logprobs": 10, "temperature": 0, "echo": False, "stop": None,
        "max_tokens": 4, "top_p": 1,
    },
    "Inspect AI": {
        "prompt": [97, 98], "prompt_logprobs": 3, "max_tokens": 1, "temperature": 0.0,
        "add_special_tokens": True,
    },
    "garak": {"n": 5, "stop": ["#", ";"], "temperature": 0.7, "top_p": 1.0, "max_tokens": 8},
    "vllm bench": {
        "repetition_penalty": 1.0, "ignore_eos": True, "logprobs": None, "max_tokens": 8,
        **STREAM,
    },
    "guidellm": {
        "stream": True, "ignore_eos": True, "stop": None, "max_tokens": 8,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "AIPerf": {"prompt": ["a"], "stream": True, "max_tokens": 8, **STREAM},
    "genai-perf": {
        "prompt": ["a"], "stream": True, "max_tokens": 8, "min_tokens": 8, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    },
    "EvalScope": {
        "max_tokens": 8, "min_tokens": 8, "temperature": 0.0, "ignore_eos": True, "seed": 0,
        "top_k": 0, "repetition_penalty": 1.0, "n": 1, "logprobs": False, "top_logprobs": None,
    },
    "SGLang bench": {"best_of": 1, "ignore_eos": True, "max_tokens": 8, "stream": True},
    "verifiers": {
        "prompt": [97, 98], "logprobs": True, "n": 2, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "skip_special_tokens": False,
        "spaces_between_special_tokens": False, "include_stop_str_in_output": False,
        "return_tokens_as_token_ids": True, "max_tokens": 8,
    },
    "a trainer with ids": {
        "prompt": [97, 98], "return_token_ids": True, "logprobs": 0, "truncate_prompt_tokens": 1,
        "cache_salt": "run 1", "priority": 0, "max_tokens": 8,
    },
}  # fmt: skip
EDITORS: Mapping[str, Mapping[str, Any]] = {
    "Continue": {
        "stop": [*"abcdefghijkl"], "temperature": 0.01, "max_tokens": 8, "stream": True,
    },
    "Zed": {"stop": ["<|endoftext|>", "<|fim_prefix|>", "x", "y"], "max_tokens": 8},
    "Tabby": {"suffix": "b", "temperature": 0.1, "stream": True, "presence_penalty": 0.0},
    "ProxyAI": {"suffix": "b", "stream": False, "temperature": 0.0, "stop": ["\n\n"]},
    "minuet": {"suffix": "b", "top_p": 0.9, "max_tokens": 8, "stop": ["\n"], "stream": True},
    "llm.nvim": {"temperature": 0.2, "top_p": 0.95, "max_tokens": 8, "stop": ["<|endoftext|>"]},
    "Cody": {
        "temperature": 0.2, "top_p": 0.95, "top_k": 0, "max_tokens": 8, "stop": ["\n\n"], "n": 1,
        **STREAM,
    },
    "gptel": {"temperature": 1.0, "max_tokens": 8, "stream": True},
    "Void": {"suffix": "b", "stop": ["\n", "\r\n"], "max_tokens": 8},
    "twinny": {"temperature": 0.2, "max_tokens": 8, "stream": True},
}  # fmt: skip
# Routers parse a request into a class of their server and send on all of its fields.
ROUTERS: Mapping[str, Mapping[str, Any]] = {
    "a router of vLLM": {
        "echo": False, "n": 1, "stop": [], "stream": False, "use_beam_search": False,
        "length_penalty": 1.0, "stop_token_ids": [], "include_stop_str_in_output": False,
        "ignore_eos": False, "min_tokens": 0, "skip_special_tokens": True,
        "spaces_between_special_tokens": True, "bad_words": [], "add_special_tokens": True,
        "priority": 0, "routed_experts_prompt_start": 0, "return_token_offsets": False,
        "return_mm_kwargs": True, "max_tokens": 16,
        **dict.fromkeys(
            ("frequency_penalty", "logit_bias", "logprobs", "presence_penalty", "seed", "suffix",
             "stream_options", "temperature", "top_p", "user", "top_k", "min_p", "watermarking",
             "repetition_penalty", "truncate_prompt_tokens", "truncation_side", "cache_salt",
             "allowed_token_ids", "prompt_logprobs", "logprob_token_ids", "prompt_embeds",
             "response_format", "structured_outputs", "session_id", "return_token_ids",
             "return_tokens_as_token_ids", "kv_transfer_params", "ec_transfer_params",
             "vllm_xargs", "repetition_detection", "thinking_token_budget", "stream_interval")
        ),
    },
    "a router of SGLang": {
        "echo": False, "frequency_penalty": 0.0, "max_tokens": 16, "n": 1, "stream": False,
        "presence_penalty": 0.0, "temperature": 1.0, "top_p": 1.0, "return_hidden_states": False,
        "return_routed_experts": False, "routed_experts_start_len": 0, "return_token_ids": False,
        "return_cached_tokens_details": False, "top_k": -1, "min_p": 0.0, "min_tokens": 0,
        "repetition_penalty": 1.0, "no_stop_trim": False, "ignore_eos": False,
        "skip_special_tokens": True,
        **dict.fromkeys(
            ("best_of", "logit_bias", "logprobs", "seed", "stop", "stream_options", "suffix",
             "user", "json_schema", "regex", "ebnf", "stop_token_ids", "stop_regex", "lora_path",
             "session_id", "session_params", "response_format", "custom_params",
             "custom_logit_processor", "images_config", "bootstrap_host", "bootstrap_port",
             "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank", "data_parallel_rank",
             "rid", "extra_key", "cache_salt", "ngram_corpus_id", "priority", "custom_labels")
        ),
    },
    "a router of TensorRT-LLM": {
        "echo": False, "frequency_penalty": 0.0, "n": 1, "presence_penalty": 0.0, "stop": [],
        "stream": False, "prompt_ignore_length": 0, "use_beam_search": False, "top_k": 0,
        "top_p_min": 0.0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [],
        "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0,
        "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_tokens": 8,
        "return_context_logits": False, "detokenize": True, "add_special_tokens": True,
        **dict.fromkeys(("lora_request", "disaggregated_params", "conversation_params")),
    },
    "TabbyAPI's samplers, all off": {
        "max_tokens": 8, "min_tokens": 0, "stop": [], "banned_strings": [], "banned_tokens": [],
        "allowed_tokens": [], "token_healing": False, "temperature": 1.0,
        "temperature_last": False, "smoothing_factor": 0.0, "top_k": 0, "top_p": 1.0, "top_a": 0.0,
        "min_p": 0.0, "tfs": 1.0, "typical": 1.0, "skew": 0.0, "frequency_penalty": 0.0,
        "presence_penalty": 0.0, "repetition_penalty": 1.0, "repetition_decay": 0,
        "dry_multiplier": 0.0, "mirostat_mode": 0, "mirostat_tau": 1.5, "mirostat_eta": 0.3,
        "ban_eos_token": False, "skip_special_tokens": True, "negative_prompt": "",
        "regex_pattern": None, "grammar_string": "", "speculative_ngram": False, "cfg_scale": 1.0,
        "max_temp": 1.0, "min_temp": 1.0, "temp_exponent": 1.0,
    },
    "llama-cpp-python's client": {
        "max_tokens": 8, "repeat_penalty": 1.0, "mirostat_mode": 0, "mirostat_tau": 5,
        "mirostat_eta": 0.1, "tfs_z": 1.0, "grammar": None, "min_p": 0.05, "top_k": 40,
    },
    "OpenRouter": {
        "max_tokens": 8, "transforms": [], "models": [], "usage": {"include": False}, "top_a": 0,
        "repetition_penalty": 1,
    },
}  # fmt: skip
CLIENTS = {**WRITERS, **PROGRAMS, **EVALUATIONS, **EDITORS, **ROUTERS}


@HERE
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_gets_an_answer(serve: Callable[..., Client], name: str) -> None:
    client = serve(toy_engine())
    body = {"prompt": "Once", **CLIENTS[name]}
    if not body.get("stream"):
        answer = await client.complete(**body)
    else:
        chunks = await client.stream(**body)
        options = body.get("stream_options", {})
        if options.get("continuous_usage_stats"):
            assert all(chunk["usage"]["completion_tokens"] >= 0 for chunk in chunks)
            return
        answer = fold(chunks, usage=bool(options))
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    count = 1 if isinstance(prompts[0], int) else len(prompts)
    assert len(answer["choices"]) == count * (body.get("n") or 1)
    for choice in answer["choices"]:
        assert choice["finish_reason"] in {"stop", "length"}
        wanted = body.get("logprobs")
        assert (choice["logprobs"] is None) == (wanted is None or wanted is False)
        if wanted:
            assert all(
                top is None or len(top) >= wanted for top in choice["logprobs"]["top_logprobs"]
            )


OTHERS: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "text-generation-webui": ({"max_new_tokens": 9}, "max_new_tokens", '"OpenAI compatible"'),
    "KoboldAI": ({"max_length": 9, "rep_pen": 1.1}, "max_length", '"OpenAI compatible"'),
    "Ollama": ({"options": {"num_predict": 9}}, "options", '"OpenAI compatible"'),
    "Ollama, keep_alive": ({"keep_alive": "5m"}, "keep_alive", '"OpenAI compatible"'),
    "TGI": ({"parameters": {"max_new_tokens": 60}}, "parameters", '"OpenAI compatible"'),
    "TGI, inputs": ({"inputs": "x"}, "inputs", '"OpenAI compatible"'),
    "llama-server": ({"n_predict": 9}, "n_predict", "POST /infill"),
    "Tabby's own clients": ({"language": "python", "segments": {}}, "language", "Tabby"),
    "GitHub Copilot": ({"nwo": "a/b", "extra": {}}, "nwo", "a proxy for Copilot"),
    "a chat": ({"messages": []}, "messages", "/v1/chat/completions"),
    "TabbyAPI": ({"penalty_range": 512}, "penalty_range", '"OpenAI compatible"'),
    "text-generation-webui, preset": ({"preset": "min_p"}, "preset", '"OpenAI compatible"'),
    "llama-cpp-python": ({"repeat_penalty": 1.1}, "repeat_penalty", "see repetition_penalty"),
    "KoboldAI, rep_pen": ({"rep_pen": 1.1}, "rep_pen", "see repetition_penalty"),
    "LM Studio": ({"max_tokens": -1}, "max_tokens", "leave it out for no limit"),
    "nested": (
        {"stream": True, "stream_options": {"include_usage": True, "odd": None}},
        "stream_options.odd", "stream_options.odd",
    ),
    "HELM's vLLM client": ({"n": 2, "best_of": 1}, "best_of", "HINT"),
}  # fmt: skip


@HERE
@pytest.mark.parametrize("name", OTHERS)
async def test_another_dialect_is_told_what_to_choose(
    serve: Callable[..., Client], name: str
) -> None:
    body, param, said = OTHERS[name]
    error = await serve(toy_engine()).refuse(prompt="a", **body)
    assert error["param"] == param
    assert said in error["message"]


@HERE
async def test_null_everywhere(serve: Callable[..., Client]) -> None:
    """Null asks for nothing on every field that the document knows (R19, R20)."""
    client = serve(toy_engine())
    document = (await client.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert len(fields) > 100
    plain = await client.complete(max_tokens=3, seed=1)
    nulls = dict.fromkeys(fields)
    answer = await client.complete(**{**nulls, "model": "toy", "max_tokens": 3, "seed": 1})
    assert answer["choices"] == plain["choices"]


@pytest.fixture
async def catching() -> AsyncIterator[Client]:
    """A server with the alias ``*``, another alias, and a second model."""
    engines: dict[str, Engine] = {"toy": toy_engine(), "second": toy_engine()}
    yield make_client(engines, aliases={CATCH_ALL: Alias("toy"), "other": Alias("second")})
    for engine in engines.values():
        await engine.aclose()


@HERE
async def test_clients_that_name_no_model_or_a_placeholder(
    serve: Callable[..., Client], catching: Client
) -> None:
    body = {"prompt": "a", "max_tokens": 2, "temperature": 0}
    strict, lenient = serve(toy_engine()), serve(toy_engine(), limits=Limits(require_model=False))
    for name, status in ((None, 400), ("", 400), ("PLACEHOLDER", 404)):
        assert (await strict.post("/v1/completions", {**body, "model": name})).status == status
    for name in (None, ""):
        assert (await lenient.post("/v1/completions", {**body, "model": name})).status == 200
    answer = (await catching.post("/v1/completions", {**body, "model": "PLACEHOLDER"})).json()
    assert answer["model"] == "PLACEHOLDER"
    listed = (await catching.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["toy", "second", "other"]
    one = (await catching.get("/v1/models/PLACEHOLDER")).json()
    assert (one["id"], one["afterword"]["alias_of"]) == ("PLACEHOLDER", "toy")
    metrics = (await catching.get("/metrics")).body.decode()
    assert 'model="toy"' in metrics
    assert "PLACEHOLDER" not in metrics


def test_the_alias_for_all_other_names_gives_a_key_no_other_model() -> None:
    """Who may use one model gets a placeholder for it, and nothing in place of another (R1)."""
    engines = [ServedModel(name, toy_engine(), 0) for name in ("toy", "second")]
    catalog = Catalog(engines, {CATCH_ALL: Alias("toy"), "other": Alias("second")})
    assert catalog.resolve("x").name == "toy"
    assert catalog.recorded("x") == "toy"
    assert catalog.recorded("other") == "other"
    seen = catalog.restricted_to(["toy"])
    assert seen.resolve("x").name == "toy"
    for served in ("second", "other"):
        with pytest.raises(ModelNotFound):
            seen.resolve(served)
    named = catalog.restricted_to([CATCH_ALL])
    assert named.resolve("x").name == "toy"
    with pytest.raises(ModelNotFound):
        named.resolve("toy")
    without = catalog.restricted_to(["second"])
    assert without.resolve("other").name == "second"
    with pytest.raises(ModelNotFound):
        without.resolve("x")
    for model in engines:
        asyncio.run(model.engine.aclose())
