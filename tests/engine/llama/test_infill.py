"""F1, F2: infill prompts have exactly the ids that each family of models was trained on."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from conftest import make_client
from support.asgi import fold
from support.tiny_gguf import make_gguf

PREFIX, SUFFIX = "def the(in):\n", "\n    the = <fim_middle> é"
OPTIONS = EngineOptions(slots=2, threads=1)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("starcoder", ["<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"]),
        ("qwen", ["<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"]),
        ("deepseek", ["<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"]),  # noqa: RUF001 - its own bars
        ("codestral", ["[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX]),
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
async def test_F2_the_familys_layout(
    tmp_path: Path, family: str, layout: list[str], adds_bos: bool
) -> None:
    path = make_gguf(tmp_path / "fim.gguf", family, adds_bos=adds_bos)
    engine = open_engine(path, digest="0" * 64, name="tiny", options=OPTIONS)
    tokenizer = engine.tokenizer
    expected = [tokenizer.bos_id] if adds_bos else []
    for part in layout:
        if part in {PREFIX, SUFFIX}:
            # The name of a special token in the client's text is plain text.
            expected += tokenizer.encode(part, parse_special=False)
        else:
            expected.append(tokenizer.pieces.index(part.encode()))
    catalog = Catalog([ServedModel("m", engine, 0)])
    service = CompletionService(
        catalog, Limits(), clock=lambda: 0.0, entropy=random.Random(1).randbytes
    )
    for prefix in (PREFIX, tokenizer.encode(PREFIX, parse_special=False)):
        body = {"model": "m", "prompt": prefix, "suffix": SUFFIX}
        plan = await service.plan(json.dumps(body).encode())
        assert list(plan.jobs[0].prompt_ids) == expected
        assert set(plan.jobs[0].extra_end_ids) == set(tokenizer.infill.end_ids)  # type: ignore[union-attr]
    await engine.aclose()


@pytest.mark.parametrize("family", ["starcoder", "qwen", "codestral"])
def test_F1_streamed_with_n_stop_and_logprobs(tmp_path: Path, family: str) -> None:
    path = make_gguf(tmp_path / "fim.gguf", family)
    engine = open_engine(path, digest="0" * 64, name="tiny", options=OPTIONS)
    client = make_client({"toy": engine})
    body = {
        "prompt": PREFIX, "suffix": SUFFIX, "n": 3, "stop": ["t", "z"], "logprobs": 2, "seed": 5,
        "max_tokens": 24,
    }  # fmt: skip

    async def both() -> None:
        answer = await client.complete(**body)
        assert fold(await client.stream(**body), usage=False)["choices"] == answer["choices"]
        for choice in answer["choices"]:
            assert choice["logprobs"]["text_offset"][0] == len(PREFIX)
            assert not {"t", "z"} & set(choice["text"])

    asyncio.run(both())
    asyncio.run(engine.aclose())


@pytest.mark.parametrize(
    ("family", "repository", "file"),
    [
        ("qwen", b"<|repo_name|>", b"<|file_sep|>"),
        ("starcoder", b"<repo_name>", b"<file_sep>"),
        ("deepseek", None, None),
        ("codestral", None, None),
    ],
)
async def test_F5_other_files_in_the_familys_tokens(
    tmp_path: Path, family: str, repository: bytes | None, file: bytes | None
) -> None:
    path = make_gguf(tmp_path / "fim.gguf", family)
    engine = open_engine(path, digest="0" * 64, name="tiny", options=OPTIONS)
    tokenizer = engine.tokenizer
    infill = tokenizer.infill
    assert infill is not None
    found = [
        None if i is None else tokenizer.pieces[i] for i in (infill.repository_id, infill.file_id)
    ]
    assert found == [repository, file]
    reply = await make_client({"toy": engine}).post(
        "/infill",
        {
            "input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 3,
            "input_extra": [{"text": "in", "filename": "the.py"}], "samplers": ["top_k", "infill"],
        },
    )  # fmt: skip
    assert reply.status == 200, reply.body
    await engine.aclose()
