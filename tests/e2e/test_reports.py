"""The report of an evaluation, as a browser shows it."""

from __future__ import annotations

import itertools
from pathlib import Path

from playwright.sync_api import Browser

from afterword.evaluation.comparison import ModelRun, summarize
from afterword.evaluation.outcomes import judge_text
from afterword.evaluation.report import report
from afterword.evaluation.tasks import GenerationItem, Task

MODELS = (
    "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
    "通义千问代码模型一点五十亿参数指令版",
    "WWWW" * 9,
)
ITEM = GenerationItem("\n\n\u05e9\u05dc: 1 + 1 =", target="2")


def test_labels_have_room_and_texts_are_whole(browser: Browser, tmp_path: Path) -> None:
    task = Task("task", "0" * 64, GenerationItem, [ITEM, ITEM])
    runs = [ModelRun(name, "fp_0", [judge_text(ITEM, text) for text in ("\n2", "2")])
            for name in MODELS]  # fmt: skip
    file = tmp_path / "report.html"
    file.write_text(report(task, runs, summarize("task", task.digest, runs)), "utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    places = page.evaluate(
        """() => [...document.querySelectorAll("svg text")].map((one) => {
            const { x, y, width, height } = one.getBBox();
            return [x, y, x + width, y + height];
        })"""
    )
    assert len(places) > 2 * len(MODELS)
    assert all(left >= 0 and top >= 0 for left, top, _, _ in places), places
    # None lies on another.
    for one, other in itertools.combinations(places, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)
    cells = (
        page.locator("table")
        .last.locator("pre")
        .evaluate_all(
            "(all) => all.map((one) => [one.textContent, getComputedStyle(one).direction])"
        )
    )
    assert cells[1] == [ITEM.prompt, "rtl"]
    assert cells[3] == ["\n2", "ltr"]
    page.close()
