"""Preparing a file: forms asked for, what ``auto`` measures, remembers and does without."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from afterword.core.errors import ConfigError
from afterword.engine.llama import examination, preparing
from afterword.engine.llama.child import Compare, Convert, Request, Survey, WriteReference
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.examination import Subject
from afterword.engine.llama.loading import EngineOptions
from afterword.engine.llama.machine import memory_limit
from afterword.engine.llama.parts import read_header
from afterword.engine.llama.preparing import known_fidelity, prepare
from afterword.engine.llama.survey import times_as_fast
from afterword.engine.llama.verdict import Fidelity, Figures, Speeds, is_faithful
from afterword.engine.llama.weights import UNCHANGED, WeightsFolder, most_bytes
from tiny_gguf import make_gguf

FASTER = {"as-is": 1.0, "q8_0": 2.0, "bf16": 3.0, "f16": 2.5, "q4_0": 4.0}
KL = {"as-is": 0.003, "q8_0": 0.004, "bf16": 0.0001, "f16": 0.0001, "q4_0": 0.3}
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> WeightsFolder:
    return WeightsFolder(tmp_path / "weights")


def subject_of(path: Path, *, exact: bool = True, memory_bytes: int = 1024 * MIB) -> Subject:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subject(
        path=path,
        digest=digest,
        header=read_header(path),
        threads=1,
        exact=exact,
        memory_bytes=memory_bytes,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "tiny.gguf")


class Laboratory:
    """Stands in for the child: figures by form, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.dependent: tuple[str, ...] = ("bf16",)

    def ask(self, request: Request, reply: type, descriptor: int) -> Any:
        match request:
            case Convert(_, destination, form):
                self.asked.append(f"convert {form}")
                Path(destination).write_bytes(form.encode())
                return None
            case Survey(path, promised=promised, beside=beside):
                form = self._form(path)
                self.asked.append(f"survey {form}")
                if form != "as-is":
                    assert beside is not None
                    assert self._form(beside.path) == "as-is"
                    assert beside.speeds == Speeds(prefill=1.0, one=1.0, many=1.0)
                if promised and form in self.dependent:
                    return Figures()
                rate = FASTER[form]
                speeds = Speeds(prefill=rate, one=rate, many=rate)
                return Figures(batch_invariant=form not in self.dependent, speeds=speeds)
            case WriteReference(_, rows):
                self.asked.append("reference")
                Path(rows).write_bytes(b"rows")
                return None
            case Compare(path, rows):
                assert Path(rows).read_bytes() == b"rows"
                form = self._form(path)
                self.asked.append(f"compare {form}")
                return Fidelity(KL[form], 0.9, 2000)

    @staticmethod
    def _form(path: str) -> str:
        text = Path(path).read_bytes()
        return "as-is" if text.startswith(b"GGUF") else text.decode()


