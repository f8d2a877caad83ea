"""``/openapi.json`` describes what the server does: requests, answers, chunks and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from afterword.core.account import KeyTerms, Principal
from afterword.core.errors import AuthenticationFailed, InvalidRequest, LedgerUnavailable
from afterword.engine.toy import toy_engine
from afterword.http.admin import NewKeyRequest, parsed
from afterword.http.app import Access
from afterword.http.no_ledger import NoLedger
from afterword.ledger.keys import KeyStore
from conftest import make_client
from properties.requests import bodies
from properties.test_fuzz import BODIES, HEAD
from support.asgi import Client, chunks_of
from support.examples import examples

# What no schema can say: sums, other fields, the model's vocabulary, names that are served.
BEYOND_SCHEMAS = (
    "context", "vocabulary", "best_of", "min_tokens", "stream", "suffix", "Duplicate", "parse",
    "two names", "bans every token", "repetition penalty",
)  # fmt: skip


class Document:
    """The server's OpenAPI document, with a validator for each schema."""

    def __init__(self, whole: dict[str, Any]) -> None:
        self.whole = whole
        self._validators = {
            name: Draft202012Validator(
                {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
            )
            for name in whole["components"]["schemas"]
        }

    def check(self, name: str, value: Any) -> None:
        errors = list(self._validators[name].iter_errors(value))
        assert not errors, (errors[0].message, value)

    def accepts(self, name: str, value: Any) -> bool:
        return bool(self._validators[name].is_valid(value))


@pytest.fixture(scope="module")
def document(client: Client) -> Document:
    return Document(asyncio.run(client.get("/openapi.json")).json())


async def exchange(client: Client, document: Document, path: str, body: Any) -> tuple[int, Any]:
    """Send a body, and check the answer by the document. Returns status and answer."""
    reply = await client.post(path, body)
    responses = document.whole["paths"][path]["post"]["responses"]
    media = reply.headers["content-type"].partition(";")[0]
    schema = responses[str(reply.status)]["content"][media]["schema"]
    if media == "text/event-stream":
        for chunk in chunks_of(reply.body):
            document.check("Chunk", chunk)
        return reply.status, None
    document.check(schema["$ref"].rsplit("/", 1)[1], reply.json())
    return reply.status, reply.json()


def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a document, which its schemas are among."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from schemas_in(item)


def test_generators_of_code_can_read_the_schemas(document: Document) -> None:
    """Many keep lengths in 32 bits, and refuse an enumeration of nothing."""
    bounds = ("maxItems", "minItems", "maxLength", "minLength")
    for schema in schemas_in(document.whole):
        for name in bounds:
            assert not isinstance(schema.get(name), int) or schema[name] < 2**31, schema
        assert schema.get("enum") != [], schema


@given(body=st.booleans().flatmap(lambda greedy: bodies(greedy=greedy)), stream=st.booleans())
@settings(max_examples=examples(500), deadline=None)
async def test_what_is_answered_is_in_the_schema(
    client: Client, document: Document, body: dict[str, Any], stream: bool
) -> None:
    request = {**body, "model": "toy", "stream": stream}
    document.check("CompletionRequest", request)
    status, _ = await exchange(client, document, "/v1/completions", request)
    assert status == 200


@given(body=BODIES)
@example(body={"truncate_prompt_tokens": 2**63})
@settings(max_examples=examples(2000), deadline=None)
async def test_what_the_schema_refuses_is_refused(
    client: Client, document: Document, body: dict[str, Any]
) -> None:
    """What the schema accepts is answered, except for what no schema can say."""
    text = json.dumps({**HEAD, **body})
    if "NaN" in text or "Infinity" in text:
        return
    status, answer = await exchange(client, document, "/v1/completions", text.encode())
    if not document.accepts("CompletionRequest", json.loads(text)):
        assert status in {400, 404}, text
    elif status == 400:
        error = answer["error"]
        assert any(word in error["message"] for word in BEYOND_SCHEMAS), (error, text)


FIM_BODIES = st.fixed_dictionaries(
    {"model": st.just("toy"), "max_tokens": st.integers(-1, 5)},
    optional={
        "prompt": st.text(max_size=5) | st.just(["a"]), "suffix": st.text(max_size=5) | st.none(),
        "random_seed": st.integers(-3, 3) | st.booleans(), "echo": st.booleans() | st.none(),
        "min_tokens": st.just(0), "logprobs": st.none() | st.just(1), "n": st.integers(0, 3),
        "stop": st.just("a") | st.lists(st.text(max_size=2), max_size=3),
        "top_k": st.integers(-2, 3),
        "x": st.none(), "metadata": st.none() | st.just({}),
    },
)  # fmt: skip
INFILL_BODIES = st.fixed_dictionaries(
    {"n_predict": st.integers(-2, 5)},
    optional={
        "input_prefix": st.text(max_size=5) | st.none(), "input_suffix": st.text(max_size=5),
        "input_extra": st.lists(
            st.fixed_dictionaries({}, optional={"text": st.text(max_size=3) | st.none(),
                                                "filename": st.text(max_size=3) | st.none(),
                                                "time": st.integers(), "x": st.none()}),
            max_size=2) | st.just("a"),
        "prompt": st.text(max_size=3) | st.just(["a"]), "seed": st.integers(-2, 2**32),
        "temperature": st.floats(-0.1, 2.1), "top_k": st.integers(-2, 50) | st.just(0.5),
        "samplers": st.lists(st.sampled_from(["top_k", "top_p", "infill", "x"]), max_size=3)
        | st.just("kp"),
        "logit_bias": st.lists(st.tuples(st.integers(-1, 300), st.integers(-101, 100)
                                         | st.booleans()), max_size=2),
        "n_indent": st.integers(-1, 4), "t_max_predict_ms": st.integers(-2, 9),
        "t_max_prompt_ms": st.integers() | st.just("1"), "id_slot": st.integers(-2, 3),
        "cache_prompt": st.booleans() | st.none(), "n_probs": st.integers(-1, 21),
        "return_tokens": st.booleans() | st.none(), "repeat_last_n": st.integers(-2, 65),
        "repeat_penalty": st.floats(0.9, 1.1), "response_fields": st.lists(st.text(max_size=4)),
        "x": st.none(), "mirostat": st.integers(0, 1), "lora": st.just([]), "echo": st.none(),
    },
)  # fmt: skip


@given(fim=FIM_BODIES, infill=INFILL_BODIES)
@settings(max_examples=examples(500), deadline=None)
async def test_F5_the_editors_routes(
    client: Client, document: Document, fim: dict[str, Any], infill: dict[str, Any]
) -> None:
    for path, name, body in (
        ("/v1/fim/completions", "FimRequest", fim),
        ("/infill", "InfillRequest", infill),
    ):
        text = json.dumps(body)
        status, answer = await exchange(client, document, path, text.encode())
        if not document.accepts(name, json.loads(text)):
            assert status == 400, text
        elif status != 200:
            error = answer["error"]
            beyond = (*BEYOND_SCHEMAS, "samplers", "two names", "repeat_last_n", "an id of")
            assert any(word in error["message"] for word in beyond), (error, text)


@pytest.mark.parametrize(
    ("path", "body", "chunk", "last"),
    [
        ("/v1/fim/completions", {"model": "toy", "prompt": "a", "suffix": "b"}, "FimChunk", None),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_probs": 2}, "InfillChunk",
         "InfillAnswer"),
    ],
)  # fmt: skip
async def test_F5_streams_of_the_editors_routes(
    client: Client, document: Document, path: str, body: dict[str, Any], chunk: str, last: str
) -> None:
    reply = await client.post(path, {**body, "max_tokens": 6, "stream": True})
    assert reply.status == 200, reply.body
    events = [line[6:] for line in reply.body.decode().split("\n\n") if line]
    *parts, end = events
    assert parts
    for part in parts:
        document.check(chunk, json.loads(part))
    if last is None:
        assert end == "[DONE]"
    else:
        document.check(last, json.loads(end))


