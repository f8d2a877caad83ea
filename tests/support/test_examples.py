"""How laws are tried: as often as the profile says, however slow the machine is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from support.examples import examples


@pytest.mark.parametrize("name", ["whole", "fast"])
def test_no_profile_depends_on_speed(name: str) -> None:
    profile = settings.get_profile(name)
    assert profile.deadline is None
    assert HealthCheck.too_slow in profile.suppress_health_check


def test_a_law_begins_with_the_profile_of_the_run() -> None:
    now = settings()
    assert HealthCheck.too_slow in now.suppress_health_check
    assert examples(200) == 2 * now.max_examples
