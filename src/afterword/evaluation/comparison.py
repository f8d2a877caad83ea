"""Figures of models on one task, and of each pair of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec

from afterword.evaluation.outcomes import Outcome, measures_of
from afterword.evaluation.statistics import PairedTest, Share, mcnemar, share


class ModelRun(msgspec.Struct, frozen=True):
    """A model and its outcome for each item of a task, in order."""

    model: str
    fingerprint: str
    outcomes: Sequence[Outcome]


class Pairing(msgspec.Struct, frozen=True):
    """Two models, and the paired test for each measure that both have."""

    first: str
    second: str
    tests: Mapping[str, PairedTest]


class Summary(msgspec.Struct, frozen=True):
    """All figures of a task: for each model each measure, and for each pair of models a test."""

    task: str
    task_digest: str
    items: int
    models: Mapping[str, Mapping[str, Share]]
    pairs: Sequence[Pairing]


def summarize(task: str, digest: str, runs: Sequence[ModelRun]) -> Summary:
    """Returns the figures of runs over the same items."""
    met = {run.model: measures_of(run.outcomes) for run in runs}
    models = {
        model: {name: share(values) for name, values in measures.items()}
        for model, measures in met.items()
    }
    pairs = [
        Pairing(one, two, {name: mcnemar(met[one][name], met[two][name]) for name in met[one]})
        for one, two in combinations(met, 2)
    ]
    return Summary(task, digest, len(runs[0].outcomes), models, pairs)
