"""Layers on a GPU: how many fit, what falls back to the processor, and what is said about it.

The GPUs are stand-ins, so these tests need none. tests/gpu computes on a real one.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterword.cli import checkup
from afterword.core.errors import ConfigError
from afterword.engine.batching.runner import Batch
from afterword.engine.llama import devices, engine, loading, trial
from afterword.engine.llama.binding import LLAMA, LlamaModel
from afterword.engine.llama.devices import kv_room, layers_that_fit, place, variables
from afterword.engine.llama.engine import OpenModel, open_model
from afterword.engine.llama.loading import EngineOptions, GpuTrial, Probed, load
from afterword.engine.llama.offload import ON_PROCESSOR, Device, Offload, split
from afterword.engine.llama.runner import LlamaRunner
from afterword.models.gguf import Header
from afterword.models.notes import Notes
from support.tiny_gguf import make_gguf

GIB = 2**30
SPARE = 2**28
CARD = Device("Vulkan0", "a card", 8 * GIB, 8 * GIB, integrated=False, pointer=8)
SECOND = msgspec.structs.replace(CARD, name="Vulkan1", description="another")
BOARD = msgspec.structs.replace(CARD, name="Vulkan2", description="a board", integrated=True)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model of two layers, and an output."""
    return make_gguf(tmp_path / "tiny.gguf")


class Machine:
    """A library that is built for Vulkan, and the GPUs that it finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: Device) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(devices, "backends", lambda: ["Vulkan"])
        monkeypatch.setattr(engine, "backends", lambda: ["Vulkan"])
        monkeypatch.setattr(checkup, "backends", lambda: ["Vulkan"])
        monkeypatch.setattr(devices, "_opened", list)
        self.finds(*found)

    def finds(self, *found: Device) -> None:
        """Change what the library finds from now on."""
        self._monkeypatch.setattr(devices, "devices", lambda: found)
        self._monkeypatch.setattr(checkup, "devices", lambda: found)


def placed(
    path: Path, wanted: devices.Layers = "auto", names: str | None = None, *, kv: bool = True
) -> Offload:
    return place(path, wanted, names, kv=kv, context=None)


def opened(path: Path, options: EngineOptions) -> OpenModel:
    return open_model(load(path, options), digest="0" * 64, name="tiny", options=options)


def test_a_library_for_no_gpu_computes_on_the_processor(tiny: Path) -> None:
    assert devices.backends() == []
    assert devices.devices() == []
    assert placed(tiny) == placed(tiny, 0) == ON_PROCESSOR
    with pytest.raises(ConfigError, match=r"^--gpu-layers 3: this native half is for no GPU; GPU="):
        placed(tiny, 3)
    with pytest.raises(ConfigError, match=r"^--device Vulkan0: this native half is for no GPU"):
        placed(tiny, 3, "Vulkan0")
    assert placed(tiny, 0, "Vulkan0") == ON_PROCESSOR
    whole = opened(tiny, EngineOptions(threads=1, slots=1))
    assert not {"gpu_layers", "device", "no_gpu"} & set(whole.card.details)
    whole.runner.close()
    assert checkup.gpus().startswith("none: this native half is for the processor alone")
    # A device was named, and the processor can serve.
    whole = opened(tiny, EngineOptions(threads=1, slots=1, device="Vulkan0"))
    assert whole.card.details["gpu_layers"] == 0
    assert str(whole.card.details["no_gpu"]).startswith("--device Vulkan0: this native half is for")
    whole.runner.close()


def test_all_layers_run_on_a_card_with_room(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, BOARD, CARD, SECOND)
    found = placed(tiny)
    assert (found.layers, found.all_layers, found.kv) == (3, 3, True)
    # An integrated GPU beside a card slows it down.
    assert found.devices == (CARD, SECOND)
    assert found.on_each == [2, 1]
    assert found.weights_bytes == tiny.stat().st_size
    assert str(found) == ("3 of 3 layers on Vulkan0 (a card), Vulkan1 (another), KV memory there")
    assert "KV memory in main memory" in str(placed(tiny, kv=False))
    assert placed(tiny, 1).layers == 1
    assert placed(tiny, 99).layers == 3
    assert placed(tiny, 0) == ON_PROCESSOR
    Machine(monkeypatch, BOARD)
    assert placed(tiny).devices == (BOARD,)


def test_devices_are_chosen_by_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, CARD, SECOND, BOARD)
    assert placed(tiny, 2, "Vulkan2").devices == (BOARD,)
    assert placed(tiny, "auto", "Vulkan1, Vulkan0,Vulkan1").devices == (SECOND, CARD)
    with pytest.raises(ConfigError) as raised:
        placed(tiny, 2, "Vulkan0,CUDA0")
    assert str(raised.value) == (
        "--device Vulkan0,CUDA0: there is no 'CUDA0' (there is: Vulkan0, Vulkan1, Vulkan2)"
    )
    assert placed(tiny, "auto", "Vulkan0,CUDA0") == Offload(why_not=str(raised.value))
    Machine(monkeypatch)
    why = "--device Vulkan0: no GPU found for Vulkan"
    assert placed(tiny, "auto", "Vulkan0") == Offload(why_not=why)
    with pytest.raises(ConfigError, match=f"^{why}$"):
        placed(tiny, 2, "Vulkan0")


def test_no_gpu_is_a_reason_and_a_wanted_one_an_error(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    assert placed(tiny) == Offload(why_not="no GPU found for Vulkan")
    with pytest.raises(ConfigError, match=r"^--gpu-layers 3: no GPU found for Vulkan$"):
        placed(tiny, 3)
    assert checkup.gpus() == "none found for Vulkan"
    Machine(monkeypatch, msgspec.structs.replace(CARD, free_bytes=SPARE))
    assert placed(tiny) == Offload(
        why_not="Vulkan0 has 0.2 GiB free, which is too little for a layer"
    )
    assert checkup.gpus() == "Vulkan0 (a card), 0.2 of 8.0 GiB free"
    # Who names a number decides.
    assert placed(tiny, 2).layers == 2


def test_backends_are_opened_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs open models on several threads, and one that comes second finds all GPUs."""
    opening = threading.Lock()
    held = []

    def opened() -> Sequence[str]:
        held.append(opening.locked())
        return []

    monkeypatch.setattr(devices, "backends", lambda: ["Vulkan"])
    monkeypatch.setattr(devices, "_opening", opening)
    monkeypatch.setattr(devices, "_opened", opened)
    assert devices.devices() == []
    assert held == [True]


