"""What is missing between a prompt and a suffix."""

from __future__ import annotations

import pytest

from afterword.completion.units import ends_sentence, missing_unit


@pytest.mark.parametrize(
    ("before", "suffix", "unit"),
    [
        ("if a:\n", "\n    b", "lines"),
        ("He sat.\n", "\nShe stood.", "lines"),
        ("He sat.", " She stood.", "sentences"),
        ('He said " no . "', ' " Why ? "', "sentences"),
        ("Er saß!", "\n1924 ging er.", "sentences"),
        ("Es así.", " ¿Quién es?", "sentences"),
        ("他坐下。", "她站着。", "sentences"),
        ("He sat", " She stood.", "part"),
        ("He sat.", " and stood.", "part"),
        ("a = 1.", ")", "part"),
        ("", " She", "part"),
    ],
)
def test_units(before: str, suffix: str, unit: str) -> None:
    assert missing_unit(before, suffix) == unit


def test_a_sentence_has_a_word() -> None:
    assert ends_sentence(" He sat . ”")
    assert ends_sentence("他坐下。")
    for text in (" .", " He", "2.", " Shiren , T."):
        assert not ends_sentence(text)
