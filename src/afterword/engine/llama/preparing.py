"""Prepares a file's weights for this machine: the form that was asked for, or the one found best.

What ``auto`` found is kept beside the converted files, by everything that it depends on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import CHANGES
from afterword.engine.llama.child import QUICK, THOROUGH
from afterword.engine.llama.examination import Examination, Subject, converter
from afterword.engine.llama.gguf import Header
from afterword.engine.llama.machine import processor
from afterword.engine.llama.verdict import Choice, Fidelity, Figures, is_faithful, ranked
from afterword.engine.llama.weights import (
    AS_IS,
    FORMS,
    LIBRARY_VERSION,
    UNCHANGED,
    Weights,
    WeightsFolder,
    Workshop,
)

_log = logging.getLogger("afterword.weights")
_MEMORY_STEP = 2**28
"""Memory differs a little from one start of a machine to the next."""
_RULE = 2
"""Raised whenever the rule or what it is fed may decide otherwise."""


class Prepared(msgspec.Struct, frozen=True):
    """The file to load, and what it is."""

    path: Path
    weights: Weights


class Outcome(msgspec.Struct, frozen=True):
    """What ``auto`` found, as it is kept."""

    choice: Choice
    figures: dict[str, Figures]


class _Known(msgspec.Struct, frozen=True):
    """Fidelity that was measured for a release: of a file's forms with a version of the library."""

    digest: str
    library: str
    fidelity: dict[str, Fidelity]


def prepare(
    folder: WeightsFolder, subject: Subject, wanted: str, say: Callable[[str], None]
) -> Prepared:
    """The file in the form ``wanted``: ``as-is``, ``auto`` or a form; ``say`` tells what is long.

    Raises ``ConfigError`` where a form that was named cannot be had; ``auto`` is content with the
    file as it is then.
    """
    folder.sweep()
    if wanted == AS_IS:
        return Prepared(subject.path, UNCHANGED)
    if wanted != "auto":
        return _in_form(folder, subject, wanted, say)
    try:
        outcome = recall(folder, subject)
        if outcome is None:
            with folder.work() as shop:
                # Another process may have found it while this one waited.
                outcome = recall(folder, subject) or _find_out(folder, shop, subject, say)
        choice = outcome.choice
        prepared = _in_form(folder, subject, choice.form, say)
    except ConfigError as error:
        _log.warning("%s is served as it is: %s", subject.path.name, error)
        return Prepared(subject.path, UNCHANGED)
    _log.info("weights of %s: %s: %s", subject.path.name, choice.form, choice.why)
    return prepared


def forms_of(header: Header) -> Sequence[str]:
    """The forms that a file is not in already."""
    return [form for form in FORMS if set(header.formats) - {"F32"} != {form.upper()}]


def main_format(header: Header) -> str:
    """The format of most of a file's weights."""
    return max(header.formats, key=lambda name: header.formats[name])


def _in_form(
    folder: WeightsFolder, subject: Subject, form: str, say: Callable[[str], None]
) -> Prepared:
    if form not in forms_of(subject.header):
        return Prepared(subject.path, UNCHANGED)
    path = folder.find(subject.digest, form)
    if path is None:
        say(f"converting {subject.path.name} to {form}, once")
        with folder.work() as shop:
            path = shop.convert(subject.path, subject.digest, form, converter(subject.threads))
    return Prepared(path, Weights(form, main_format(subject.header)))


def recall(folder: WeightsFolder, subject: Subject) -> Outcome | None:
    """What was found out here before, if nothing that it depends on has changed."""
    return folder.notes.read("auto", _origin(subject), Outcome)


def remember(folder: WeightsFolder, subject: Subject, outcome: Outcome) -> None:
    """Keep what was found out. The folder's lock must be held."""
    folder.notes.write("auto", _origin(subject), outcome)


def _origin(subject: Subject) -> Sequence[object]:
    return (
        subject.digest, LIBRARY_VERSION, processor(), subject.threads, subject.exact,
        subject.memory_bytes // _MEMORY_STEP, _RULE, CHANGES,
    )  # fmt: skip


def known_fidelity(digest: str) -> Mapping[str, Fidelity]:
    """What was measured for the release of this file's forms, if it was with this library."""
    text = files(__package__).joinpath("fidelity.json").read_bytes()
    known = msgspec.json.decode(text, type=_Known)
    same = (known.digest, known.library) == (digest, LIBRARY_VERSION)
    return known.fidelity if same else {}


def examine(
    folder: WeightsFolder, subject: Subject, say: Callable[[str], None]
) -> tuple[Mapping[str, Figures], Choice]:
    """Measure every form thoroughly, those that cannot be chosen too; ``auto`` will go by it.

    Raises ``ConfigError`` where the file itself cannot be measured.
    """
    with folder.work() as shop, Examination(folder, shop, subject, say) as look:
        for form in (AS_IS, *forms_of(subject.header)):
            look.survey(form, THOROUGH, promised=False)
        measured = [form for form, figures in look.found.items() if figures.speeds]
        look.compare(measured[1:], until_faithful=False)
        choice = look.choose()
        look.keep(choice.form)
        remember(folder, subject, Outcome(choice, look.found))
    return look.found, choice


def _find_out(
    folder: WeightsFolder,
    shop: Workshop,
    subject: Subject,
    say: Callable[[str], None],
) -> Outcome:
    """Measure what is needed to choose, and no more: what cannot be chosen is not compared."""
    say(f"finding the fastest form of {subject.path.name} for this machine, once")
    known = known_fidelity(subject.digest)
    with Examination(folder, shop, subject, _log.info) as look:
        look.survey(AS_IS, QUICK, promised=False)
        for form in forms_of(subject.header):
            if form in known and not is_faithful(known[form], known.get(AS_IS)):
                look.found[form] = Figures(fidelity=known[form], left_out="not faithful enough")
            else:
                look.survey(form, QUICK, promised=subject.exact)
        for form in look.found:
            if form in known:
                look.learn(form, known[form])
        candidates = ranked(look.found, exact=subject.exact)
        if any(look.found[form].fidelity is None for form in candidates):
            look.compare(candidates, until_faithful=True)
        choice = look.choose()
        look.keep(choice.form)
    outcome = Outcome(choice, look.found)
    remember(folder, subject, outcome)
    return outcome
