"""The real model: the engine's answers agree with llama.cpp, called directly."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.limits import Limits
from afterword.core.wire import Completion
from afterword.engine.llama.binding import convert
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from support.reference import Reference

pytestmark = pytest.mark.model

TEXT = (
    "Once upon a time — in a café by the sea — there lived a 🙂 cartographer. She drew maps of "
    "places that nobody had seen, and one day a letter came from one of them.\n\nDear friend,"
)


@pytest.fixture
async def service(embedded_model: Path) -> AsyncIterator[CompletionService]:
    options = EngineOptions(ctx=1024, slots=4)
    engine = open_engine(embedded_model, digest="0" * 64, name="m", options=options)
    catalog = Catalog([ServedModel("m", engine, 1)])
    yield CompletionService(catalog, Limits(), clock=time.time, entropy=os.urandom)
    await engine.aclose()


async def ask(service: CompletionService, **body: Any) -> Completion:
    plan = await service.plan(json.dumps({"model": "m", **body}).encode())
    async with service.open(plan) as answer:
        return await answer.completion()


async def test_L2_logprobs_are_the_models_own_to_1e_4(
    service: CompletionService, embedded_model: Path
) -> None:
    """Prompt and completion agree with rows that llama.cpp computes for the whole text at once."""
    answer = await ask(service, prompt=TEXT, echo=True, logprobs=5, max_tokens=12, temperature=0)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    tokenizer = service.catalog.default.engine.tokenizer
    ids = list(tokenizer.encode(choice.text))
    assert [tokenizer.pieces[i].decode(errors="replace") for i in ids][:3] == logprobs.tokens[:3]
    reference = Reference(embedded_model)
    exact = reference.log_softmax(ids)
    reference.close()
    assert len(logprobs.tokens) == len(ids)
    for at in range(1, len(ids)):
        value, top = logprobs.token_logprobs[at], logprobs.top_logprobs[at]
        assert value is not None
        assert top is not None
        row = exact[at - 1]
        assert value == pytest.approx(row[ids[at]], abs=1e-4)
        best = sorted(top.values(), reverse=True)[:5]
        assert best == pytest.approx(np.sort(row)[::-1][:5], abs=1e-4)
    spelled = b"".join(
        t.encode() if not t.startswith("bytes:") else bytes.fromhex(t[6:].replace("\\x", ""))
        for t in logprobs.tokens
    )
    assert spelled.decode() == choice.text


async def test_greedy_tokens_are_the_largest_entries(service: CompletionService) -> None:
    answer = await ask(service, prompt=TEXT, logprobs=3, max_tokens=20, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top is not None
        assert top[token] == value == max(top.values())


async def test_greedy_text_is_what_llama_cpp_says(
    service: CompletionService, embedded_model: Path
) -> None:
    prompt = "Say this is a test"
    reference = Reference(embedded_model)
    expected = reference.greedy(prompt, 7)
    reference.close()
    answer = await ask(service, prompt=prompt, max_tokens=7, temperature=0)
    assert answer.choices[0].text == expected


async def test_q8_0_is_nearly_the_file_and_served_as_the_library_computes_it(
    embedded_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "q8_0.gguf"
    convert(embedded_model, path, "q8_0", threads=2)
    passage = Path(__file__).with_name("passage.txt").read_text("utf-8")
    rows = {}
    for file in (embedded_model, path):
        reference = Reference(file)
        rows[file] = reference.log_softmax(reference.tokenize(passage)[:150])
        expected = reference.greedy("Say this is a test", 7)
        reference.close()
    p, q = rows[embedded_model], rows[path]
    assert 0 < (np.exp(p) * (p - q)).sum(axis=1).mean() < 0.02
    options = EngineOptions(ctx=1024, slots=1, probe=False)
    engine = open_engine(path, digest="0" * 64, name="m", options=options)
    catalog = Catalog([ServedModel("m", engine, 1)])
    service = CompletionService(catalog, Limits(), clock=time.time, entropy=os.urandom)
    answer = await ask(service, prompt="Say this is a test", max_tokens=7, temperature=0)
    assert answer.choices[0].text == expected
    await engine.aclose()


async def test_D2_a_prompt_answers_the_same_alone_and_in_an_array(
    service: CompletionService,
) -> None:
    rng = random.Random(4)
    words = TEXT.split()
    prompts = [" ".join(words[: rng.randrange(1, len(words))]) for _ in range(6)]
    same = {"max_tokens": 10, "seed": 7, "n": 2, "logprobs": 1, "echo": True}
    together = await ask(service, prompt=prompts, **same)
    for i, prompt in enumerate(prompts):
        alone = await ask(service, prompt=prompt, **same)
        for j in range(2):
            ours, its = alone.choices[j], together.choices[2 * i + j]
            assert (ours.text, ours.logprobs) == (its.text, its.logprobs)
