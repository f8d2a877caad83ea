"""Every rule number that code, tests and documents use is defined in ``docs/contract.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from support.rule_numbers import NUMBER

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONTRACT = DOCS / "contract.md"
PLACES = ("src", "tests", "docs", "benchmarks")
SUFFIXES = {".py", ".md", ".js", ".mjs", ".css", ".html", ".yaml"}
FORMATS = {"F16", "F32", "F64"}
# A link to a rule is named after it; a key of the keyboard is marked as one.
LINK = re.compile(r"\[([A-Z]\d+)\]\((?:[\w./]*contract\.md)?#([a-z]\d+)\)")
KEY = re.compile(r"<kbd>.*?</kbd>")
# Their headings and reasons name rules without a link.
UNLINKED = ("architecture.md", "decisions")


def anchors() -> list[str]:
    return re.findall(r'<a id="([a-z]\d+)"></a>', CONTRACT.read_text())


def pages() -> Iterator[Path]:
    """The documents, but for the contract and those in ``UNLINKED``."""
    for page in sorted(DOCS.rglob("*.md")):
        if page != CONTRACT and page.relative_to(DOCS).parts[0] not in UNLINKED:
            yield page


def test_the_pattern_knows_a_rule() -> None:
    rules = "test_R4_H12_limits (D1, D2) R1-R17 H2; L8."
    assert NUMBER.findall(rules) == ["R4", "H12", "D1", "D2", "R1", "R17", "H2", "L8"]
    assert not NUMBER.findall("S101 H100 Q8_0 bf16 F0 T5 IQ4_NL \\xE2 AVX2 E501 Falcon-H1")


def test_every_number_is_defined() -> None:
    defined = {anchor.upper() for anchor in anchors()} | FORMATS
    unknown = {
        (str(file.relative_to(ROOT)), number)
        for place in PLACES
        for file in sorted((ROOT / place).rglob("*"))
        if file.suffix in SUFFIXES and file != Path(__file__)
        for number in NUMBER.findall(file.read_text())
        if number not in defined
    }
    assert not unknown


def test_every_anchor_is_defined_once_and_named() -> None:
    assert len(anchors()) == len(set(anchors()))
    for anchor in anchors():
        following = CONTRACT.read_text().partition(f'<a id="{anchor}"></a>')[2]
        assert following.lstrip("*").startswith(anchor.upper())


def test_links_lead_to_the_rule_that_they_name() -> None:
    for page in DOCS.rglob("*.md"):
        for name, target in LINK.findall(page.read_text()):
            assert target == name.lower(), page
            assert target in anchors(), page


def test_documents_link_the_rules_that_they_name() -> None:
    for page in pages():
        text = KEY.sub("", LINK.sub("", page.read_text()))
        assert set(NUMBER.findall(text)) <= FORMATS, page
