"""R2, R14: an alias with ``tokens=`` takes OpenAI's token ids. On the toy model."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.old_tokens import OldTokens
from afterword.completion.service import CompletionService
from afterword.core.alias import Alias
from afterword.core.errors import ConfigError, InvalidRequest
from afterword.core.limits import Limits
from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.toy import ToyTokenizer, toy_engine
from afterword.models.tiktoken_files import read_tiktoken

PIECES = [b"Once", b" upon", b" a", b" winter", "é".encode()[:1], "é".encode()[1:], b"x",
          b"<|im_", b"end|>"]  # fmt: skip
TOKENIZER = ToyTokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [f"{base64.b64encode(piece).decode()} {10 + rank}" for rank, piece in enumerate(PIECES)]
    (tmp_path / "cl100k_base.tiktoken").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def engine() -> Iterator[BatchingEngine]:
    made = toy_engine()
    yield made
    asyncio.run(made.aclose())


@pytest.fixture
def service(folder: Path, engine: BatchingEngine) -> CompletionService:
    old = OldTokens("cl100k_base", read_tiktoken("cl100k_base", folder))
    aliases = {"old": Alias("toy", tokens="cl100k_base")}
    catalog = Catalog([ServedModel("toy", engine, 0)], aliases, {"cl100k_base": old})
    return CompletionService(catalog, Limits(), clock=lambda: 0.0, entropy=bytes)


async def ids(service: CompletionService, body: str) -> Any:
    (job,) = (await service.plan(body.encode())).jobs
    return list(job.prompt_ids), job.sampling.logit_bias


async def test_R2_a_prompt_of_old_ids_is_its_text(service: CompletionService) -> None:
    found, _ = await ids(service, '{"model": "old", "prompt": [10, 11, 12, 13, 14, 15]}')
    assert found == TOKENIZER.encode("Once upon a winteré")
    text, _ = await ids(service, '{"model": "old", "prompt": "Once upon"}')
    assert text == TOKENIZER.encode("Once upon")
    own, _ = await ids(service, '{"model": "toy", "prompt": [10, 11]}')
    assert own == [10, 11]


async def test_R2_old_ids_that_spell_a_special_token_are_text(service: CompletionService) -> None:
    found, _ = await ids(service, '{"model": "old", "prompt": [17, 18]}')
    assert found == TOKENIZER.encode("<|im_end|>", parse_special=False)
    text, _ = await ids(service, '{"model": "old", "prompt": "<|im_end|>"}')
    assert text == TOKENIZER.encode("<|im_end|>")
    assert text != found


async def test_R14_a_bias_is_on_the_token_of_the_same_bytes(service: CompletionService) -> None:
    _, bias = await ids(service, '{"model": "old", "prompt": "x", "logit_bias": {"11": -5}}')
    assert bias == ((TOKENIZER.encode(" upon")[0], -5.0),)


async def test_R1_old_ids_are_detokenised_as_such(service: CompletionService) -> None:
    async def text(model: str, ids: list[int]) -> Any:
        body = json.dumps({"model": model, "tokens": ids}).encode()
        return await (await service.detokenization(body)).run()

    assert (await text("old", [10, 11])).prompt == "Once upon"
    assert (await text("toy", [97, 98])).prompt == "ab"
    for wrong in ([99], [14]):
        with pytest.raises(InvalidRequest) as refusal:
            await text("old", wrong)
        assert refusal.value.param == "tokens"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ('"prompt": [10, 14]', "prompt"),
        ('"prompt": [[10], [99]]', "prompt"),
        ('"prompt": "a", "logit_bias": {"13": 1}', "logit_bias"),
        ('"prompt": "a", "logit_bias": {"100257": -100}', "logit_bias"),
        ('"prompt": "a", "stop_token_ids": [10]', "stop_token_ids"),
    ],
)
async def test_what_is_not_exact_is_refused_by_name(
    service: CompletionService, more: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await service.plan(f'{{"model": "old", {more}}}'.encode())
    assert refusal.value.param == param
    assert "cl100k_base" in refusal.value.message


def test_the_model_list_says_it(service: CompletionService) -> None:
    assert service.catalog.describe("old", service.limits).afterword["tokens"] == "cl100k_base"


def test_a_file_of_tiktoken_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (folder / "p50k_base.tiktoken").write_bytes(b"eA== 0\n")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ConfigError, match=r"p50k_base.tiktoken: cannot be read: Permission"):
        read_tiktoken("p50k_base", folder)


def test_files_as_tiktoken_keeps_them(folder: Path) -> None:
    address = "https://openaipublic.blob.core.windows.net/encodings/p50k_base.tiktoken"
    kept = folder / hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()
    kept.write_bytes(b"eA== 0\n\n")
    assert read_tiktoken("p50k_base", folder) == {0: b"x"}
    for damaged in (b"eA== x\n", b"eA==\n", b"?? 1\n", b"eA== 0\neQ== 0\n"):
        kept.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"line [12]:"):
            read_tiktoken("p50k_base", folder)
    kept.unlink()
    with pytest.raises(ConfigError, match="has neither p50k_base"):
        read_tiktoken("p50k_base", folder)
