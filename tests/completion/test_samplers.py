"""llama-server's lists of samplers: honoured if they mean what is done here, else refused."""

from __future__ import annotations

import msgspec
import pytest

from afterword.completion.samplers import Stages, chosen_stages
from afterword.core.errors import InvalidRequest

ALL = Stages(
    temperature=0.8, top_k=40, top_p=0.9, min_p=0.1, typical_p=0.9, xtc_probability=0.5,
    repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5, dry_multiplier=0.8,
)  # fmt: skip


def stages(**on: float) -> Stages:
    return msgspec.structs.replace(Stages(), **on)


def test_F5_without_a_list_all_stages_are_on() -> None:
    assert chosen_stages(ALL, None) == (ALL, False)


def test_F5_what_is_not_listed_is_off() -> None:
    assert chosen_stages(ALL, ()) == (Stages(), False)
    assert chosen_stages(ALL, ("top_k", "top_p")) == (stages(top_k=40, top_p=0.9), False)
    assert chosen_stages(ALL, ("top_k", "top_p", "infill")) == (
        stages(top_k=40, top_p=0.9),
        True,
    )


@pytest.mark.parametrize(
    "names",
    [
        ("penalties", "dry", "temperature", "top_k", "typ_p", "top_p", "min_p", "xtc"),
        ("top_k", "temperature", "top_p"),
        ("temperature", "top_p"),
        ("top_n_sigma", "top_k"),
        ("temp", "top_k", "typical_p"),
    ],
)
def test_F5_orders_that_mean_the_same(names: tuple[str, ...]) -> None:
    chosen_stages(ALL, names)


@pytest.mark.parametrize(
    "names",
    [
        ("top_p", "top_k"),
        ("top_p", "temperature"),
        ("min_p", "temperature"),
        ("top_k", "dry"),
        ("xtc", "min_p"),
        ("top_k", "top_k"),
        ("temperature", "temperature"),
        ("infill", "top_k"),
        ("infill",),
        ("top_k", "infill", "temperature"),
        ("mirostat",),
        ("",),
    ],
)
def test_F5_other_orders_and_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chosen_stages(ALL, names)
    assert caught.value.param == "samplers"


def test_F5_a_stage_that_is_off_may_stand_anywhere() -> None:
    default = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc",
               "temperature")  # fmt: skip
    chosen_stages(stages(top_k=40, top_p=0.9), default)
    greedy = stages(temperature=0, top_k=40, top_p=0.9, min_p=0.1)
    assert chosen_stages(greedy, default) == (greedy, False)
    with pytest.raises(InvalidRequest):
        chosen_stages(stages(temperature=0, typical_p=0.5), default)


@pytest.mark.parametrize("top_k", [0, 257])
def test_F5_the_infill_filter_needs_few_candidates(top_k: int) -> None:
    with pytest.raises(InvalidRequest, match="top_k"):
        chosen_stages(stages(top_k=top_k), ("top_k", "infill"))
