"""Evaluation programs come to the numbers that the server's plain answers give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from clients.installing import node_client, python_client
from clients.running import PROMPT, Plain, run_client, run_python, texts
from e2e.process import MODEL, Server

QUESTIONS = [
    ("The capital of France is", "Paris"),
    ("Two plus two is", "four"),
    ("The opposite of hot is", "purple elephants"),
]


def test_inspect(server: Server, plain: Plain, tmp_path: Path) -> None:
    ids = plain.post("/tokenize", prompt=PROMPT)["tokens"]
    got = run_python(
        "inspect-ai", "inspect_scoring.py", tmp_path, MODEL, json.dumps(QUESTIONS), json.dumps(ids),
        AFTERWORD_BASE_URL=f"{server.url}/v1", AFTERWORD_API_KEY="unused",
    )  # fmt: skip
    assert got["status"] == "success", got["error"]
    said = [plain.text(prompt, max_tokens=8) for prompt, _ in QUESTIONS]
    assert got["texts"] == said
    right = [target in text for text, (_, target) in zip(said, QUESTIONS, strict=True)]
    assert got["accuracy"] == pytest.approx(sum(right) / len(right))
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 3, "prompt_logprobs": 1}
    answer = plain.complete(prompt=ids, **body)
    (choice,) = answer["choices"]
    assert got["logprobs"] == choice["logprobs"]["token_logprobs"]
    assert got["top"] == [3]
    scored = [
        entry[str(token)]["logprob"]
        for token, entry in zip(ids, choice["prompt_logprobs"], strict=True)
        if entry is not None
    ]
    assert [value for value in got["prompt_logprobs"] if value is not None] == scored
    assert got["usage"] == answer["usage"]["prompt_tokens"] == len(ids)
    several = plain.complete(prompt=QUESTIONS[0][0], max_tokens=5, seed=3, n=3)
    assert got["several"] == texts(several)


def test_promptfoo(server: Server, plain: Plain, tmp_path: Path) -> None:
    settings = {"apiBaseUrl": f"{server.url}/v1", "apiKey": "unused", "temperature": 0,
                "max_tokens": 7}  # fmt: skip
    prompts = [PROMPT, "Once {{word}}"]
    config = tmp_path / "promptfooconfig.json"
    config.write_text(
        json.dumps(
            {
                "providers": [{"id": f"openai:completion:{MODEL}", "config": settings}],
                "prompts": prompts,
                "tests": [
                    {"vars": {"word": "upon"},
                     "assert": [{"type": "javascript", "value": "output.length > 0"}]}
                ],
            }
        )
    )  # fmt: skip
    program = node_client("promptfoo") / "node_modules" / ".bin" / "promptfoo"
    arguments = ("-c", config, "-o", "out.json", "--no-cache", "--no-table")
    command: list[str | Path] = ["node", program, "eval", *arguments]
    run_client(command, tmp_path, PROMPTFOO_CONFIG_DIR=str(tmp_path))
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results["stats"]["successes"] == 2
    got = {result["prompt"]["raw"]: result["response"] for result in results["results"]}
    # What it sends without being asked (C26 of its source).
    for prompt in (PROMPT, "Once upon"):
        stops = ["<|im_end|>", "<|endoftext|>"]
        answer = plain.complete(prompt=prompt, max_tokens=7, temperature=0, stop=stops)
        assert got[prompt]["output"] == texts(answer)[0]
        assert got[prompt]["tokenUsage"]["total"] == answer["usage"]["total_tokens"]


def test_garak(server: Server, plain: Plain, tmp_path: Path) -> None:
    options = {"openai": {"OpenAIGenerator": {"max_tokens": 8, "seed": 5}}}
    run_client(
        [python_client("garak") / "garak", "-t", "openai", "-n", "gpt-3.5-turbo-instruct",
         "--spec", "probes.test.Test", "-g", "2", "--report_prefix", "report",
         "--generator_options", json.dumps(options)],
        tmp_path, OPENAI_BASE_URL=f"{server.url}/v1", XDG_DATA_HOME=str(tmp_path),
    )  # fmt: skip
    (report,) = tmp_path.rglob("report.report.jsonl")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    attempts = {
        _prompt(row): [output["text"] for output in row["outputs"]]
        for row in rows
        if row["entry_type"] == "attempt"
    }
    assert len(attempts) == 8
    body = {"max_tokens": 8, "seed": 5, "n": 2, "temperature": 0.7, "stop": ["#", ";"]}
    for prompt, outputs in list(attempts.items())[:3]:
        assert outputs == texts(plain.complete(prompt=prompt, **body)), prompt


def _prompt(row: dict[str, dict[str, Sequence[dict[str, dict[str, str]]]]]) -> str:
    (turn,) = row["prompt"]["turns"]
    return turn["content"]["text"]