def test_a_backend_that_cannot_be_opened_leaves_the_processor(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the libraries of a driver or toolkit are gone."""
    monkeypatch.setattr(devices, "LLAMA", Library(LLAMA, tmp_path))
    monkeypatch.setattr(devices, "_opened", devices._opened.__wrapped__)
    backend = devices._file("CUDA")
    backend.write_bytes(b"not a library")
    assert devices.backends() == ["CUDA"]
    assert devices.descriptions() == []
    why_not = placed(tiny).why_not
    assert why_not.startswith(f"no GPU found for CUDA ({backend}: ")
    assert checkup.gpus() == why_not.replace("no GPU", "none")
    with pytest.raises(ConfigError, match=r"^--gpu-layers 3: no GPU found for CUDA \("):
        placed(tiny, 3)


class Library:
    """A library that is opened already, as if it were in another folder."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self._library = library
        self._name = str(folder / Path(library._name).name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


HEADER = Header(
    metadata={
        "general.architecture": "llama", "llama.block_count": 32, "llama.embedding_length": 4096,
        "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
        "llama.context_length": 8192,
    },
    array_lengths={"tokenizer.ggml.tokens": 128256}, formats={}, tensors=0, file_bytes=0,
)  # fmt: skip
BUFFERS = SPARE + 512 * 128256 * 4


@pytest.mark.parametrize(
    ("room", "layers"),
    [
        (5 * GIB, 33),
        (5 * GIB - 1, 31),
        (5 * GIB // 2, 16),
        (5 * GIB // 32, 1),
        (5 * GIB // 32 - 1, 0),
        (0, 0),
        (-BUFFERS, 0),
    ],
)
def test_layers_fit_with_their_kv_memory(room: int, layers: int) -> None:
    assert layers_that_fit(HEADER, 4 * GIB, GIB, [BUFFERS + room]) == layers


def test_layers_of_an_unknown_number_stay_on_the_processor() -> None:
    unknown = msgspec.structs.replace(HEADER, metadata={"general.architecture": "llama"})
    assert layers_that_fit(unknown, GIB, 0, [99 * GIB]) == 0


@given(
    layers=st.integers(1, 100),
    file_bytes=st.integers(1, 80 * GIB),
    kv_bytes=st.integers(0, 20 * GIB),
    free=st.lists(st.integers(0, 48 * GIB), min_size=1, max_size=4),
)
def test_layers_have_room_on_each_device_with_their_kv_memory(
    layers: int, file_bytes: int, kv_bytes: int, free: list[int]
) -> None:
    header = msgspec.structs.replace(
        HEADER, metadata={**HEADER.metadata, "llama.block_count": layers}
    )
    count = layers_that_fit(header, file_bytes, kv_bytes, free)
    assert 0 <= count <= layers + 1
    if not count:
        return
    on_each = split(count, free)
    assert sum(on_each) == count
    # The output, which is the last, takes nothing that is not counted with the layers.
    output = max(device for device, n in enumerate(on_each) if n)
    for device, n in enumerate(on_each):
        blocks = n - (device == output and count == layers + 1)
        if blocks > 0:
            assert blocks * (file_bytes + kv_bytes) / layers <= (free[device] - BUFFERS) * 1.000001
    # With more memory there are no fewer layers on one card.
    if len(free) == 1:
        assert layers_that_fit(header, file_bytes, kv_bytes, [free[0] + GIB]) >= count


def test_the_split_is_the_librarys() -> None:
    """By what is free, and equally if no driver tells it."""
    assert split(33, [8 * GIB]) == [33]
    assert split(33, [2 * GIB, GIB]) == [22, 11]
    assert split(33, [24 * GIB, GIB // 2]) == [33, 0]
    assert split(4, [0, 0]) == [2, 2]
    assert split(0, [GIB]) == [0]


def test_a_card_with_little_memory_takes_no_layers_from_a_larger_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = msgspec.structs.replace(SECOND, free_bytes=SPARE)
    Machine(monkeypatch, small, CARD)
    found = placed(tiny)
    assert (found.layers, found.devices) == (3, (CARD,))
    # Nobody is asked about a number, or else about the devices.
    assert placed(tiny, 3).devices == (small, CARD)
    Machine(monkeypatch, small)
    assert "Vulkan1 has 0.2 GiB free" in placed(tiny).why_not


def test_kv_memory_of_a_sequence_is_computed_by_hand() -> None:
    """Of 32 layers with eight heads for keys and values, each 128 wide and in float16."""
    token = 32 * 8 * (128 + 128) * 2
    assert devices._least_kv_bytes(HEADER, 80 * GIB, 1000) == 1000 * token
    assert devices._least_kv_bytes(HEADER, 80 * GIB, None) == 8192 * token
    assert devices._least_kv_bytes(HEADER, GIB, None) == GIB // 4


def test_kv_memory_has_the_room_that_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Offload(layers=16, all_layers=32, devices=(CARD,), weights_bytes=3 * GIB)
    assert kv_room(ON_PROCESSOR) is None
    assert kv_room(msgspec.structs.replace(half, kv=False)) is None
    # A driver that does not count what was taken.
    machine = Machine(monkeypatch, CARD, SECOND)
    assert kv_room(half) == 2 * (5 * GIB - SPARE)
    machine.finds(msgspec.structs.replace(CARD, free_bytes=2 * GIB), SECOND)
    assert kv_room(half) == 2 * (2 * GIB - SPARE)
    machine.finds(msgspec.structs.replace(CARD, free_bytes=1), SECOND)
    assert kv_room(half) == 0
    # A card that is gone has no room.
    machine.finds(SECOND)
    assert kv_room(half) == 0
    # The card with the least room for its part decides.
    both = msgspec.structs.replace(half, devices=(CARD, SECOND))
    machine.finds(CARD, msgspec.structs.replace(SECOND, free_bytes=GIB))
    assert both.on_each == [8, 8]
    assert kv_room(both) == 4 * (GIB - SPARE)


class Broken(LlamaModel):
    """A model that a GPU cannot load."""

    def __init__(self, path: Path, *, repack: bool = True, offload: Offload = ON_PROCESSOR) -> None:
        if offload.layers:
            raise ConfigError("the driver is lost")
        super().__init__(path, repack=repack, offload=offload)


class Pretending(LlamaModel):
    """A model that says that a GPU computes layers; the processor does."""

    def __init__(self, path: Path, *, repack: bool = True, offload: Offload = ON_PROCESSOR) -> None:
        super().__init__(path, repack=repack)
        self.offload = offload


@pytest.mark.parametrize("exact", [True, False])
def test_a_gpu_that_fails_is_left_out_loudly(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, exact: bool
) -> None:
    plain = opened(tiny, EngineOptions(threads=1, slots=2, exact=exact))
    plain.runner.close()
    Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Broken)
    with caplog.at_level(logging.WARNING, "afterword.engine"):
        found = opened(tiny, EngineOptions(threads=1, slots=2, exact=exact))
    found.runner.close()
    assert "model tiny: all layers run on the processor: the driver is lost" in caplog.text
    assert found.card.details["gpu_layers"] == 0
    assert found.card.details["no_gpu"] == "the driver is lost"
    # It is what it would be without a GPU.
    assert found.card.fingerprint == plain.card.fingerprint
    assert found.card.batch_invariant == exact
    with pytest.raises(ConfigError, match=r"^the driver is lost$"):
        opened(tiny, EngineOptions(threads=1, slots=2, exact=exact, gpu_layers=2))


def test_a_gpu_without_room_for_a_context_is_left_out_loudly(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Pretending)
    options = EngineOptions(threads=1, slots=1, exact=False)
    loaded = load(tiny, options)
    assert loaded.model.offload.layers == 3
    # Another program has taken its memory.
    machine.finds(msgspec.structs.replace(CARD, free_bytes=1))
    with caplog.at_level(logging.WARNING, "afterword.engine"):
        found = open_model(loaded, digest="0" * 64, name="tiny", options=options)
    found.runner.close()
    assert loaded.model.pointer is None
    assert "all layers run on the processor: model tiny: sequences of" in caplog.text
    assert found.card.details["gpu_layers"] == 0
    named = msgspec.structs.replace(options, gpu_layers=3)
    machine.finds(CARD)
    loaded = load(tiny, named)
    machine.finds(msgspec.structs.replace(CARD, free_bytes=1))
    with pytest.raises(ConfigError, match="no context fits"):
        open_model(loaded, digest="0" * 64, name="tiny", options=named)


def test_layers_on_a_gpu_are_in_card_fingerprint_and_notes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Pretending)
    prints, probes = set(), []
    kept = Notes(tmp_path / "notes")
    cases: list[tuple[devices.Layers, bool]] = [(0, True), (1, True), (1, False), ("auto", True)]
    for layers, kv in cases:
        options = EngineOptions(threads=1, slots=1, gpu_layers=layers, kv_on_gpu=kv)
        loaded = load(tiny, options, digest="a", notes=kept)
        found = open_model(loaded, digest="a", name="tiny", options=options, notes=kept)
        prints.add(found.card.fingerprint)
        probes.append(len(list((tmp_path / "notes").glob("probe-*"))))
        details = dict(found.card.details)
        found.runner.close()
    assert len(prints) == 4
    assert probes == [1, 2, 3, 4]
    assert {name: details[name] for name in ("gpu_layers", "layers", "device", "kv_on_gpu")} == {
        "gpu_layers": 3, "layers": 3, "device": "Vulkan0 (a card)", "kv_on_gpu": True,
    }  # fmt: skip


def test_variables_of_a_backend_are_in_fingerprint_and_notes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: they choose kernels. They say nothing about the processor."""
    Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Pretending)
    monkeypatch.delenv("GGML_VK_DISABLE_F16", raising=False)
    kept = Notes(tmp_path / "notes")

    def fingerprint(layers: int) -> str:
        options = EngineOptions(threads=1, slots=1, gpu_layers=layers)
        loaded = load(tiny, options, digest="a", notes=kept)
        found = open_model(loaded, digest="a", name="tiny", options=options, notes=kept)
        found.runner.close()
        return found.card.fingerprint

    before = [fingerprint(layers) for layers in (0, 1)]
    monkeypatch.setenv("GGML_VK_DISABLE_F16", "1")
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    assert [line for line in variables() if "F16" in line] == ["GGML_VK_DISABLE_F16=1"]
    assert not [line for line in variables() if "VISIBLE" in line]
    after = [fingerprint(layers) for layers in (0, 1)]
    assert before[0] == after[0]
    assert before[1] != after[1]
    for name in ("probe", "memory"):
        assert len(list(kept.folder.glob(f"{name}-*"))) == 3


def test_a_probe_that_fails_on_a_gpu_falls_back(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Pretending)
    ours = loading._probe
    failed: list[LlamaModel] = []

    def probe(model: LlamaModel, options: EngineOptions) -> Probed:
        if model.offload.layers:
            failed.append(model)
            raise ConfigError("llama.cpp cannot compute with this model: device lost")
        return ours(model, options)

    monkeypatch.setattr(loading, "_probe", probe)
    found = load(tiny, EngineOptions(threads=1, slots=1))
    assert "device lost" in found.model.offload.why_not
    assert found.batch_invariant
    (gone,) = failed
    assert gone.pointer is None, "its memory is free again"
    found.model.close()


FOUND = ["Vulkan0 (a card)"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("kill -SEGV $$", "Vulkan0 (a card): SIGSEGV ended a process that computed there"),
        ("echo 'model m: no room'; exit 1", "model m: no room"),
        ("printf 'no room\\351'; exit 1", "no room\N{REPLACEMENT CHARACTER}"),
        ("exit 2", "a process failed with status 2"),
    ],
)
def test_a_driver_that_ends_its_process_ends_no_server(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    why: str,
) -> None:
    monkeypatch.setattr(sys, "executable", str(program(tmp_path, fault)))
    monkeypatch.setattr(loading, "descriptions", lambda: FOUND)
    with caplog.at_level(logging.WARNING, "afterword.engine"):
        found = opened(tiny, EngineOptions(threads=1, slots=1, exact=False))
    found.runner.close()
    assert found.card.details["no_gpu"] == why
    assert f"all layers run on the processor: {why}" in caplog.text


def program(folder: Path, script: str) -> Path:
    """Write a program in place of Python, which gets the arguments and input of a trial."""
    made = folder / "program"
    made.write_text(f"#!/bin/sh\n{script}\n")
    made.chmod(0o755)
    return made


class Trials:
    """Loads of a model, in whose trials a shell script is the process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self.inputs = folder / "inputs"
        self.inputs.touch()
        self.notes = Notes(folder / "notes")
        self.machine = Machine(monkeypatch, CARD)
        self.found = FOUND
        monkeypatch.setattr(loading, "descriptions", lambda: self.found)

    def load(self, path: Path, options: EngineOptions, end: str = "exit 0") -> int:
        """Choose layers. Returns how many processes were started until now."""
        script = f"head -n 1 >> {self.inputs}; {end}"
        self._monkeypatch.setattr(sys, "executable", str(program(self._folder, script)))
        loading._tried(path, options, "a", self.notes)
        return len(self.inputs.read_text().splitlines())


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    return Trials(tmp_path, monkeypatch)


def test_what_was_tried_is_not_tried_again(
    tiny: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(threads=1)
    # Where nothing fits, nothing was tried.
    assert trials.load(tiny, options, f"exit {loading.NOTHING_TRIED}") == 1
    assert trials.load(tiny, options) == 2
    assert trials.load(tiny, options) == 2
    trials.found = [*FOUND, "Vulkan1 (another)"]
    assert trials.load(tiny, options) == 3
    assert trials.load(tiny, msgspec.structs.replace(options, kv_on_gpu=False)) == 4
    # A number of layers is not tried.
    assert trials.load(tiny, msgspec.structs.replace(options, gpu_layers=2)) == 4
    wanted = msgspec.json.decode(trials.inputs.read_text().splitlines()[0], type=GpuTrial)
    assert wanted == GpuTrial(str(tiny), options, "a", str(trials.notes.folder))


def test_a_variable_of_a_backend_is_tried_anew(
    tiny: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver may fail in what the variable switched off."""
    options = EngineOptions(threads=1)
    monkeypatch.delenv("GGML_VK_DISABLE_FUSION", raising=False)
    assert trials.load(tiny, options) == 1
    monkeypatch.setenv("GGML_VK_DISABLE_FUSION", "1")
    assert trials.load(tiny, options) == 2
    monkeypatch.delenv("GGML_VK_DISABLE_FUSION")
    # One that chooses a device is known by what it chose, and others reach no GPU.
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("GGML_CPU_TILED_MM", "1")
    assert trials.load(tiny, options) == 2


def test_more_layers_than_were_tried_are_tried(
    tiny: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another program has left the card. Fewer layers need no trial."""
    options = EngineOptions(threads=1)
    room = {"layers": 1}
    monkeypatch.setattr(devices, "layers_that_fit", lambda *_: room["layers"])
    assert trials.load(tiny, options) == 1
    room["layers"] = 3
    assert trials.load(tiny, options) == 2
    room["layers"] = 2
    assert trials.load(tiny, options) == 2
    room["layers"] = 0
    assert trials.load(tiny, options) == 2


def test_ctrl_c_is_no_fault_of_a_driver(tiny: Path, trials: Trials) -> None:
    """It reaches the process of the trial, too, and the server does not go on without a GPU."""
    options = EngineOptions(threads=1)
    with pytest.raises(KeyboardInterrupt):
        trials.load(tiny, options, "kill -INT $$")
    assert not trials.notes.folder.exists()
    assert trials.load(tiny, options) == 2


def test_a_process_says_why_it_cannot_compute_on_a_gpu(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files of the folder that the server was started in are no modules of it."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit(4)")
    monkeypatch.chdir(tmp_path)
    kept = Notes(tmp_path / "notes")
    assert not loading.try_apart(tiny, EngineOptions(threads=1), "a", FOUND, kept)
    assert not kept.folder.exists(), "nothing was tried"
    with pytest.raises(ConfigError, match=r"^--gpu-layers 2: this native half is for no GPU"):
        loading.try_apart(tiny, EngineOptions(threads=1, gpu_layers=2), "a", FOUND, kept)
    assert capfd.readouterr() == ("", "")


def test_a_trial_ends_with_the_server_that_waits_for_it(tiny: Path) -> None:
    """Else it would hold the memory of a GPU when the server is started again."""
    hangs = """
import signal
from afterword.engine.llama import trial
trial.attempt = lambda _: print("hangs", flush=True) or signal.pause()
trial.main()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hangs], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        wanted = GpuTrial(str(tiny), EngineOptions(), "a", None)
        process.stdin.write(msgspec.json.encode(wanted) + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hangs\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait() == 1


def test_a_trial_opens_the_model_and_computes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with a stand-in for a GPU. What it found out is kept."""
    Machine(monkeypatch, CARD)
    monkeypatch.setattr(loading, "LlamaModel", Pretending)
    batches: list[int] = []
    decode = LlamaRunner.decode

    def counted(runner: LlamaRunner, batch: Batch) -> npt.NDArray[np.float32]:
        batches.append(len(batch.tokens))
        return decode(runner, batch)

    monkeypatch.setattr(LlamaRunner, "decode", counted)
    options = EngineOptions(threads=1, slots=1, exact=False)
    assert trial.attempt(GpuTrial(str(tiny), options, "a", str(tmp_path / "notes")))
    assert batches == [511, 1]
    assert [path.name.partition("-")[0] for path in (tmp_path / "notes").iterdir()] == ["memory"]
