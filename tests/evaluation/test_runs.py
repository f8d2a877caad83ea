"""Evaluations: item by item, going on after a break, in a report."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from afterword import AsyncLLM, ConfigError
from afterword.evaluation.comparison import ModelRun, summarize
from afterword.evaluation.outcomes import (
    ChoiceOutcome,
    GenerationOutcome,
    Outcome,
    judge_text,
)
from afterword.evaluation.report import report
from afterword.evaluation.running import evaluate
from afterword.evaluation.state import RunHeader, StateFile
from afterword.evaluation.tasks import GenerationItem, Task, digest_of, read_task
from support.library import toy

HEADER = RunHeader("task", "toy", "fp_0000000000")
ITEMS = [
    {"context": f"Once upon {i}", "choices": [" a time", " the", " 🙂é"], "label": i % 3}
    for i in range(12)
]
ASKED = [{"prompt": "Once", "until": ["e", " t"], "target": "x", "max_tokens": 9},
         {"prompt": "upon", "target": ["x", "y"], "max_tokens": 3, "regex": "(.)"}]  # fmt: skip


def task_of(folder: Path, items: list[dict[str, object]]) -> Task:
    file = folder / "task.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return read_task(file)


async def run(task: Task, path: Path, *, at_once: int = 8) -> tuple[list[Outcome], int]:
    """Returns the outcomes, and how many items were computed."""
    computed = 0

    def advance(count: int) -> None:
        nonlocal computed
        computed += count

    async with AsyncLLM.opened_by(toy()) as llm:
        state = StateFile(path, HEADER)
        found = await evaluate(llm, task, state, at_once=at_once, advance=advance)
    return list(found), computed


async def test_choices_by_direct_scores(tmp_path: Path) -> None:
    task = task_of(tmp_path, ITEMS)
    outcomes, computed = await run(task, tmp_path / "state")
    assert computed == len(ITEMS)
    async with AsyncLLM.opened_by(toy()) as llm:
        for i, (item, outcome) in enumerate(zip(ITEMS, outcomes, strict=True)):
            assert isinstance(outcome, ChoiceOutcome)
            scores = await llm.score_continuations(str(item["context"]), list(item["choices"]))  # type: ignore[call-overload]
            values = [score.logprob for score in scores]
            assert (outcome.item, outcome.logprobs) == (digest_of(task.items[i]), values)
            sizes = {"acc": (1, 1, 1), "acc_norm": (7, 4, 3), "acc_bytes": (7, 4, 7)}
            for name, lengths in sizes.items():
                normed = [v / size for v, size in zip(values, lengths, strict=True)]
                assert outcome.met[name] == (normed.index(max(normed)) == item["label"])


async def test_generations_are_greedy_up_to_a_stop(tmp_path: Path) -> None:
    outcomes, _ = await run(task_of(tmp_path, ASKED), tmp_path / "state")
    async with AsyncLLM.opened_by(toy()) as llm:
        wanted = await llm.complete("Once", stop=["e", " t"], max_tokens=9, temperature=0)
    first, second = outcomes
    assert isinstance(first, GenerationOutcome)
    assert first.text == wanted.text
    assert set(first.met) == {"exact_match", "exact_match_stripped"}
    assert set(second.met) == {*first.met, "regex_match"}


async def test_a_run_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    task = task_of(tmp_path, ITEMS)
    whole, _ = await run(task, tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    # Killed in the middle of a line.
    broken = tmp_path / "broken"
    broken.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again, computed = await run(task, broken, at_once=3)
    assert again == whole
    assert computed == len(ITEMS) - 4
    assert len(broken.read_bytes().splitlines()) == len(ITEMS) + 1
    _, computed = await run(task, broken)
    assert computed == 0


def test_a_state_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    StateFile(path, HEADER)
    other = RunHeader("task", "other", "fp_0000000000")
    with pytest.raises(ConfigError, match="its model is 'toy', not 'other'"):
        StateFile(path, other)
    for text in ("# no state\n", '{"a": %s}\n' % ("[" * 10**5 + "]" * 10**5)):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no state of an evaluation"):
            StateFile(path, HEADER)
    with pytest.raises(ConfigError, match="cannot be used"):
        StateFile(tmp_path / "none" / "state", HEADER)


async def test_a_task_that_changes_keeps_what_was_computed(tmp_path: Path) -> None:
    """Items may be added, mended, left out and moved; equal ones are computed once."""
    path = tmp_path / "state"
    whole, _ = await run(task_of(tmp_path, ITEMS), path)
    mended = {**ITEMS[3], "choices": [" a time", " the", " end"]}
    changed = [{**ITEMS[5], "more": 1}, mended, *ITEMS[8:], mended, *ITEMS[:2]]
    outcomes, computed = await run(task_of(tmp_path, changed), path)
    assert computed == 2
    assert [outcomes[0], *outcomes[2:6], *outcomes[7:]] == [whole[5], *whole[8:], *whole[:2]]
    assert outcomes[1] == outcomes[6]
    assert await run(task_of(tmp_path, ITEMS), path) == (whole, 0)
    # Whether it is right is a part of an item.
    assert not whole[0].met["acc"]
    again, computed = await run(task_of(tmp_path, [{**ITEMS[0], "label": 1}]), path)
    assert computed == 1
    assert again[0].met["acc"]


async def test_a_full_disk_loses_no_outcome(tmp_path: Path) -> None:
    """What was written down stays, and the failure is one line."""
    task, path = task_of(tmp_path, ITEMS), tmp_path / "state"
    await run(task, path)
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:5])
    path.write_bytes(kept + b"half a li")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) - 1, limits[1]))
    try:
        with pytest.raises(ConfigError, match="state: cannot be written: File too large"):
            await run(task, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept
    _, computed = await run(task, path)
    assert computed == len(ITEMS) - 4


async def test_an_item_that_does_not_fit_is_named(tmp_path: Path) -> None:
    task = task_of(tmp_path, [*ITEMS[:2], {**ITEMS[0], "context": "a" * 300}])
    with pytest.raises(ConfigError, match="item 3: This model's maximum context length is 256"):
        await run(task, tmp_path / "state")
    task = task_of(tmp_path, [{**ASKED[0], "until": list("abcdefghijklmnopq")}])
    with pytest.raises(ConfigError, match=r"item 1: .*'until'"):
        await run(task, tmp_path / "state")


def outcome(*, met: bool) -> Outcome:
    values = [-1.0, -2.0] if met else [-2.0, -1.0]
    return ChoiceOutcome("digest", values, [True, False], {"acc": met, "acc_norm": True})


def test_the_report_of_two_models(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    items: list[dict[str, object]] = [
        {"context": hostile, "choices": [f"{hostile}!", "no"], "label": 0} for _ in range(4)
    ]
    task = task_of(tmp_path, items)
    runs = [
        ModelRun("good", "fp_1", [outcome(met=True) for _ in range(4)]),
        ModelRun(hostile, "fp_2", [outcome(met=i == 0) for i in range(4)]),
    ]
    summary = summarize(task.name, task.digest, runs)
    assert summary.models["good"]["acc"].value == 1
    assert summary.models[hostile]["acc"].value == 0.25
    (pair,) = summary.pairs
    test = pair.tests["acc"]
    assert (test.both, test.only_first, test.only_second, test.neither) == (1, 3, 0, 0)
    assert test.p_value == 0.25
    page = report(task, runs, summary)
    assert "<img" not in page
    assert page.count("<rect") == 4
    assert page.count("&lt;img src=x onerror=alert(1)&gt;!") >= 3
    assert "0.2500" in page


def test_the_report_lists_what_its_deciding_measure_calls_wrong(tmp_path: Path) -> None:
    """Where a regex finds the answer, the whole text is no target, and not wrong for that."""
    asked: list[dict[str, object]] = [
        {"prompt": "found", "target": "4", "regex": "[0-9]"},
        {"prompt": "lost", "target": "4", "regex": "[0-9]"},
        {"prompt": "whole", "target": "4"},
        {"prompt": "other", "target": "4"},
    ]
    task = task_of(tmp_path, asked)
    said = ("is 4.", "is 5.", "4", "is 4.")
    outcomes: list[Outcome] = [
        judge_text(item, text)
        for item, text in zip(task.items, said, strict=True)
        if isinstance(item, GenerationItem)
    ]
    runs = [ModelRun("toy", "fp_1", outcomes)]
    page = report(task, runs, summarize(task.name, task.digest, runs))
    _, _, listed = page.partition("answered wrong</h2>")
    assert "By regex_match and exact_match." in listed
    assert [name for name in ("found", "lost", "whole", "other") if f"\n{name}<" in listed] == [
        "lost", "other"
    ]  # fmt: skip
