"""Long prompts on their way to an upstream: no call on them holds the GIL for long.

Calls are counted by the length of what they get, so nothing here depends on speed.
"""

from __future__ import annotations

import json
import re
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits
from afterword.gateway import lenient, long_payload
from afterword.gateway.dialects import routes
from afterword.gateway.failures import StreamBroke
from afterword.gateway.transport import long_json
from afterword.gateway.vocabulary import RemoteTokenizer, TextTokenizer
from conftest import make_client
from standins.server import FACTS, VOCABULARY, StandIn
from standins.upstreams import Front, engine_of

AROUND = [
    '{"tokens": %s}', '{"count": 3, "tokens" : %s, "token_strs": null}',
    '\n {"tokens":%s, "x": []}',
    '{"a": {"tokens": [1, 2, 3]}, "tokens": %s}', '{"a": "\\"tokens\\": [1, 2]", "tokens": %s}',
]  # fmt: skip
"""Answers with ids somewhere."""
BODIES = st.dictionaries(
    st.text(max_size=3),
    st.one_of(
        st.text(max_size=30), st.lists(st.integers(0, 300), max_size=30), st.none(),
        st.integers(0, 9).map(lambda n: tuple(range(n))), st.lists(st.text(), max_size=6),
        st.dictionaries(st.text(), st.floats(allow_nan=False)),
    ),
    max_size=4,
)  # fmt: skip


@given(BODIES, st.integers(1, 9))
def test_slices_are_the_same_json(body: dict[str, Any], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "_SLICE", size)
        assert long_json.encoded(body) == msgspec.json.encode(body)


@pytest.mark.parametrize("value", ["é" * 200_000, [1] * 200_000, (1,) * 200_000, ["a"] * 200_000])
def test_no_encoder_gets_more_than_a_slice(
    monkeypatch: pytest.MonkeyPatch, value: Sequence[Any]
) -> None:
    encode, sizes = msgspec.json.encode, list[int]()

    def noting(part: Any) -> bytes:
        sizes.append(len(part) if part is not None else 0)
        return encode(part)

    monkeypatch.setattr(long_json, "_encode", noting)
    assert json.loads(long_json.encoded({"a": value, "b": None})) == {"a": _plain(value), "b": None}
    assert max(sizes) <= 1 << 16


def _plain(value: Sequence[Any]) -> Any:
    return value if isinstance(value, str) else list(value)


async def test_a_prompt_for_an_endpoint_without_a_tokenizer_is_its_bytes() -> None:
    """And no object for each of them: fifteen million took 200 ms without a pause, and 360 MB."""
    async with StandIn() as upstream:
        engine = engine_of(
            upstream.address.replace("vllm+", "openai+"),
            [msgspec.structs.replace(FACTS, context_tokens=1 << 30, vocabulary=None)],
        )
        text = "é" * 500_000
        tokenizer = engine.tokenizer
        assert isinstance(tokenizer, TextTokenizer)
        catalog = Catalog([ServedModel("toy", engine, 0)], {}, None)
        service = CompletionService(catalog, Limits(), clock=lambda: 0.0, entropy=bytes)
        body = msgspec.json.encode({"model": "toy", "prompt": text, "max_tokens": 1})
        tracemalloc.start()
        plan = await service.plan(body)
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        (job,) = plan.jobs
        assert job.prompt_ids == text.encode()
        assert job.prompt_ids is plan.prompts[0].ids
        assert tokenizer.text(job.prompt_ids) == text
        assert most_bytes < 8 * len(text.encode())
        await engine.aclose()


@pytest.mark.parametrize("field", ["prompt", "suffix"])
async def test_a_thread_looks_at_long_texts(
    front: Front, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    threads = dict[str, set[int]]()

    def noting(name: str, call: Callable[..., Any], *given: Any) -> Any:
        threads.setdefault(name, set()).add(threading.get_ident())
        return call(*given)

    facts = msgspec.structs.replace(FACTS, context_tokens=1 << 20)
    async with StandIn() as upstream:
        engine = front(upstream, facts=facts)
        for name in ("check", "_without_names"):
            owner = engine if name.startswith("_") else RemoteTokenizer
            call = getattr(owner, name)
            patched = partial(noting, name, call)
            monkeypatch.setattr(
                owner, name, patched if owner is engine else lambda *g, _p=patched: _p(*g)
            )
        client = make_client({"toy": engine})
        body = {"prompt": "a", field: "a" * 100_000, "max_tokens": 3}
        assert (await client.complete(**body))["choices"][0]["text"] == "bbb"
    here = threading.get_ident()
    assert any(thread != here for thread in threads["check"])
    if field == "suffix":
        assert any(thread != here for thread in threads["_without_names"])


TEXTS = st.lists(st.sampled_from(["<bos>", "<e", "nd>", "<end>", "a", "é", "<end>x"])).map("".join)


@given(TEXTS, st.integers(1, 7))
def test_names_are_found_across_slices(text: str, size: int) -> None:
    from afterword.gateway import engine as module  # noqa: PLC0415

    engine = engine_of("vllm+http://127.0.0.1:1/v1", [FACTS])
    names = ["<bos>", "<end>", "<end>x"]
    pieces = [name.encode() for name in names]
    engine.tokenizer = RemoteTokenizer(
        msgspec.structs.replace(VOCABULARY, pieces=pieces, special_ids=[0, 1, 2], end_ids=[1]),
        chat_template=None,
        encode=lambda *_: pytest.fail("no upstream is asked"),
    )
    found = sorted((name for name in names if name in text), key=len, reverse=True)
    expected, start = [], 0
    for match in re.finditer("|".join(found), text) if found else ():
        expected.append(text[start : match.start() + 1])
        start = match.start() + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LONG", size)
        assert engine._without_names(text) == [*expected, text[start:]]


@given(st.lists(st.integers(0, 10**6)), st.sampled_from(AROUND), st.integers(1, 9))
def test_ids_of_a_long_answer(ids: list[int], around: str, size: int) -> None:
    received = (around % json.dumps(ids)).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "LONG_BYTES", size)
        patch.setattr(long_payload, "_SLICE_BYTES", size)
        assert routes.read_tokens(received) == ids


def test_no_decoder_gets_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    made = msgspec.json.Decoder

    def noting(wanted: Any) -> Any:
        def decode(received: Any) -> Any:
            value = made(wanted).decode(received)
            sizes.append(len(received))
            return value

        return SimpleNamespace(decode=decode)

    monkeypatch.setattr(msgspec.json, "Decoder", noting)
    monkeypatch.setattr(lenient, "_decoder", lenient.decoder)
    monkeypatch.setattr(routes, "_decode", lenient.decoder(routes._Tokens))
    ids = list(range(100_000))
    assert routes.read_tokens(json.dumps({"count": 9, "tokens": ids, "x": None}).encode()) == ids
    assert max(sizes) <= (1 << 16) + 10


@pytest.mark.parametrize("array", ["null", '["a"]', "[1, [2, 3]]", "[1, 2.5]", "{}", "[null]"])
@pytest.mark.parametrize("size", [1, 1 << 16])
def test_an_answer_without_ids(monkeypatch: pytest.MonkeyPatch, array: str, size: int) -> None:
    monkeypatch.setattr(routes, "LONG_BYTES", size)
    monkeypatch.setattr(long_payload, "_SLICE_BYTES", size)
    with pytest.raises(StreamBroke):
        routes.read_tokens(f'{{"tokens": {array}}}'.encode())
