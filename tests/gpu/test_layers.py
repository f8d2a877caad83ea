"""Layers on a GPU compute what the processor computes; slots are forked and cut exactly."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from afterword.cli import checkup
from afterword.core.errors import ConfigError
from afterword.engine.batching.runner import Batch, Fork, Trim
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.context import ContextOptions, LlamaContext
from afterword.engine.llama.devices import place
from afterword.engine.llama.engine import OpenModel, open_model
from afterword.engine.llama.loading import EngineOptions, load
from afterword.engine.llama.offload import ON_PROCESSOR, Device, Offload
from afterword.engine.llama.runner import LlamaRunner

Rows = npt.NDArray[np.float32]
OPTIONS = ContextOptions(
    slots=3, slot_tokens=256, batch_tokens=64, max_rows=64, threads=1, exact=True
)
PROMPT = (np.arange(40) * 31 + 5) % 250
_NATS = 0.02
"""A GPU multiplies in another order, and the processor with values of fewer bits."""
_NO_FUSION = "GGML_VK_DISABLE_FUSION"


@contextmanager
def runner(path: Path, offload: Offload) -> Iterator[LlamaRunner]:
    model = LlamaModel(path, offload=offload)
    context = LlamaContext(model, OPTIONS)
    made = LlamaRunner(model, context, OPTIONS, model.unproven_sharing)
    yield made
    made.close()


def everything(path: Path, *, kv: bool = True) -> Offload:
    return place(path, 999, None, kv=kv, context=None)


def step(made: LlamaRunner, *parts: tuple[int, npt.NDArray[np.int64], int]) -> Rows:
    """Compute parts (slot, tokens, first position) in one batch. Returns the row of each token."""
    batch = Batch(
        np.concatenate([ids for _, ids, _ in parts]).astype(np.int32),
        np.concatenate([start + np.arange(len(ids)) for _, ids, start in parts]).astype(np.int32),
        np.concatenate([np.full(len(ids), slot) for slot, ids, _ in parts]).astype(np.int32),
        np.ones(sum(len(ids) for _, ids, _ in parts), np.bool_),
    )
    return made.decode(batch).copy()


def log_softmax(rows: Rows) -> npt.NDArray[np.float64]:
    values = rows.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def test_doctor_names_the_gpu(device: Device) -> None:
    assert device.total_bytes >= device.free_bytes > 0
    assert checkup.gpus().startswith(f"{device.name} ({device.description}), ")


@pytest.mark.parametrize(("layers", "kv"), [(999, True), (999, False), (1, True), (2, True)])
def test_rows_are_those_of_the_processor(tiny: Path, layers: int, *, kv: bool) -> None:
    """With all layers, some, or the output alone on the GPU; unequal lengths in one batch."""
    found = []
    offload = place(tiny, layers, None, kv=kv, context=None)
    for where in (ON_PROCESSOR, offload):
        with runner(tiny, where) as made:
            assert made.ragged == (where is ON_PROCESSOR)
            first = step(made, (0, PROMPT, 0))
            both = step(made, (0, PROMPT[:1], len(PROMPT)), (2, PROMPT[:7], 0))
            found.append(log_softmax(np.concatenate([first, both])))
    ours, theirs = found
    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    assert np.abs(divergence).max() < _NATS
    assert (np.exp(ours) * (ours - np.roll(ours, 1, axis=0))).sum(axis=1).min() > 1, "rows differ"


@pytest.mark.parametrize("kv", [True, False])
def test_a_fork_is_an_exact_copy(tiny: Path, *, kv: bool) -> None:
    """Bit for bit: the state, and what is computed from it."""
    with runner(tiny, everything(tiny, kv=kv)) as made:
        step(made, (0, PROMPT, 0))
        whole = made._save(0)
        made.apply([Fork(0, 1, len(PROMPT)), Fork(0, 2, 25)])
        # A state has the number of its slot, so a copy is compared when it is back.
        assert len(made._save(1)) == len(whole) > len(made._save(2))
        made.apply([Trim(0, 0), Fork(1, 0, len(PROMPT))])
        assert np.array_equal(made._save(0), whole)
        ours, copied = (step(made, (slot, PROMPT[:3], len(PROMPT))) for slot in (0, 1))
        assert np.array_equal(ours, copied)
        # A prefix of the prompt, and then the same tokens in the same step as before.
        made.apply([Trim(0, 25)])
        again, forked = (step(made, (slot, PROMPT[25:], 25)) for slot in (0, 2))
        assert np.array_equal(again, forked)


_GROWING = """
import sys
from pathlib import Path
from gpu.test_layers import PROMPT, everything, runner, step
path = Path(sys.argv[1])
for _ in range(2):
    with runner(path, everything(path)) as made:
        step(made, (0, PROMPT[:20], 0))
        step(made, (0, PROMPT[20:21], 20))
        step(made, (0, PROMPT[21:22], 21), (1, PROMPT[:1], 0))
        step(made, (0, PROMPT[22:24], 22), (1, PROMPT[1:6], 1))
        step(made, (0, PROMPT[24:25], 24), (1, PROMPT[6:7], 6), (2, PROMPT[:33], 0))
