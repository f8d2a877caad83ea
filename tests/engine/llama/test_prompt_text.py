"""L8, E1, E2, L5: the text of a prompt is what was sent, whatever the vocabulary changes in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama import binding
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from support.asgi import Client, fold
from support.tiny_gguf import make_gguf
from support.tiny_vocab import Vocabulary, byte_pairs, plamo2, rwkv, spm, ugm, wpm

OPTIONS = EngineOptions(slots=2, threads=1, exact=False)
SPELLS_ALL = {
    "spm": spm(),
    "spm for infill": spm(infill=True),
    "rwkv": rwkv(),
    "plamo2": plamo2(),
    "gpt-2": byte_pairs("gpt-2"),
    "llama-bpe": byte_pairs("llama-bpe"),
    "gemma4": byte_pairs("gemma4"),
}
ESCAPES_SPACES = {"spm", "spm for infill", "gemma4"}
BEGINS_WITH_BOS = {*ESCAPES_SPACES, "llama-bpe"}
UNKNOWNS = {"spm without bytes": spm(byte_tokens=False), "ugm": ugm(), "wpm": wpm()}
UNSPELLABLE = {
    "spm": spm(byte_tokens=False, unknown=False, infill=True), "rwkv": rwkv(every_byte=False),
}  # fmt: skip
TEXTS = (
    "hello world", " hello", "  hello  world ", " ", "   ", "\n", "\n\n", "\thello", "a", "é",
    "héllo 😀", "中文 hello", "hello<user>world", "<user> hello", "<s>hello", "hello <s> world",
    "[INST] hello [INST]world", "<|endoftext|> hello", "\x00", "▁hello", "<0x41>", "the\n  def",
)  # fmt: skip

needs_guards = pytest.mark.skipif(
    not binding.CHANGES,
    reason="an unchanged library",
)
Ask = Callable[[Client], Any]


def serving(folder: Path, vocabulary: Vocabulary, ask: Ask) -> None:
    """Ask a server of a tiny model with this vocabulary."""
    path = make_gguf(folder / "tiny.gguf", vocabulary=vocabulary)
    engine = open_engine(path, digest="0" * 64, name="tiny", options=OPTIONS)

    async def whole() -> None:
        await ask(make_client({"toy": engine}))
        await engine.aclose()

    asyncio.run(whole())


@pytest.mark.parametrize("kind", SPELLS_ALL)
def test_tokenize_and_detokenize_give_the_text_back(tmp_path: Path, kind: str) -> None:
    async def ask(client: Client) -> None:
        for text in TEXTS:
            # Neither route can tell a BOS in the text from one that the server adds.
            if text.startswith("<s>") and kind in BEGINS_WITH_BOS:
                continue
            # These vocabularies write a space as this character, so it becomes a space.
            if "▁" in text and kind in ESCAPES_SPACES:
                continue
            for more in ({}, {"add_special_tokens": False}):
                told = (await client.post("/tokenize", {"prompt": text, **more})).json()["tokens"]
                back = (await client.post("/detokenize", {"tokens": told})).json()
                assert back == {"prompt": text}, told

    serving(tmp_path, SPELLS_ALL[kind], ask)


@pytest.mark.parametrize(
    "kind", [*SPELLS_ALL, pytest.param("spm without bytes", marks=needs_guards), "ugm", "wpm"]
)
def test_echo_is_what_was_sent(tmp_path: Path, kind: str) -> None:
    async def ask(client: Client) -> None:
        for text in TEXTS:
            body = {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 2, "seed": 1}
            answer = await client.complete(**body)
            (choice,) = answer["choices"]
            assert choice["text"].startswith(text)
            offsets = choice["logprobs"]["text_offset"]
            assert offsets == sorted(offsets)
            # Offsets of prompt tokens are in the prompt, offsets of generated tokens behind it.
            assert offsets[-2] >= len(text)
            assert all(0 <= offset <= len(text) for offset in offsets[:-2])
            bare = await client.complete(**{**body, "echo": False})
            assert bare["choices"][0]["logprobs"]["text_offset"] == offsets[-2:]
            assert fold(await client.stream(**body), usage=False)["choices"] == answer["choices"]

    serving(tmp_path, {**SPELLS_ALL, **UNKNOWNS}[kind], ask)


async def scored(client: Client, prompt: str | list[int]) -> tuple[str, list[str], list[int]]:
    """Returns text, tokens and offsets of a prompt."""
    answer = await client.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    return choice["text"], choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]


@pytest.mark.parametrize("vocabulary", [spm(), ugm(), wpm()], ids=["spm", "ugm", "wpm"])
def test_a_space_that_the_vocabulary_adds_is_in_no_text(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    async def ask(client: Client) -> None:
        expected = ("hello world", ["hello", " world"], [0, 5])
        assert await scored(client, "hello world") == expected
        body = {"prompt": "hello world", "add_special_tokens": False}
        ids = (await client.post("/tokenize", body)).json()["tokens"]
        assert await scored(client, ids) == expected

    serving(tmp_path, vocabulary, ask)


def test_an_added_space_behind_a_special_token_is_in_no_text(tmp_path: Path) -> None:
    async def ask(client: Client) -> None:
        text, tokens, offsets = await scored(client, "a[INST]hello<user> world")
        assert text == "a[INST]hello<user> world"
        assert tokens == ["a", "[INST]", "hello", "<user>", "", " world"]
        assert offsets == [0, 1, 7, 12, 18, 18]

    serving(tmp_path, spm(), ask)


@needs_guards
def test_changes_of_a_text_by_the_vocabulary_move_no_offset(tmp_path: Path) -> None:
    async def lower(client: Client) -> None:
        sent = "  HÉLLO,  wörld 😀 the"
        text, tokens, offsets = await scored(client, sent)
        assert text == sent
        assert tokens[-1] == " the"
        assert sent[offsets[-1] :].strip() == "the"
        assert sent[: offsets[tokens.index(" ,")]].strip() == "HÉLLO"

    serving(tmp_path, wpm(), lower)

    async def unknown(client: Client) -> None:
        sent = "hello 😀😀 world"
        text, tokens, offsets = await scored(client, sent)
        assert (text, tokens) == (sent, ["hello", " ", "<unk>", " world"])
        assert offsets == [0, 5, 6, 8]

    serving(tmp_path, spm(byte_tokens=False), unknown)


def test_a_completion_that_begins_a_text_begins_without_an_added_space(tmp_path: Path) -> None:
    """Its text gives the generated tokens if it is tokenised again."""

    async def ask(client: Client) -> None:
        ids = (await client.post("/tokenize", {"prompt": "hello"})).json()["tokens"]
        bias = {str(ids[-1]): 100}
        for prompt, text, begins in (("", "hello hello", 0), ("[INST]", "hello hello", 6),
                                     ("a", " hello hello", 1)):  # fmt: skip
            answer = await client.complete(
                prompt=prompt, max_tokens=2, logit_bias=bias, temperature=0, logprobs=2
            )
            (choice,) = answer["choices"]
            assert choice["text"] == text
            assert choice["logprobs"]["tokens"] == [text[: len(text) - 6], " hello"]
            assert choice["logprobs"]["text_offset"] == [begins, begins + len(text) - 6]
            for token, chosen, top in zip(
                choice["logprobs"]["tokens"],
                choice["logprobs"]["token_logprobs"],
                choice["logprobs"]["top_logprobs"],
                strict=True,
            ):
                assert top[token] == chosen
                assert len(top) in {2, 3}

    serving(tmp_path, spm(), ask)


@needs_guards
def test_F2_a_suffix_gets_no_added_space(tmp_path: Path) -> None:
    async def ask(client: Client) -> None:
        answer = await client.complete(prompt="a", suffix="\n", max_tokens=1, echo=True)
        # BOS, prefix, "a", suffix, the byte of the newline, middle.
        assert answer["usage"]["prompt_tokens"] == 6
        assert answer["choices"][0]["text"].startswith("a")
        hello = (await client.post("/tokenize", {"prompt": "hello"})).json()["tokens"][-1]
        answer = await client.complete(
            prompt="a", suffix="\n", max_tokens=1, logit_bias={str(hello): 100}, temperature=0
        )
        # A middle continues its prefix, so its space belongs to the text.
        assert answer["choices"][0]["text"] == " hello"

    serving(tmp_path, spm(infill=True), ask)


@needs_guards
@pytest.mark.parametrize("kind", UNSPELLABLE)
def test_unspellable_text_is_a_400_that_names_the_field(tmp_path: Path, kind: str) -> None:
    async def ask(client: Client) -> None:
        for text in ("hello 😀", "😀", "ÿ文", "😀" * 100):
            for path, body in (
                ("/v1/completions", {"model": "toy", "prompt": text}),
                ("/tokenize", {"prompt": text}),
            ):
                reply = await client.post(path, body)
                assert (reply.status, reply.error["param"]) == (400, "prompt")
        assert (await client.complete(prompt="hello", max_tokens=1))["choices"]
        reply = await client.post(
            "/v1/completions", {"model": "toy", "prompt": "a", "suffix": "😀"}
        )
        assert (reply.status, reply.error["param"]) == (400, "suffix")

    serving(tmp_path, UNSPELLABLE[kind], ask)


def test_a_file_that_is_truncated_while_it_is_served_changes_no_answer(tmp_path: Path) -> None:
    """Small files are read instead of mapped; a mapped file would end the process."""

    async def ask(client: Client) -> None:
        body = {"prompt": "hello world", "max_tokens": 8, "temperature": 0}
        before = await client.complete(**body)
        (tmp_path / "tiny.gguf").write_bytes(b"")
        after = await client.complete(**body, logprobs=1)
        assert after["choices"][0]["text"] == before["choices"][0]["text"]

    serving(tmp_path, byte_pairs("gpt-2"), ask)


def test_a_text_for_an_engine_that_is_closed_is_a_503(tmp_path: Path) -> None:
    """The engine has freed its vocabulary with its weights."""
    path = make_gguf(tmp_path / "tiny.gguf")
    engine: BatchingEngine = open_engine(path, digest="0" * 64, name="tiny", options=OPTIONS)
    client = make_client({"toy": engine})

    async def whole() -> None:
        await engine.aclose()
        for path, body in (
            ("/v1/completions", {"model": "toy", "prompt": "hello"}),
            ("/v1/completions", {"model": "toy", "prompt": [1, 2]}),
            ("/tokenize", {"prompt": "hello" * 20}),
        ):
            assert (await client.post(path, body)).status == 503

    asyncio.run(whole())
