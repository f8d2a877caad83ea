"""On the embedded model: scores are llama.cpp's, and measures are lm-eval's, item for item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afterword import LLM, AsyncLLM
from afterword.evaluation.outcomes import ChoiceOutcome
from afterword.evaluation.running import evaluate
from afterword.evaluation.state import RunHeader, StateFile
from afterword.evaluation.tasks import read_task
from support.reference import Reference

ITEMS: list[dict[str, Any]] = [
    {"context": context, "choices": choices, "label": label}
    for label, context, *choices in (
        (0, "The capital of France is", " Paris", " Berlin", " Rome"),
        (0, "Water boils at 100 degrees ", "Celsius.", "banana.", "of it."),
        (1, "Naïve “café” 🙂 — the", " owner", " café", " 🙃🙃"),
        (0, "def add(a, b):\n    return", " a + b", " import", " }{"),
        (1, "", "The", "Once upon a time, there was", "🙂"),
        (2, "She opened the", " sky by telephone", " of", " door and walked in"),
    )
]
TOLERANCE = 1e-3
"""Of a sum, between batched kernels and llama.cpp's own."""


@pytest.fixture(scope="module")
def reference(embedded_model: Path) -> Iterator[Reference]:
    opened = Reference(embedded_model)
    yield opened
    opened.close()


def loglikelihood(reference: Reference, context: str, continuation: str) -> tuple[float, bool]:
    """lm-evaluation-harness's ``loglikelihood``, in its words, on llama.cpp's logits."""
    if context == "":
        context_enc, continuation_enc = [reference.start], reference.tokenize(continuation)
    else:
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces > 0:
            continuation = context[-n_spaces:] + continuation
            context = context[:-n_spaces]
        whole_enc = reference.tokenize(context + continuation)
        context_enc = reference.tokenize(context)
        continuation_enc = whole_enc[len(context_enc) :]
    rows = reference.log_softmax(context_enc + continuation_enc)
    logits = rows[len(context_enc) - 1 : -1]
    greedy = bool((logits.argmax(axis=-1) == continuation_enc).all())
    return float(logits[np.arange(len(continuation_enc)), continuation_enc].sum()), greedy


async def test_multiple_choice(embedded_model: Path, reference: Reference, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    task = read_task(file)
    async with AsyncLLM(f"m={embedded_model}", slots=4, threads=1) as llm:
        header = RunHeader("task", "m", "")
        outcomes = await evaluate(llm, task, StateFile(tmp_path / "state", header))
    for item, outcome in zip(ITEMS, outcomes, strict=True):
        assert isinstance(outcome, ChoiceOutcome)
        choices, gold = item["choices"], item["label"]
        found = [loglikelihood(reference, item["context"], choice) for choice in choices]
        lls = np.array([value for value, _ in found])
        assert outcome.logprobs == pytest.approx(lls, abs=TOLERANCE)
        assert outcome.greedy == [greedy for _, greedy in found]
        # ``ConfigurableTask.process_results``.
        completion_len = np.array([float(len(i)) for i in choices])
        byte_length = np.array([float(len(i.encode("utf-8"))) for i in choices])
        assert outcome.met == {
            "acc": bool(np.argmax(lls) == gold),
            "acc_norm": bool(np.argmax(lls / completion_len) == gold),
            "acc_bytes": bool(np.argmax(lls / byte_length) == gold),
        }


def test_a_rolling_score(embedded_model: Path, reference: Reference) -> None:
    """lm-eval's ``loglikelihood_rolling`` predicts every token; so do windows that overlap by one.

    Its windows have one more token to predict than to read.
    """
    text = (
        "The harbour was quiet that morning. Nobody had seen the ship — 🙂 — with torn sails.\n" * 3
    )
    # The model was trained on documents that begin so (R2).
    ids = reference.tokenize(f"<|endoftext|>{text}")
    with LLM(f"m={embedded_model}", slots=2, threads=1) as llm:
        (whole,) = llm.score(text)
        (windowed,) = llm.score(text, window=17, stride=16)
    rows = reference.log_softmax(ids)
    wanted = [float(rows[i - 1][ids[i]]) for i in range(1, len(ids))]
    assert list(whole.token_logprobs) == pytest.approx(wanted, abs=TOLERANCE)
    rolling: list[float] = []
    for begin in range(0, len(ids) - 1, 16):
        part = ids[max(min(begin, len(ids) - 17), 0) : begin + 17]
        rows = reference.log_softmax(part)
        new = min(16, len(ids) - 1 - begin)
        at = range(len(part) - new, len(part))
        rolling += [float(rows[i - 1][part[i]]) for i in at]
    assert list(windowed.token_logprobs) == pytest.approx(rolling, abs=TOLERANCE)