"""


def test_a_driver_reads_no_buffer_that_was_freed(tiny: Path) -> None:
    """Steps of new kinds grow buffers, and the sets of descriptors are of steps before.

    Lavapipe ends the process when one of a set is of a buffer that was freed, used or not.
    """
    environment = {name: value for name, value in os.environ.items() if name != _NO_FUSION}
    tests = Path(__file__).parent.parent
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", _GROWING, tiny], check=False, env=environment)
    assert done.returncode == 0


def test_a_cut_slot_computes_what_it_computed_before(tiny: Path) -> None:
    with runner(tiny, everything(tiny)) as made:
        step(made, (0, PROMPT[:20], 0))
        before = step(made, (0, PROMPT[20:], 20))
        made.apply([Trim(0, 20)])
        assert np.array_equal(step(made, (0, PROMPT[20:], 20)), before)
        made.apply([Trim(0, 0)])
        step(made, (0, PROMPT[:20], 0))
        assert np.array_equal(step(made, (0, PROMPT[20:], 20)), before)


@pytest.mark.parametrize("layers", [0, 1, 999])
def test_only_weights_of_the_processor_are_packed(
    tiny: Path, device: Device, layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "afterword.llama"):
        LlamaModel(tiny, offload=place(tiny, layers, None, kv=True, context=None)).close()
    assert ("CPU_PACKED model buffer size" in caplog.text) == (layers < 3)
    assert (f"{device.name} model buffer size" in caplog.text) == (layers > 0)


_LOAD = """
import sys
from pathlib import Path
from afterword.engine.llama.loading import EngineOptions, load
load(Path(sys.argv[1]), EngineOptions(threads=1, exact=False, gpu_layers=int(sys.argv[2])))
print(sorted({line.split("ggml-")[1] for line in open("/proc/self/maps") if "ggml-" in line}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no list of opened libraries")
def test_no_backend_is_opened_without_layers_there(tiny: Path) -> None:
    """It loads a driver, which takes memory and may fail."""
    opened = [
        subprocess.run(
            [sys.executable, "-c", _LOAD, tiny, str(layers)],
            check=True, capture_output=True, text=True,
        ).stdout for layers in (0, 1)
    ]  # fmt: skip
    assert opened[0] == "['base.so\\n', 'cpu.so\\n']\n"
    assert len(opened[1]) > len(opened[0])


_SPLIT = """
import logging, sys
from pathlib import Path
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.devices import place
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
offload = place(Path(sys.argv[1]), int(sys.argv[2]), None, kv=True, context=None)
LlamaModel(Path(sys.argv[1]), offload=offload)
print(*offload.on_each, sep=",")
"""


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_two_devices_get_the_layers_that_were_counted(
    tiny: Path, device: Device, layers: int
) -> None:
    """One device twice: llama.cpp's Vulkan takes that for two."""
    if not device.name.startswith("Vulkan"):
        pytest.skip("another card is needed")
    number = os.environ.get("GGML_VK_VISIBLE_DEVICES", "0").partition(",")[0]
    said = subprocess.run(
        [sys.executable, "-c", _SPLIT, tiny, str(layers)],
        check=True, capture_output=True, text=True,
        env={**os.environ, "GGML_VK_VISIBLE_DEVICES": f"{number},{number}"},
    ).stdout  # fmt: skip
    counted = said.splitlines()[-1]
    assert counted == ",".join(
        str(said.count(f"assigned to device {name},")) for name in ("Vulkan0", "Vulkan1")
    )


def opened(path: Path, **given: object) -> OpenModel:
    options = msgspec.structs.replace(EngineOptions(threads=1, ctx=256, slots=2), **given)
    return open_model(load(path, options), digest="0" * 64, name="tiny", options=options)


def test_what_is_said_of_layers_on_a_gpu(tiny: Path, device: Device) -> None:
    """The probe is believed: a promise that a GPU does not keep is not made."""
    prints = set()
    for layers in ("auto", 1, 0):
        whole = opened(tiny, gpu_layers=layers)
        card = whole.card
        prints.add(card.fingerprint)
        assert card.details["gpu_layers"] == {"auto": 3}.get(str(layers), layers)
        if layers:
            assert str(card.details["device"]).startswith(device.name)
        assert (card.prefix_sharing == "none") == (not card.batch_invariant)
        whole.runner.close()
    assert len(prints) == 3
    assert card.batch_invariant, "without a layer on the GPU, answers do not depend on the batch"


def test_a_library_for_a_gpu_computes_the_same_without_one(tiny: Path) -> None:
    """No layer on a GPU: ragged batches and blocks, as in a library for no GPU."""
    whole = opened(tiny, gpu_layers=0)
    assert whole.runner.ragged
    assert whole.runner.blocks > 0
    whole.runner.close()
    whole = opened(tiny, gpu_layers=1)
    assert not whole.runner.ragged
    assert whole.runner.blocks == 0
    whole.runner.close()


def test_a_device_that_is_not_there(tiny: Path, device: Device) -> None:
    why = f"--device CUDA9: there is no 'CUDA9' (there is: {device.name}"
    with pytest.raises(ConfigError, match=f"^{re.escape(why)}"):
        opened(tiny, gpu_layers=3, device="CUDA9")
    whole = opened(tiny, device="CUDA9")
    whole.runner.close()
    assert whole.card.details["gpu_layers"] == 0
    assert str(whole.card.details["no_gpu"]).startswith(why)