@pytest.mark.parametrize("user", ["", "x" * 1024, "x" * 1025, "😀" * 1025, "a\0b", "a\n", None])
async def test_user_is_refused_where_the_document_says_so(
    client: Client, document: Document, user: str | None
) -> None:
    body = {"model": "toy", "prompt": "a", "max_tokens": 1, "user": user}
    status, _ = await exchange(client, document, "/v1/completions", body)
    assert (status == 200) == document.accepts("CompletionRequest", body)


@given(body=st.fixed_dictionaries({}, optional={"prompt": st.text() | st.none() | st.integers(),
       "model": st.sampled_from(["toy", "x", 1, None]), "tokens": st.lists(st.integers(-2, 400)),
       "add_special_tokens": st.booleans() | st.none() | st.just("yes"),
       "return_token_strs": st.booleans() | st.none(), "x": st.none()}))  # fmt: skip
@settings(max_examples=examples(300), deadline=None)
async def test_the_tokenizers_routes(
    client: Client, document: Document, body: dict[str, Any]
) -> None:
    for path, name in (("/tokenize", "TokenizeRequest"), ("/detokenize", "DetokenizeRequest")):
        status, _ = await exchange(client, document, path, body)
        if not document.accepts(name, body):
            assert status == 400


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/models", "ModelList"), ("/v1/models/toy", "Model"), ("/health", "Health"),
     ("/ready", "Ready"),
     ("/tokenizer_info", "TokenizerInfo"), ("/v1/models/none", "Error"), ("/none", "Error")],
)  # fmt: skip
async def test_what_can_be_read(client: Client, document: Document, path: str, name: str) -> None:
    document.check(name, (await client.get(path)).json())


