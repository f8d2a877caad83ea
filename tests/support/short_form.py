"""Which tests the short form of ``make test-gpu`` keeps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from support.rule_numbers import NUMBER


def short_form(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Returns the tests of the short form, in their order.

    Of the contract, these are the first test of each rule that a model of the fixture answers. Of
    other folders, all but those with the marker ``whole``.
    """
    tried: set[str] = set()
    kept = []
    for item in items:
        if item.path.parent.name == "contract":
            mine = set(NUMBER.findall(item.name.partition("[")[0]))
            computes = "client" in getattr(item, "fixturenames", ())
            if not computes or mine <= tried or item.get_closest_marker("slow"):
                continue
            tried |= mine
        elif item.get_closest_marker("whole"):
            continue
        kept.append(item)
    return kept
