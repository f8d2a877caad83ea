"""The evaluation harness, run as its users run it. Its numbers equal those of direct scoring."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from afterword import LLM
from afterword.evaluation.tasks import digest_of, read_task
from e2e.environments import environment
from e2e.process import MODEL, Server, run, serving
from standins.upstreams import listening
from support.reference import Reference

TASKS = Path(__file__).parent / "lm_eval"
QUESTIONS: list[dict[str, Any]] = [
    {"context": context, "choices": choices, "label": 0}
    for context, *choices in (
        ("The capital of France is", " Paris", " Berlin", " Rome"),
        ("Water boils at 100 degrees", " Celsius.", " banana.", " of it."),
        ("Naïve “café” 🙂 — the", " owner", " café", " 🙃🙃"),
        ("Two plus two is", " four", " the of", " purple elephants"),
        ("def add(a, b):\n    return", " a + b", " import", " }{"),
        ("She opened the", " door and walked in", " sky by telephone"),
    )
]
TEXT = (
    "The harbour was quiet that morning. A single gull stood on the wall, and nobody had yet "
    "seen the ship. It came in slowly, with torn sails, and naïve hopes — 🙂 — aboard.\n"
)
PROMPTS = ["The capital of France is", "Once upon a time", "The sea was"]


@pytest.fixture(scope="module")
def lm_eval() -> Path:
    """The harness's command, in an environment of its own."""
    return environment("lm-eval") / "lm_eval"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks and their files."""
    folder = tmp_path_factory.mktemp("lm_eval")
    for task in TASKS.glob("*.yaml"):
        shutil.copy(task, folder)
    rows = {
        "choice": QUESTIONS,
        "text": [{"text": TEXT}],
        "prompt": [{"prompt": prompt, "answer": ""} for prompt in PROMPTS],
    }
    for name, entries in rows.items():
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Iterator[Server]:
    """A server with the limits that the harness's ``gguf`` model type needs."""
    arguments = ("--no-require-model", "--slots", "4")
    models = ("--model", f"{MODEL}={embedded_model}", "--default-max-tokens", "12")
    with serving(tmp_path_factory.mktemp("limited") / "stderr", *models, *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def reference(embedded_model: Path) -> Iterator[Reference]:
    opened = Reference(embedded_model)
    yield opened
    opened.close()


def harness(
    lm_eval: Path, folder: Path, kind: str, names: str, *flags: str | Path, **arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run the harness with the key of the server that has one."""
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    return subprocess.run(
        [lm_eval, "--model", kind, "--model_args", given, "--tasks", names, "--include_path", ".",
         *flags],
        check=False, capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_DATASETS_OFFLINE": "1",
             "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": str(arguments.get("auth_token", ""))},
    )  # fmt: skip


def evaluate(
    lm_eval: Path, folder: Path, kind: str, names: str, *flags: str, **arguments: object
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Run the harness. Returns the responses of each task, in the order of its documents.

    The second value are the results that it reports, by task.
    """
    out = folder / f"out-{abs(hash((kind, flags, str(arguments))))}"
    more: Sequence[str | Path] = (*flags, "--output_path", out, "--log_samples")
    done = harness(lm_eval, folder, kind, names, *more, **arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {}
    for name in names.split(","):
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        found[name] = [sample["resps"] for sample in samples]
    (summary,) = out.rglob("results_*.json")
    return found, json.loads(summary.read_text())["results"]


def direct(reference: Reference, context: str, continuation: str) -> tuple[float, bool]:
    """Returns the continuation's log-probability by llama.cpp, and whether it is greedy."""
    before, ids = reference.tokenize(context), reference.tokenize(context + continuation)
    rows = reference.log_softmax(ids)
    at = range(len(before), len(ids))
    return (
        float(sum(rows[i - 1][ids[i]] for i in at)),
        all(int(rows[i - 1].argmax()) == ids[i] for i in at),
    )


def check_choices(reference: Reference, responses: list[Any]) -> None:
    for question, answers in zip(QUESTIONS, responses, strict=True):
        for choice, ((value, greedy),) in zip(question["choices"], answers, strict=True):
            expected = direct(reference, question["context"], choice)
            assert float(value) == pytest.approx(expected[0], abs=1e-3), (question, choice)
            assert str(greedy) == str(expected[1])


def accuracy_by_hand(server: Server) -> float:
    """How often the label's choice is the likeliest, by sums over plain answers."""
    right = 0
    for question in QUESTIONS:
        sums = []
        for choice in question["choices"]:
            context = question["context"]
            body = {"model": MODEL, "prompt": [context, context + choice], "echo": True,
                    "logprobs": 0, "max_tokens": 0}  # fmt: skip
            reply = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=None)
            short, whole = (found["logprobs"] for found in reply.json()["choices"])
            sums.append(sum(whole["token_logprobs"][len(short["tokens"]) :]))
        right += sums.index(max(sums)) == question["label"]
    return right / len(QUESTIONS)


@pytest.mark.parametrize("as_tokens", [True, False])
def test_local_completions(
    lm_eval: Path, tasks: Path, server: Server, reference: Reference, as_tokens: bool,
) -> None:  # fmt: skip
    """With the server's tokenizer, and requests as token ids or as text."""
    responses, results = evaluate(
        lm_eval, tasks, "local-completions",
        "afterword_choice,afterword_rolling,afterword_generate",
        model=MODEL, base_url=f"{server.url}/v1/completions", tokenizer_backend="remote",
        tokenized_requests=as_tokens, num_concurrent=2,
    )  # fmt: skip
    check_choices(reference, responses["afterword_choice"])
    assert results["afterword_choice"]["acc,none"] == pytest.approx(accuracy_by_hand(server))
    ((rolling,),) = responses["afterword_rolling"]
    ids = [reference.start, *reference.tokenize(TEXT)]
    rows = reference.log_softmax(ids)
    expected = sum(rows[i - 1][ids[i]] for i in range(1, len(ids)))
    assert float(rolling[0] if isinstance(rolling, list) else rolling) == pytest.approx(
        expected, abs=1e-2
    )
    for prompt, ((text,),) in zip(PROMPTS, responses["afterword_generate"], strict=True):
        assert text == until(reference.greedy(prompt, 12))


def until(text: str) -> str:
    """Returns the text before the task's first stop string."""
    return min((text.partition(stop)[0] for stop in ("\n", ".")), key=len)


REGEXES = {
    "whole": None, "word": "[A-Za-z]+", "group": "^(.*?)[,;]", "groups": r"(\d+)|( [a-z]+ )"
}  # fmt: skip
"""Those of the task ``afterword_extract``, by the names of its filters."""


def test_generation_is_measured_as_the_harness_measures_it(
    lm_eval: Path, tasks: Path, server: Server
) -> None:
    """Texts, ``exact_match`` and ``regex_match`` of ``afterword eval``, item for item."""
    prompts = [*PROMPTS, "One, two, three, four,", "Q: What is 7 plus 5?\nA:", "1 2 3 4 5"]
    with LLM.connect(server.url, model=MODEL) as llm:
        answers = llm.complete(prompts, max_tokens=12, temperature=0, stop=["\n", "."])
    texts = [choice.text for choice in answers.choices]
    # Whole texts, stripped ones and parts of them, so that each measure is met by some.
    targets = [
        [[text, "x"], ["x", text.strip()], re.findall(r"\w+", text)[:2] or ["x"]][i % 3]
        for i, text in enumerate(texts)
    ]
    items = [{"prompt": p, "target": t} for p, t in zip(prompts, targets, strict=True)]
    items += [{"prompt": p, "target": ["x", *re.findall(r"\w+", t)]}
              for p, t in zip(prompts, texts, strict=True)]  # fmt: skip
    (tasks / "extract.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    evaluate(
        lm_eval, tasks, "local-completions", "afterword_extract",
        model=MODEL, base_url=f"{server.url}/v1/completions", tokenizer_backend="remote",
        num_concurrent=2,
    )  # fmt: skip
    (file,) = tasks.rglob("samples_afterword_extract_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    met = []
    for name, regex in REGEXES.items():
        theirs = {row["doc_id"]: row for row in samples if row["filter"] == name}
        more = {"until": ["\n", "."], "max_tokens": 12} | ({"regex": regex} if regex else {})
        task = tasks / f"ours-{name}.jsonl"
        task.write_text("".join(json.dumps(item | more) + "\n" for item in items))
        ours = evaluated(task, server)
        assert len(theirs) == len(ours) == len(items)
        for index, outcome in enumerate(ours):
            assert outcome["text"] == theirs[index]["resps"][0][0]
            measure = "regex_match" if regex else "exact_match"
            assert outcome["met"][measure] == theirs[index]["exact_match"], (name, outcome)
            met.append((measure, outcome["met"][measure]))
    assert set(met) == {(m, v) for m in ("exact_match", "regex_match") for v in (True, False)}


def evaluated(task: Path, server: Server) -> list[dict[str, Any]]:
    """Returns the outcomes that ``afterword eval`` writes down, in the order of the items."""
    state = task.with_suffix("")
    state.mkdir()
    subprocess.run(
        [sys.executable, "-m", "afterword", "eval", task, "--url", server.url, "--model", MODEL,
         "--state", state],
        check=True, capture_output=True,
    )  # fmt: skip
    (file,) = state.iterdir()
    outcomes = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    by_item = {outcome["item"]: outcome for outcome in outcomes}
    return [by_item[digest_of(item)] for item in read_task(task).items]


def test_gguf(lm_eval: Path, tasks: Path, limited: Server, reference: Reference) -> None:
    """The harness's older model type, which sends ``logprobs: 10`` and no model."""
    responses, _ = evaluate(
        lm_eval, tasks, "gguf", "afterword_choice,afterword_generate", base_url=limited.url
    )
    check_choices(reference, responses["afterword_choice"])
    for prompt, ((text,),) in zip(PROMPTS, responses["afterword_generate"], strict=True):
        assert text == until(reference.greedy(prompt, 12)).strip()


def to(url: str, **more: object) -> dict[str, Any]:
    """Returns the arguments of ``local-completions`` for a server."""
    base = {"model": MODEL, "base_url": f"{url}/v1/completions", "tokenizer_backend": "remote"}
    return {**base, **more}


@pytest.fixture(scope="module")
def ours(tasks: Path, server: Server) -> Sequence[Sequence[float]]:
    """The log-probabilities of all choices by ``afterword eval``."""
    return [outcome["logprobs"] for outcome in evaluated(tasks / "choice.jsonl", server)]


def theirs(responses: dict[str, list[Any]]) -> Sequence[Sequence[float]]:
    """The log-probabilities of all choices by the harness."""
    return [
        [float(value) for ((value, _),) in answers] for answers in responses["afterword_choice"]
    ]


@pytest.mark.parametrize(
    ("batch_size", "at_once", "as_tokens"), [(4, 1, True), (3, 4, True), (16, 1, False)]
)
def test_log_probabilities_are_those_of_afterword_eval(
    lm_eval: Path, tasks: Path, server: Server, ours: Sequence[Sequence[float]],
    batch_size: int, at_once: int, as_tokens: bool,
) -> None:  # fmt: skip
    """To the last bit, whatever goes into one request and however many are under way."""
    responses, _ = evaluate(
        lm_eval, tasks, "local-completions", "afterword_choice", "--batch_size", str(batch_size),
        **to(server.url, num_concurrent=at_once, tokenized_requests=as_tokens),
    )  # fmt: skip
    assert theirs(responses) == ours


class Busy:
    """Stands in front of a server, and answers its first completions as a busy server does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.refusals: list[tuple[int, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path == "/v1/completions" and self.refusals:
            status, code = self.refusals.pop()
            error = {"message": "Come back.", "type": code, "param": None, "code": code}
            answer = JSONResponse({"error": error}, status, {"retry-after": "1"})
        else:
            headers = {name: request.headers[name] for name in ("authorization",)}
            async with httpx2.AsyncClient(timeout=None) as client:
                reply = await client.request(
                    request.method, f"{self._url}{request.url.path}", headers=headers,
                    content=await request.body(),
                )  # fmt: skip
            answer = JSONResponse(reply.json(), reply.status_code)
        await answer(scope, receive, send)


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory, embedded_model: Path
) -> Iterator[tuple[str, str]]:
    """The address of a server that wants a key, and a key."""
    folder = tmp_path_factory.mktemp("keyed")
    ledger = ("--data-dir", str(folder / "data"))
    key = run("keys", "create", "harness", *ledger).stdout.strip()
    models = ("--model", f"{MODEL}={embedded_model}", "--slots", "4")
    with serving(folder / "stderr", *models, *ledger) as server:
        yield server.url, key


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_key_and_a_server_that_is_busy(
    lm_eval: Path, tasks: Path, keyed: tuple[str, str], ours: Sequence[Sequence[float]],
    at_once: int,
) -> None:  # fmt: skip
    """The harness asks again: it waits by a rule of its own, not as ``Retry-After`` says."""
    url, key = keyed
    busy = Busy(url)
    with listening(busy) as base:
        address = base.removesuffix("/v1")
        busy.refusals = [(429, "rate_limit_exceeded"), (503, "engine_overloaded")]
        responses, _ = evaluate(
            lm_eval, tasks, "local-completions", "afterword_choice", "--batch_size", "8",
            **to(address, auth_token=key, num_concurrent=at_once),
        )  # fmt: skip
    assert busy.refusals == []
    assert theirs(responses) == ours


def test_the_harness_without_a_key_is_refused(
    lm_eval: Path, tasks: Path, keyed: tuple[str, str]
) -> None:
    done = harness(lm_eval, tasks, "local-completions", "afterword_choice", **to(keyed[0]))
    assert done.returncode != 0
    assert "401" in done.stderr