async def test_every_route_is_described(client: Client, document: Document) -> None:
    """No other path is described, and each described path answers with a described status."""
    for path, item in document.whole["paths"].items():
        for method, operation in item.items():
            filled = path.replace("{model}", "toy").replace("{key}", "k")
            reply = await client.request(method.upper(), filled)
            assert str(reply.status) in operation["responses"], (method, path, reply.status)
    described = set(document.whole["paths"])
    routes = {
        route.path.replace(":path", "")
        for route in client.app._routes.routes.routes  # type: ignore[attr-defined]
    }
    assert described == routes


async def test_a_path_names_the_model_as_the_document_says(
    client: Client, document: Document
) -> None:
    """The oldest clients send no model in the body."""
    path = "/v1/engines/{model}/completions"
    operation = document.whole["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rsplit("/", 1)[1]
    given: tuple[dict[str, Any], ...] = ({}, {"model": None}, {"model": "toy"}, {"x": 1})
    for more in given:
        body = {"prompt": "a", "max_tokens": 1, **more}
        reply = await client.post(path.replace("{model}", "toy"), body)
        assert (reply.status == 200) == (more != {"x": 1}) == document.accepts(name, body), body
    assert not document.accepts("CompletionRequest", {"prompt": "a"})


class Away(NoLedger):
    """A ledger that cannot be reached."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        raise LedgerUnavailable("The ledger cannot be reached.", retry_after_s=1)


class Strict(NoLedger):
    """A ledger without any valid key."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        raise AuthenticationFailed("Incorrect API key provided.")


@pytest.mark.parametrize("ledger", [Away(), Strict()])
async def test_every_refusal_is_described(document: Document, ledger: NoLedger) -> None:
    """A key is asked for where the document says so, and nowhere else."""
    client = make_client({"toy": toy_engine()}, access=Access(ledger=ledger))
    for path, item in document.whole["paths"].items():
        filled = path.replace("{model}", "toy").replace("{key}", "k").replace("{path}", "main.js")
        for method, operation in item.items():
            reply = await client.request(method.upper(), filled)
            assert str(reply.status) in operation["responses"], (method, path, reply.status)
            secured = operation.get("security", document.whole["security"]) != []
            if isinstance(ledger, Strict):
                assert (reply.status == 401) == secured, path
            described = operation["responses"]["default"]["content"]["application/json"]
            assert described["schema"]["$ref"].endswith("/Error")


KEY = "sk-a"


class Keyed(NoLedger):
    """A ledger of one key."""

    async def authenticate(self, secret: str | None, source: str) -> Principal:
        if secret != KEY:
            raise AuthenticationFailed("Incorrect API key provided.")
        return await super().authenticate(secret, source)


async def test_a_key_is_sent_as_the_document_says(document: Document) -> None:
    client = make_client({"toy": toy_engine()}, access=Access(ledger=Keyed()))
    schemes = document.whole["components"]["securitySchemes"]
    assert [set(one) for one in document.whole["security"]] == [
        *({name} for name in schemes),
        set(),
    ]
    for scheme in schemes.values():
        header = {scheme["name"]: KEY} if scheme["type"] == "apiKey" else {}
        header = header or {"authorization": f"{scheme['scheme']} {KEY}"}
        assert (await client.request("GET", "/v1/models", b"", header)).status == 200
    assert (await client.get("/v1/models")).status == 401


@pytest.mark.parametrize(
    "terms",
    [
        {"rpm": 0}, {"tpm": -1}, {"concurrent": 1.5}, {"budget_tokens": 2**53}, {"name": ""},
        {"rpm": 2.0, "budget_tokens": 1e15}, {"tpm": 0.0}, {"concurrent": 1e16}, {"name": 2.0},
        {"name": "x" * 201}, {"models": []}, {"models": [""]}, {"models": ["m"] * 1001},
        {"budget_per": None}, {"admin": 1}, {"x": None}, {}, {"rpm": 1, "budget_tokens": 2**53 - 1},
        {"models": ["m"] * 1000, "name": "x" * 200},
    ],
)  # fmt: skip
async def test_terms_of_keys_are_refused_where_the_document_says_so(
    document: Document, key_store: KeyStore, terms: dict[str, Any]
) -> None:
    body = {"name": "a", **terms}
    try:
        fields = msgspec.structs.asdict(parsed(json.dumps(body).encode(), NewKeyRequest))
        del fields["expires"]
        key_store.create(KeyTerms(**fields))
    except InvalidRequest:
        assert not document.accepts("NewKeyRequest", body)
    else:
        assert document.accepts("NewKeyRequest", body)


@pytest.mark.parametrize(("path", "name"), [("usage", "by"), ("usage/requests", "limit")])
async def test_values_in_an_url(document: Document, path: str, name: str) -> None:
    operation = document.whole["paths"][f"/admin/v1/{path}"]["get"]
    (schema,) = [one["schema"] for one in operation["parameters"] if one["name"] == name]
    known = Draft202012Validator(schema)
    assert known.is_valid(schema["default"])
    assert not any(known.is_valid(value) for value in ("hour", 0, 1001))


async def test_the_page_names_every_field(client: Client, document: Document) -> None:
    page = (await client.get("/docs")).body.decode()
    for name in document.whole["components"]["schemas"]["CompletionRequest"]["properties"]:
        assert f"<code>{name}</code>" in page
    for item in document.whole["paths"].values():
        for parameter in (one for each in item.values() for one in each.get("parameters", ())):
            assert f"<code>{parameter['name']}</code> in the {parameter['in']}" in page
    # A list at the top leads to each operation.
    for place in (f"{way}{path}" for path, item in document.whole["paths"].items() for way in item):
        assert f'<a href="#{place}">' in page
        assert f'<h2 id="{place}">' in page
    # The bounds of 64 bits are no limit that a reader chooses by.
    assert str(2**63)[:-1] not in page


def test_the_document_is_valid_openapi(document: Document) -> None:
    assert document.whole["openapi"].startswith("3.1")
    for schema in document.whole["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