@pytest.fixture
def laboratory(monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    made = Laboratory()
    monkeypatch.setattr(examination, "ask", made.ask)
    return made


@pytest.fixture
def say() -> Callable[[str], None]:
    return lambda _: None


def test_auto_takes_the_fastest_that_is_faithful_and_remembers(
    tiny: Path, folder: WeightsFolder, laboratory: Laboratory, say: Callable[[str], None]
) -> None:
    prepared = prepare(folder, subject_of(tiny), "auto", say)
    # q4_0 is fastest but far off, bf16 breaks the promise.
    assert prepared.weights.facts() == {"weights": "f16", "converted_from": "Q4_1"}
    assert [word for word in laboratory.asked if "compare" in word] == [
        "compare as-is", "compare q4_0", "compare f16",
    ]  # fmt: skip
    # What was not chosen is gone, the float32 file and its rows too.
    assert [kept.form for kept in folder.kept()] == ["f16"]
    assert len(list(folder.folder.iterdir())) == 3
    laboratory.asked.clear()
    assert prepare(folder, subject_of(tiny), "auto", say) == prepared
    assert laboratory.asked == []
    # Only what the outcome depends on brings another one.
    other = prepare(folder, subject_of(tiny, exact=False), "auto", say)
    assert other.weights.form == "bf16"


def test_a_form_that_was_removed_is_converted_again_by_the_remembered_choice(
    tiny: Path, folder: WeightsFolder, laboratory: Laboratory, say: Callable[[str], None]
) -> None:
    prepared = prepare(folder, subject_of(tiny), "auto", say)
    prepared.path.unlink()
    laboratory.asked.clear()
    assert prepare(folder, subject_of(tiny), "auto", say) == prepared
    assert laboratory.asked == ["convert f16"]


def test_auto_leaves_out_what_memory_has_no_room_for(
    tiny: Path, folder: WeightsFolder, laboratory: Laboratory, say: Callable[[str], None]
) -> None:
    """Without room for the float32 file nothing can be compared, so the file stays as it is."""
    subject = subject_of(tiny, memory_bytes=1000)
    prepared = prepare(folder, subject, "auto", say)
    assert prepared.weights == UNCHANGED
    assert laboratory.asked == ["survey as-is"]
    outcome = preparing.recall(folder, subject)
    assert outcome is not None
    assert (
        outcome.figures["q8_0"].left_out == "q8_0: its weights and the file's have no room at once"
    )


def test_what_cannot_be_compared_is_not_chosen_nor_measured_at_every_start(
    tiny: Path, folder: WeightsFolder, laboratory: Laboratory, say: Callable[[str], None]
) -> None:
    """There is room for the forms, but not for the float32 file."""
    memory_bytes = 2 * most_bytes(read_header(tiny), "bf16")
    subject = subject_of(tiny, memory_bytes=memory_bytes)
    assert prepare(folder, subject, "auto", say).weights == UNCHANGED
    assert "survey q8_0" in laboratory.asked
    outcome = preparing.recall(folder, subject)
    assert outcome is not None
    assert outcome.choice.why.startswith("forms could not be compared: f32: its weights may take")
    laboratory.asked.clear()
    assert prepare(folder, subject, "auto", say).weights == UNCHANGED
    assert laboratory.asked == []
    assert list(folder.kept()) == []


def test_auto_does_without_a_place_to_store(
    tiny: Path, tmp_path: Path, say: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    folder = WeightsFolder(tmp_path / "file" / "weights")
    assert prepare(folder, subject_of(tiny), "auto", say).weights == UNCHANGED
    assert "tiny.gguf is served as it is" in caplog.text
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(folder, subject_of(tiny), "q8_0", say)


def test_a_file_that_has_the_form_is_not_converted(
    tiny: Path, tmp_path: Path, folder: WeightsFolder, say: Callable[[str], None]
) -> None:
    made = prepare(folder, subject_of(tiny), "bf16", say)
    assert made.weights.form == "bf16"
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(made.path.read_bytes())
    assert prepare(folder, subject_of(copy), "bf16", say) == preparing.Prepared(copy, UNCHANGED)


def test_the_releases_figures_are_of_this_library_and_follow_the_rule() -> None:
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    known = known_fidelity(digest)
    assert set(known) == {"as-is", "q8_0", "bf16", "f16", "q4_0"}
    faithful = {form for form in known if is_faithful(known[form], known["as-is"])}
    assert faithful == {"as-is", "q8_0", "bf16", "f16"}
    assert known_fidelity("0" * 64) == {}


def test_the_memory_is_no_more_than_the_machines() -> None:
    assert 64 * MIB < memory_limit() <= 2**50


def test_what_was_converted_is_gone_after_an_end_without_a_choice(
    tiny: Path,
    folder: WeightsFolder,
    laboratory: Laboratory,
    say: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        # Had it been killed here, the next who comes would sweep these away.
        assert list(folder.folder.glob("*.part"))
        assert list(folder.kept()) == []
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "ranked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, subject_of(tiny), "auto", say)
    assert [path.name for path in folder.folder.iterdir()] == ["lock"]


class Machine:
    """A clock, and runs that take so many seconds of it; it becomes slower in the middle."""

    def __init__(self, slower_after: float) -> None:
        self.now = 0.0
        self._slower_after = slower_after

    def run(self, seconds: float) -> None:
        self.now += seconds * (3.0 if self.now > self._slower_after else 1.0)


@pytest.mark.parametrize("slower_after", [0.0, 0.7, 1.6, 2.3])
def test_a_machine_that_changes_its_speed_changes_no_ratio(slower_after: float) -> None:
    machine = Machine(slower_after)
    ratio = times_as_fast(
        partial(machine.run, 0.2), partial(machine.run, 0.3), clock=lambda: machine.now
    )
    assert ratio == pytest.approx(1.5)


async def test_real_figures_and_an_engine_of_what_was_converted(
    tiny: Path, folder: WeightsFolder, say: Callable[[str], None]
) -> None:
    """Nothing stands in: children of the library measure, and the engine says what it runs."""
    found, choice = preparing.examine(folder, subject_of(tiny), say)
    assert list(found) == ["as-is", "q8_0", "bf16", "f16", "q4_0"]
    for figures in found.values():
        assert figures.left_out is None
        assert figures.speeds is not None
        assert min(figures.speeds.prefill, figures.speeds.one, figures.speeds.many) > 0
        assert figures.fidelity is not None
        assert figures.fidelity.positions == 2000
    distances = {form: figures.fidelity.kl for form, figures in found.items() if figures.fidelity}
    assert distances["f16"] < distances["as-is"] < distances["q4_0"]
    prepared = prepare(folder, subject_of(tiny), "auto", say)
    assert prepared.weights.form == choice.form
    made = prepare(folder, subject_of(tiny), "q8_0", say)
    prints = set()
    for path, weights in ((tiny, UNCHANGED), (made.path, made.weights)):
        options = EngineOptions(slots=1, threads=1)
        engine = open_engine(path, digest="0", name="t", options=options, weights=weights)
        prints.add(engine.card.fingerprint)
        details = engine.card.details
        await engine.aclose()
    assert len(prints) == 2
    assert details["weights"] == "q8_0"
    assert details["converted_from"] == "Q4_1"
    assert str(details["format"]).endswith("Q8_0")
