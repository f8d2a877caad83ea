"""Which form of a file to run, by what was measured: pure, so that the rule can be read and tested.

Speed is the geometric mean of three ratios to the file as it is: prefill, one stream, many. A form
has to reach ``LEAST_GAIN`` by it, and ``LEAST_RATIO`` in each of the three; it may be ``MARGIN_KL``
nats farther from the float32 weights than the file as it is; and it has to keep the promise that
answers do not depend on the batch, where that is wanted. The fastest of those is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from afterword.engine.llama.weights import AS_IS

LEAST_GAIN = 1.05
LEAST_RATIO = 0.6
MARGIN_KL = 0.002
PASSAGE_TOKENS = 2000


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second.

    Of the file as it is, the best of some repeats: other programs only ever make it slower. Of a
    form, what the file has times the ratio of the two, measured in turn.

    ``few`` and ``scoring`` are None where little time was to be spent.
    """

    prefill: float
    one: float
    many: float
    few: float | None = None
    scoring: float | None = None


class Fidelity(msgspec.Struct, frozen=True):
    """Means over positions: divergence in nats, and how often the likeliest token is the same."""

    kl: float
    agreement: float
    positions: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a form; None is what was not measured.

    ``memory_bytes`` is resident with the weights read and many short streams. ``left_out`` says
    why a form was not measured at all.
    """

    batch_invariant: bool = False
    speeds: Speeds | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    fidelity: Fidelity | None = None
    left_out: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """A form, and why it was taken."""

    form: str
    why: str


def ranked(found: Mapping[str, Figures], *, exact: bool) -> Sequence[str]:
    """Forms that are enough faster than the file as it is, fastest first."""
    gains: dict[str, float] = {}
    for form, figures in found.items():
        if form == AS_IS or (exact and not figures.batch_invariant):
            continue
        ratios = _ratios(figures, found[AS_IS])
        if ratios and min(ratios) >= LEAST_RATIO and _mean(ratios) >= LEAST_GAIN:
            gains[form] = _mean(ratios)
    return sorted(gains, key=lambda form: (-gains[form], form))


def is_faithful(form: Fidelity | None, as_is: Fidelity | None) -> bool:
    """Whether a form is within the bound; what was not measured is not."""
    return form is not None and as_is is not None and form.kl <= as_is.kl + MARGIN_KL


def choose(found: Mapping[str, Figures], *, exact: bool) -> Choice:
    """The form to run. ``found`` has ``as-is``; ``exact`` wants the promise kept."""
    as_is = found[AS_IS]
    for form in ranked(found, exact=exact):
        ours, base = found[form].fidelity, as_is.fidelity
        if ours is not None and base is not None and is_faithful(ours, base):
            ratios = _ratios(found[form], as_is)
            prefill, one, many = ratios
            return Choice(
                form,
                f"{_mean(ratios):.2f} times the speed of the file as it is (prefill {prefill:.2f}, "
                f"one stream {one:.2f}, many {many:.2f}); KL from float32 {ours.kl:.4f}, the "
                f"file's own {base.kl:.4f}",
            )
    return Choice(AS_IS, "no form that may be chosen is faster here and faithful enough")


def gain(figures: Figures, as_is: Figures) -> float | None:
    """The geometric mean of the three ratios to the file as it is."""
    ratios = _ratios(figures, as_is)
    return _mean(ratios) if ratios else None


def _ratios(figures: Figures, as_is: Figures) -> Sequence[float]:
    """Prefill, one stream, many; empty where something was not measured."""
    ours, base = figures.speeds, as_is.speeds
    if ours is None or base is None:
        return ()
    return (ours.prefill / base.prefill, ours.one / base.one, ours.many / base.many)


def _mean(ratios: Sequence[float]) -> float:
    prefill, one, many = ratios
    return float((prefill * one * many) ** (1 / 3))
