"""A program that measures servers reports the tokens that the server counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest

from clients.installing import python_client
from clients.running import Plain, run_client
from e2e.process import MODEL, Server

PROMPTS = ["Say this is a test", "Once upon a time", "The sea was"]
MAX_TOKENS = 6


@pytest.fixture(scope="module")
def counted(plain: Plain) -> dict[str, int]:
    """What the server counts for each prompt."""
    return {
        prompt: plain.complete(prompt=prompt, max_tokens=MAX_TOKENS)["usage"]["prompt_tokens"]
        for prompt in PROMPTS
    }


def generated(server: Server) -> int:
    """How many tokens the server has generated for all answers so far."""
    text = httpx2.get(f"{server.url}/metrics", timeout=None).text
    name = rf'afterword_completion_tokens_total{{model="{MODEL}"}}'
    found = re.search(rf"^{name} (\S+)", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_guidellm(server: Server, counted: dict[str, int], tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(lines)
    backend = f"kind=openai_http,target={server.url},model={MODEL},request_format=/v1/completions"
    before = generated(server)
    run_client(
        [python_client("guidellm") / "guidellm", "run", "--disable-console",
         "--backend", f"{backend},max_tokens={MAX_TOKENS}", "--profile", "kind=synchronous",
         "--data", "kind=json_file,path=prompts.jsonl",
         "--constraint", f"kind=max_requests,count={len(PROMPTS)}",
         "--output", "kind=json,path=out.json"],
        tmp_path,
    )  # fmt: skip
    (run,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert run["metrics"]["request_totals"]["successful"] == len(PROMPTS)
    assert run["metrics"]["request_totals"]["errored"] == 0
    for row in run["requests"]["successful"]:
        sent = json.loads(row["request_args"])["body"]
        assert row["prompt_tokens"] == counted[sent["prompt"]]
        # Sampled, so a choice may have ended before.
        assert 1 <= row["output_tokens"] <= MAX_TOKENS
        assert row["total_tokens"] == row["prompt_tokens"] + row["output_tokens"]
    shown = run["metrics"]["prompt_token_count"]["successful"]["total_sum"]
    assert shown == pytest.approx(sum(counted.values()))
    written = sum(row["output_tokens"] for row in run["requests"]["successful"])
    assert written == generated(server) - before
    shown = run["metrics"]["output_token_count"]["successful"]["total_sum"]
    assert shown == pytest.approx(written)
