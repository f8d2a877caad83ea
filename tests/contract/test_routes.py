"""The routes other than ``/v1/completions``."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from afterword.core.limits import Limits
from afterword.engine.batching.runner import Batch, FatalDecodeError
from afterword.engine.toy import ToyTokenizer, toy_engine
from afterword.http.paths import INSTEAD
from support.asgi import Client


async def test_the_oldest_clients_route(client: Client) -> None:
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0}
    reply = await client.post("/v1/engines/toy/completions", body)
    answer = await client.complete(**body)
    assert reply.json()["choices"] == answer["choices"]
    assert reply.json()["model"] == "toy"


async def test_the_path_decides_the_model(client: Client) -> None:
    """A body that names another one is refused (R19)."""
    path = "/v1/engines/toy/completions"
    for model, status in (("toy", 200), (None, 200), ("", 200), ("toy-bos", 400), ("X", 400)):
        reply = await client.post(path, {"model": model, "prompt": "a", "max_tokens": 1})
        assert reply.status == status
        assert status == 200 or reply.error["param"] == "model"


async def test_routes_without_version_and_with_a_slash(client: Client) -> None:
    body = {"model": "toy", "prompt": "a", "max_tokens": 5, "temperature": 0}
    wanted = (await client.post("/v1/completions", body)).json()["choices"]
    for path in ("/completions", "/completions/", "/v1/completions/"):
        assert (await client.post(path, body)).json()["choices"] == wanted
    del body["model"]
    for path in ("/engines/toy/completions", "/v1/engines/toy/completions/"):
        assert (await client.post(path, body)).json()["choices"] == wanted
    listed = (await client.get("/v1/models")).body
    for path in ("/models", "/models/", "/v1/models/"):
        assert (await client.get(path)).body == listed
    one = (await client.get("/v1/models/toy")).body
    for path in ("/models/toy", "/models/toy/", "/v1/models/toy/"):
        assert (await client.get(path)).body == one
    body = {"model": "toy", "prompt": "a", "suffix": "b", "max_tokens": 5, "temperature": 0}
    wanted = (await client.post("/v1/fim/completions", body)).json()["choices"]
    for path in ("/fim/completions", "/fim/completions/", "/v1/fim/completions/"):
        assert (await client.post(path, body)).json()["choices"] == wanted
    for path in ("/tokenizer_info/", "/health/", "/ready/", "/metrics/", "/openapi.json/"):
        assert (await client.get(path)).status == 200
    assert (await client.post("/tokenize/", {"prompt": "a"})).json()["count"] == 1


async def test_a_base_url_may_end_with_a_slash(client: Client) -> None:
    """Some clients put a path with a slash behind it."""
    body = {"model": "toy", "prompt": "a", "max_tokens": 5, "temperature": 0}
    wanted = (await client.post("/v1/completions", body)).json()["choices"]
    for path in ("//v1/completions", "/v1//completions", "///v1//completions/", "//completions"):
        assert (await client.post(path, body)).json()["choices"] == wanted
    listed = (await client.get("/v1/models")).body
    for path in ("//models", "/v1//models", "//v1/models/"):
        assert (await client.get(path)).body == listed
    assert (await client.post("//tokenize", {"prompt": "a"})).json()["count"] == 1
    for path in ("//health", "//metrics", "//admin/v1/keys", "///", "/v1/models//toy"):
        assert (await client.get(path)).status == 404


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/v1/completions", "leave it out of its base URL."),
        ("//v1/v1/models", "leave it out of its base URL."),
        ("/v1/completions/completions", "end its base URL with /v1."),
        ("/v1/completions/v1/completions", "end its base URL with /v1."),
        ("/completions/chat/completions", "end its base URL with /v1."),
        ("/v1completions", "end its base URL with /v1/."),
    ],
)
async def test_a_wrong_base_url_is_told_what_is_right(client: Client, path: str, said: str) -> None:
    reply = await client.post(path, {"model": "toy", "prompt": "a"})
    assert reply.status == 404
    assert reply.error["message"].startswith(f"Invalid URL (POST {path}). The client adds ")
    assert reply.error["message"].endswith(said)


async def test_azures_paths(client: Client) -> None:
    """A deployment is a model, and the version of Azure's interface changes nothing."""
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0}
    wanted = (await client.complete(**body))["choices"]
    path = "/openai/deployments/toy/completions?api-version=2023-05-15"
    for named in (body, {**body, "model": "toy"}, {**body, "model": ""}):
        reply = await client.post(path, named)
        assert reply.status == 200
        assert reply.json()["choices"] == wanted
    reply = await client.post(path, {**body, "model": "plain"})
    assert (reply.status, reply.error["param"]) == (400, "model")
    reply = await client.post("/openai/deployments/X/completions", body)
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    reply = await client.post("/openai/v1/completions", {**body, "model": "toy"})
    assert reply.json()["choices"] == wanted
    listed = (await client.get("/v1/models")).body
    for path in ("/openai/models?api-version=2023-05-15", "/openai/v1/models"):
        assert (await client.get(path)).body == listed


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/openai/deployments/toy/chat/completions", ". This server completes text and knows no"),
        ("/openai/deployments/toy/embeddings", ". This server completes text and computes no"),
        ("/openai/deployments", ""),
        ("/openai/health", ""),
        ("/openai", ""),
    ],
)
async def test_azures_other_paths_are_unknown(client: Client, path: str, said: str) -> None:
    reply = await client.post(path, {})
    assert reply.status == 404
    assert reply.error["message"].startswith(f"Invalid URL (POST {path}){said}")


