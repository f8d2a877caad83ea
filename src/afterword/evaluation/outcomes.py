"""What a model made of an item, and which measures it meets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from afterword.evaluation.tasks import ChoiceItem, GenerationItem, digest_of
from afterword.library.answers import ContinuationScore

CHOICE_MEASURES = ("acc", "acc_norm", "acc_bytes")
"""Of multiple choice: by log-probability, by that per character, and by that per byte."""
GENERATION_MEASURES = ("exact_match", "exact_match_stripped", "regex_match")
"""Of generation: equal, equal but for white space around, and equal to what the regex finds."""


class ChoiceOutcome(msgspec.Struct, frozen=True, tag="choice"):
    """The log-probability of each choice, and whether it is greedy. ``met`` says each measure.

    ``item`` is the item's digest.
    """

    item: str
    logprobs: list[float]
    greedy: list[bool]
    met: dict[str, bool]


class GenerationOutcome(msgspec.Struct, frozen=True, tag="generation"):
    """The text that a model wrote. ``met`` says each measure that the item has.

    ``item`` is the item's digest.
    """

    item: str
    text: str
    met: dict[str, bool]


Outcome: TypeAlias = ChoiceOutcome | GenerationOutcome


def judge_choices(item: ChoiceItem, scores: Sequence[ContinuationScore]) -> ChoiceOutcome:
    """Returns the outcome of an item; the first choice wins a tie.

    Source: lm-evaluation-harness 0.4.13, ``ConfigurableTask.process_results``.
    """
    values = [score.logprob for score in scores]
    by_character = [value / len(text) for value, text in zip(values, item.choices, strict=True)]
    by_byte = [value / len(text.encode()) for value, text in zip(values, item.choices, strict=True)]
    met = {
        name: best(each) == item.label
        for name, each in zip(CHOICE_MEASURES, (values, by_character, by_byte), strict=True)
    }
    return ChoiceOutcome(digest_of(item), values, [score.is_greedy for score in scores], met)


def best(values: Sequence[float]) -> int:
    """Returns the place of the largest value, the first of several."""
    return max(range(len(values)), key=values.__getitem__)


def judge_text(item: GenerationItem, text: str) -> GenerationOutcome:
    """Returns the outcome of an item for a text that was written."""
    met: dict[str, bool] = {
        "exact_match": text in item.targets,
        "exact_match_stripped": text.strip() in [target.strip() for target in item.targets],
    }
    if item.regex is not None:
        met["regex_match"] = extracted(item.regex, text) in item.targets
    return GenerationOutcome(digest_of(item), text, met)


def extracted(regex: str, text: str) -> str | None:
    """Returns what a regex finds in a text, without white space around it; None for nothing.

    It is the group, the first of several that is not empty, or all of a regex without groups.
    Source: lm-evaluation-harness 0.4.13, ``RegexFilter``.
    """
    found = re.search(regex, text)
    if found is None:
        return None
    if found.re.groups < 2:
        return (found[found.re.groups] or "").strip()
    return next((group.strip() for group in found.groups() if group), None)


def deciding_measure(outcome: Outcome) -> str:
    """Returns the measure by which an item counts as answered right: by its regex, if it has one.

    Whole texts are seldom a target where a regex finds the answer in them.
    """
    return next(name for name in ("acc", "regex_match", "exact_match") if name in outcome.met)


def measures_of(outcomes: Sequence[Outcome]) -> Mapping[str, list[bool]]:
    """Returns for each measure whether each outcome that has it meets it, in their order."""
    found: dict[str, list[bool]] = {}
    for name in (*CHOICE_MEASURES, *GENERATION_MEASURES):
        values = [outcome.met[name] for outcome in outcomes if name in outcome.met]
        if values:
            found[name] = values
    return found
