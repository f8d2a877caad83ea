"""Messages that ``docs/troubleshooting.md`` explains are those that the program gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
# A message is in backticks in a table, and has three words at least. What differs from case to
# case is "…", a number or a name in capitals there, and a value in braces in the source.
MESSAGE = re.compile(r"`+([^`]*(?:`X`)?[^`]*)`+")
VARIABLE = re.compile(r"…|: |\b\d[\w.]*|`X`|'\w+'|\b[A-Z_]{4,}(?:_…)?\b|sk-\S+|\(request id.*")
LEAST_WORDS = 3
# Of the operating system, of click, and of llama.cpp.
OTHERS = ("Address already in use", "Permission denied", "No such option", "insufficient memory")


def sources() -> str:
    """All of the program, with literals that go on in the next line in one piece."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "Makefile"]
    text = "\n".join(file.read_text() for file in sorted(files))
    return re.sub(r'"\s*\n\s*f?"', "", text).replace("`", "")


SOURCES = sources()


def messages() -> list[str]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in row.split(" | ")[:-1]]
    found = [message for cell in cells for message in MESSAGE.findall(cell)]
    return [message for message in found if len(message.split()) >= LEAST_WORDS]


@pytest.mark.parametrize("message", messages())
def test_a_message_is_the_programs(message: str) -> None:
    for part in VARIABLE.split(message):
        # Of a part the words that are surely literal: those between its signs.
        words = part.replace("`", "").strip(" .:;()/%,")
        for other in OTHERS:
            words = words.replace(other, "").strip(" .:;()/%,")
        if len(words.split()) >= LEAST_WORDS:
            assert words in SOURCES, words


def test_there_are_messages() -> None:
    assert len(messages()) > 30