async def test_the_oldest_clients_list_of_models(client: Client) -> None:
    listed = (await client.get("/v1/models")).body
    one = (await client.get("/v1/models/toy")).body
    for start in ("/v1/engines", "/engines", "/v1/engines/"):
        assert (await client.get(start)).body == listed
        assert (await client.get(f"{start.removesuffix('/')}/toy")).body == one
    assert (await client.get("/v1/engines/X")).error["code"] == "model_not_found"


async def test_H5_a_newline_at_the_end_is_another_path(client: Client) -> None:
    """A pattern's ``$`` would skip it."""
    for path in ("/health%0A", "/v1/models%0A", "/v1/models/toy%0A", "/models%0A/", "/%0A"):
        reply = await client.get(path)
        assert (reply.status, reply.error["message"][:16]) == (404, "Invalid URL (GET")
    assert (await client.post("/v1/completions%0a", {"model": "toy"})).status == 404


async def test_chats_are_told_what_to_do_instead(client: Client) -> None:
    for path in ("/v1/chat/completions", "/chat/completions", "/v1/chat/completions/"):
        for method in ("POST", "GET"):
            reply = await client.request(method, path)
            assert reply.status == 404
            assert reply.error["message"].startswith(f"Invalid URL ({method} {path}). ")
            assert "POST /v1/completions" in reply.error["message"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/completion", '"OpenAI-compatible"'),
        ("/props", "GET /v1/models"),
        ("/slots", "GET /v1/models"),
        ("/api/generate", '"OpenAI-compatible"'),
        ("/api/chat", "POST /v1/completions"),
        ("/api/tags", "GET /v1/models"),
        ("/api/v1/generate", '"OpenAI-compatible"'),
        ("/generate", '"OpenAI-compatible"'),
        ("/generate_stream/", '"OpenAI-compatible"'),
        ("/v1/embeddings", "embedding model"),
        ("/v1/responses", "POST /v1/completions"),
        ("/v1/edits", "POST /v1/completions"),
        ("/v1/moderations", "GET /openapi.json"),
        ("/fine-tunes", "GET /openapi.json"),
        ("/v1/messages", "POST /v1/completions"),
        ("/v1/internal/encode", "POST /tokenize"),
        ("/v1/tokenize", "POST /tokenize"),
        ("/v1/rerank", "ranks nothing"),
        ("/version", "GET /openapi.json"),
        ("/api/version", "GET /openapi.json"),
        ("/server_info", "GET /v1/models"),
        ("/v1", "GET /docs"),
        ("/v1/infill", "POST /infill"),
        ("/v1/apply-template", "POST /apply-template"),
    ],
)
async def test_routes_of_other_servers_say_what_to_use(
    client: Client, path: str, said: str
) -> None:
    for method in ("POST", "GET"):
        reply = await client.request(method, path)
        assert reply.status == 404
        start = f"Invalid URL ({method} {path}). "
        assert reply.error["message"].startswith(start)
        sentence = reply.error["message"].removeprefix(start)
        assert said in sentence
        assert sentence.endswith(".")
        assert ". " not in sentence


async def test_llama_servers_completions_are_told_by_the_field(client: Client) -> None:
    """Its /completions is the same path as ours, with other fields."""
    reply = await client.post("/completions", {"model": "toy", "prompt": "a", "n_predict": 4})
    assert reply.status == 400
    assert reply.error["param"] == "n_predict"
    assert "POST /infill" in reply.error["message"]


async def test_every_route_named_instead_exists(client: Client) -> None:
    """No sentence sends a reader to a route that is not there."""
    paths = set(re.findall(r"(?:GET|POST) (/[a-z0-9_/.-]*[a-z0-9])", " ".join(INSTEAD.values())))
    document = (await client.get("/openapi.json")).json()
    assert paths <= {*document["paths"], "/openapi.json", "/infill"}
    assert not INSTEAD.keys() & document["paths"].keys()


