"""Files of tasks: what is read, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword import ConfigError
from afterword.evaluation.outcomes import judge_text
from afterword.evaluation.tasks import ChoiceItem, GenerationItem, read_task

CHOICE = '{"context": "a", "choices": [" b", " c"], "label": 1, "more": 1}'
GENERATION = '{"prompt": "a", "until": "\\n", "target": "b"}'
DEEP = '{"context": "a", "choices": [], "label": 0, "more": %s}' % ("[" * 10**5 + "]" * 10**5)


def written(folder: Path, *lines: str) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_items(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, CHOICE, "", CHOICE))
    assert (task.name, task.kind, len(task.items)) == ("task", ChoiceItem, 2)
    assert task.items[0] == ChoiceItem("a", [" b", " c"], 1)
    assert len(read_task(tmp_path / "task.jsonl", first=1).items) == 1
    (item,) = read_task(written(tmp_path, GENERATION)).items
    assert isinstance(item, GenerationItem)
    assert (item.stops, item.targets, item.max_tokens) == (["\n"], ["b"], 256)
    (item,) = read_task(written(tmp_path, '{"prompt": "a", "target": "b", "max_tokens": 1}')).items
    assert item == GenerationItem("a", "b", max_tokens=1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items"),
        (["[]"], ":1: is no JSON object"),
        (['{"a": 1}'], ":1: is neither multiple choice"),
        ([DEEP], ":1: is no JSON object: "),
        ([CHOICE, DEEP], ":2: is no JSON object: "),
        ([CHOICE, "{"], ":2: is no JSON object: Input data was truncated"),
        ([CHOICE, GENERATION], "`context`; the first item is of another kind"),
        (
            [CHOICE, '{"context": "a", "choices": ["b"], "label": 1}'],
            ":2: label 1 is none of the 1",
        ),
        (['{"context": "a", "choices": ["b", ""], "label": 0}'], ":1: a choice is empty"),
        (['{"prompt": "a", "target": []}'], ":1: target is empty"),
        (['{"prompt": "a", "target": "b", "max_tokens": 0}'], "max_tokens 0 is less than 1"),
        (['{"prompt": "a", "target": "b", "until": ["x", ""]}'], ":1: until has an empty string"),
        (["", "", "{"], ":3: is no JSON object"),
        (['{"prompt": "a", "target": "b", "regex": "("}'], ":1: regex: missing"),
        ([CHOICE, CHOICE.replace("more", "label")], ":2: the key 'label' is there twice"),
        (['{"prompt": "a", "target": "b", "x": {"y": 1, "y": 2}}'], ":1: the key 'y' is there"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, lines: list[str], message: str
) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        read_task(written(tmp_path, *lines))


def test_a_file_of_another_system(tmp_path: Path) -> None:
    """With a byte order mark and carriage returns."""
    file = tmp_path / "task.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + f"{CHOICE}\r\n\r\n{CHOICE}\r\n".encode())
    assert read_task(file).items == [ChoiceItem("a", [" b", " c"], 1)] * 2


@pytest.mark.parametrize("lines", [['{"caf\xe9": "a"}'], [CHOICE, '{"context": "caf\xe9"}']])
def test_a_file_in_another_encoding(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes("\n".join(lines).encode("cp1252"))
    with pytest.raises(ConfigError, match=f"task.jsonl:{len(lines)}: is not text in UTF-8"):
        read_task(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_task(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "regex", "met"),
    [
        ("b", None, [True, True]),
        (" b\n", None, [False, True]),
        ("it is b.", r"is (\w+)", [False, False, True]),
        ("b", r"\w", [True, True, True]),
        ("c", r"\d", [False, False, False]),
        ("it is b .", r"is(.*)\.", [False, False, True]),
        ("so c or b", r"(d)|c or (b)", [False, False, True]),
        ("b or c", r"(\w) or (\w)", [False, False, True]),
        ("so c", r"(d)?(e)?", [False, False, False]),
        ("c", r"(d)?", [False, False, False]),
        ("x", r"[xy]", [True, True, True]),
    ],
)
def test_measures_of_generation(text: str, regex: str | None, met: list[bool]) -> None:
    item = GenerationItem("a", ["x", "b"], regex=regex)
    assert list(judge_text(item, text).met.values()) == met