async def test_models(client: Client) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert names == ["toy", "toy-bos", "plain", "gpt-3.5-turbo-instruct"]
    for model in listed["data"]:
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert (await client.get(f"/v1/models/{model['id']}")).json() == model


async def test_models_show_limits(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(), limits=Limits(max_logprobs=17, default_max_tokens=16))
    facts = (await client.get("/v1/models/toy")).json()["afterword"]
    assert facts["max_logprobs"] == 17
    assert facts["default_max_tokens"] == 16
    assert facts["context_tokens"] == 256
    assert (await client.get("/v1/models/toy")).json()["max_model_len"] == 256
    assert facts["suffix"] is True


async def test_tokenize_and_back(client: Client) -> None:
    text = "a é 🙂<|im_end|>\x00"
    tokens = (await client.post("/tokenize", {"prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == 256
    assert tokens["tokens"] == ToyTokenizer().encode(text)
    back = (await client.post("/detokenize", {"tokens": tokens["tokens"]})).json()
    assert back == {"prompt": text}


async def test_tokenize_with_bos(client: Client) -> None:
    body = {"model": "toy-bos", "prompt": "a"}
    with_bos = (await client.post("/tokenize", body)).json()["tokens"]
    bare = (await client.post("/tokenize", {**body, "add_special_tokens": False})).json()["tokens"]
    assert with_bos[1:] == bare == [97]


async def test_tokenizer_info(client: Client) -> None:
    info = (await client.get("/tokenizer_info?model=toy-bos")).json()
    assert info["bos_token"] == "<|im_start|>"  # noqa: S105 - a token of a vocabulary
    assert info["eos_token"] == "<|endoftext|>"  # noqa: S105 - the same
    assert info["add_bos_token"] is True
    assert (await client.get("/tokenizer_info")).json()["add_bos_token"] is False
    for wanted in ("true", "True"):
        whole = (await client.get(f"/tokenizer_info?vocabulary={wanted}")).json()
        assert len(whole["vocabulary"]["pieces"]) == whole["vocab_size"]
    assert "vocabulary" not in (await client.get("/tokenizer_info?vocabulary=False")).json()
    reply = await client.get("/tokenizer_info?vocabulary=maybe")
    assert (reply.status, reply.json()["error"]["param"]) == (400, "vocabulary")


async def test_tokenize_refuses(client: Client) -> None:
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"prompt": "a", "x": 1}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": "a"}),
    ):
        reply = await client.post(path, body)
        assert reply.status == 400
        assert reply.error["param"] in {"prompt", "tokens", "x"}


async def test_health(client: Client) -> None:
    health = await client.get("/health")
    assert health.status == 200
    assert health.json()["status"] == "ok"
    assert health.json()["fingerprint"].startswith("fp_")


async def test_health_turns_red_with_a_dead_engine(serve: Callable[..., Client]) -> None:
    def die(_: Batch) -> None:
        raise FatalDecodeError("gone")

    client = serve(toy_engine(before_decode=die))
    body = {"model": "toy", "prompt": "a", "max_tokens": 1}
    assert (await client.post("/v1/completions", body)).status == 503
    assert (await client.post("/v1/completions", body)).status == 503
    health = await client.get("/health")
    assert health.status == 503
    assert health.json()["status"] == "unhealthy"
    assert (await client.get("/ready")).status == 503


async def test_metrics_count(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine())
    await client.complete(prompt=[1, 2, 3], max_tokens=4, logit_bias={"98": 100})
    text = (await client.get("/metrics")).body.decode()
    assert 'afterword_prompt_tokens_total{model="toy"} 3.0' in text
    assert 'afterword_completion_tokens_total{model="toy"} 4.0' in text
    assert 'route="/v1/completions",status="200"' in text
    assert 'afterword_engine_generated_tokens_total{model="toy"} 4.0' in text


async def test_the_tokenizer_is_bounded_by_the_context(client: Client) -> None:
    """Text that fits in no case is refused by its bytes; other text is counted."""
    context = 256
    reply = await client.post("/tokenize", {"model": "toy", "prompt": "x" * (context + 1)})
    assert (reply.status, reply.json()["count"]) == (200, context + 1)
    for text in (" " * 16_000_000, "🙂" * 100_000):
        reply = await client.post("/tokenize", {"model": "toy", "prompt": text})
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    reply = await client.post("/detokenize", {"model": "toy", "tokens": [97] * context})
    assert reply.json() == {"prompt": "a" * context}
    reply = await client.post("/detokenize", {"model": "toy", "tokens": [97] * (context + 1)})
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
