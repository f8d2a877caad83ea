"""Loads a model's weights on the fastest kernels that are batch invariant, if that is asked for.

The modules that compute are imported only for a probe, because loading does not need them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from afterword.core.errors import ConfigError
from afterword.core.machine import processor, usable_cores
from afterword.core.protocols import PrefixSharing
from afterword.engine.llama.binding import (
    BUILD,
    CHANGES,
    LIBRARY,
    LlamaModel,
    multiply_row_by_row,
    packed_kernels,
    system_info,
)
from afterword.engine.llama.devices import Layers, descriptions, place, variables
from afterword.engine.llama.offload import Offload
from afterword.models.notes import Notes

if TYPE_CHECKING:
    from afterword.engine.batching.runner import ModelRunner

_PROBE = 3
"""Increase it when a change of the probe may change its result."""
_MOST_ROUNDING = 1.0
"""Nats. A larger difference between two batches is an error, not rounding."""
_PROBE_SLOTS = 4
_PROBE_TOKENS = 256
_BATCH_DEPENDENT = ("deepseek4", "minimax-m3")
"""Architectures whose rows depend on their batch where the probe is too short to see it.

DeepSeek-V4's compressed cells stand behind the longest sequence of the batch, rounded to 256.
MiniMax-M3 gathers the cells of single tokens, and masks those of chunks.
"""
_ONE_AT_A_TIME = () if CHANGES else ("arwkv7", "rwkv6qwen2")
"""Architectures whose rows an unchanged library computes wrongly if a batch has several sequences.

It stores the last tokens of all sequences but the first wrongly (RWKV heads on Qwen).
"""


NOTHING_TRIED = 3
"""The status of a process that found no room for a layer on a GPU."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's options for an engine; for None the engine chooses a value.

    ``kv_bytes`` bounds the KV memory that sequences share in blocks, and ``max_sequences`` says how
    many run at once; ``slots`` is its old name. ``exact`` asks for batch invariance (D1), and
    ``probe`` for a test of it at start; a process that computes one request only needs none.
    ``gpu_layers``, ``device`` and ``kv_on_gpu`` are those of ``devices.place``.
    """

    ctx: int | None = None
    slots: int | None = None
    max_sequences: int = 64
    kv_bytes: int | None = None
    threads: int | None = None
    exact: bool = True
    probe: bool = True
    max_waiting: int = 256
    score_cache_bytes: int = 64 * 2**20
    checkpoint_bytes: int | None = None
    target_gap_ms: int = 200
    prompt_lookup: bool = True
    gpu_layers: Layers = "auto"
    device: str | None = None
    kv_on_gpu: bool = True

    @property
    def sequences(self) -> int:
        """How many sequences may run at once."""
        return self.slots or self.max_sequences

    @property
    def compute_threads(self) -> int:
        """The threads given, or one for each core that this process may use."""
        return self.threads or usable_cores()


class GpuTrial(msgspec.Struct, frozen=True):
    """What a process tries before a server does it: see ``try_apart``.

    ``notes`` is a folder.
    """

    path: str
    options: EngineOptions
    digest: str
    notes: str | None


class Probed(msgspec.Struct, frozen=True):
    """Results of the probe for a model, with weights laid out as ``repack`` says.

    They are batch invariance (D1), the kind of sharing that changes no answer, and whether several
    sequences can be computed ``together`` at all.
    """

    repack: bool
    batch_invariant: bool
    sharing: PrefixSharing
    together: bool = True


class Loaded(msgspec.Struct, frozen=True):
    """A model in memory, and the results of its probe.

    Without a probe, ``batch_invariant`` is False, and ``sharing`` is what the kind of model
    allows.
    """

    model: LlamaModel
    batch_invariant: bool
    sharing: PrefixSharing
    together: bool = True


def load(
    path: Path,
    options: EngineOptions,
    *,
    digest: str = "",
    notes: Notes | None = None,
    offload: Offload | None = None,
) -> Loaded:
    """Load a model on the fastest kernels that are batch invariant (D1), if there are any.

    With ``notes`` the probe runs once for each ``digest`` (the file's SHA-256 in hex), library,
    processor, number of threads, and layers on a GPU. Its result depends on nothing else.

    ``offload`` says which layers run on a GPU, in place of the options. If that fails, also in a
    process that tries it first, and nobody named a number of layers, all run on the processor.
    Raises ``ConfigError`` if the library cannot load the file.
    """
    if offload is None:
        offload = _tried(path, options, digest, notes)
    try:
        return _load(path, options, offload, digest, notes)
    except ConfigError as error:
        if not falls_back(offload, options):
            raise
        return _load(path, options, Offload(why_not=str(error)), digest, notes)


def falls_back(offload: Offload, options: EngineOptions) -> bool:
    """Returns whether the processor computes all layers if a GPU fails."""
    return bool(offload.layers) and options.gpu_layers == "auto"


def placed(path: Path, options: EngineOptions) -> Offload:
    """Returns which layers run on a GPU. Raises ``ConfigError`` as ``devices.place`` does."""
    return place(
        path, options.gpu_layers, options.device, kv=options.kv_on_gpu, context=options.ctx
    )


def _tried(path: Path, options: EngineOptions, digest: str, notes: Notes | None) -> Offload:
    """Returns which layers run on a GPU; with ``auto`` none if the trial of them fails.

    With ``notes`` it is tried once for all that it depends on, and again if more layers fit.
    """
    if options.gpu_layers != "auto" or not options.probe or not (found := descriptions()):
        return placed(path, options)
    written = msgspec.json.encode(options).decode()
    about = (digest, kernels(), processor(), written, *found, *variables())
    tried = (notes.read("trial", about, int) if notes is not None else None) or 0
    if tried:
        offload = placed(path, options)
        if offload.layers <= tried:
            return offload
    try:
        computed = try_apart(path, options, digest, found, notes)
    except ConfigError as error:
        return Offload(why_not=str(error))
    offload = placed(path, options)
    if computed and notes is not None:
        notes.write("trial", about, offload.layers)
    return offload


def try_apart(
    path: Path, options: EngineOptions, digest: str, found: Sequence[str], notes: Notes | None
) -> bool:
    """Open a model and compute a batch in a process of its own, because a GPU's driver may end it.

    That is before this process takes memory of the GPUs that were ``found``. The ``notes`` keep
    what the process found out. It ends if this one does.

    Returns whether there was room for a layer. Raises ``ConfigError`` with the reason if it fails.
    """
    wanted = GpuTrial(str(path), options, digest, str(notes.folder) if notes is not None else None)
    # Its input stays open, so that it sees if this process ends.
    asked, asking = os.pipe()
    with os.fdopen(asked, "rb", 0) as its_input, os.fdopen(asking, "wb", 0) as waits:
        waits.write(msgspec.json.encode(wanted) + b"\n")
        done = subprocess.run(
            # Files of the working directory are no modules of it.
            [sys.executable, "-P", "-m", "afterword.engine.llama.trial"],
            stdin=its_input,
            stdout=subprocess.PIPE,
            check=False,
        )
    if done.returncode == -signal.SIGINT:
        # Ctrl-C, which is meant for this process, too, is no fault of a driver.
        raise KeyboardInterrupt
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ConfigError(f"{', '.join(found)}: {name} ended a process that computed there")
    if done.returncode not in {0, NOTHING_TRIED}:
        said = done.stdout.decode(errors="replace").strip()
        raise ConfigError(said or f"a process failed with status {done.returncode}")
    return not done.returncode


def _load(
    path: Path, options: EngineOptions, offload: Offload, digest: str, notes: Notes | None
) -> Loaded:
    if not options.exact:
        return _unproven(LlamaModel(path, offload=offload))
    multiply_row_by_row()
    about = (digest, kernels(), processor(), options.compute_threads, _PROBE, *offload.origin)
    known = notes.read("probe", about, Probed) if notes is not None else None
    if known is None and not options.probe:
        return _unproven(LlamaModel(path, offload=offload))
    if known is None:
        model, found = _load_and_probe(path, options, offload)
        if notes is not None:
            notes.write("probe", about, found)
        return _loaded(model, found)
    return _loaded(LlamaModel(path, repack=known.repack, offload=offload), known)


def _loaded(model: LlamaModel, found: Probed) -> Loaded:
    return Loaded(model, found.batch_invariant, found.sharing, found.together)


def _together(model: LlamaModel) -> bool:
    return model.architecture not in _ONE_AT_A_TIME


def _unproven(model: LlamaModel) -> Loaded:
    return Loaded(
        model, batch_invariant=False, sharing=model.unproven_sharing, together=_together(model)
    )


def _known(model: LlamaModel) -> Probed | None:
    """Returns what the probe cannot find out about a model and is known by its architecture."""
    if _together(model) and model.architecture not in _BATCH_DEPENDENT:
        return None
    return Probed(model.repack, batch_invariant=False, sharing="none", together=_together(model))


def _load_and_probe(
    path: Path, options: EngineOptions, offload: Offload
) -> tuple[LlamaModel, Probed]:
    model = LlamaModel(path, offload=offload)
    known = _known(model)
    if known is not None:
        return model, known
    try:
        found = _probe(model, options)
        # Other kernels of the processor make no difference to a GPU's.
        if not found.batch_invariant and not offload.layers:
            model.close()
            model = LlamaModel(path, repack=False, offload=offload)
            found = _probe(model, options)
    except BaseException:
        model.close()
        raise
    return model, found


def _probe(model: LlamaModel, options: EngineOptions) -> Probed:
    """Run the probe in a small context of its own; the result does not depend on its size.

    The sliding window is narrowed, so that testing behind it takes no minutes.

    The probe runs on a thread that ends afterwards, because of libraries built with OpenMP: a
    thread that has computed keeps its team of threads until it ends. With more such threads than
    cores, none of them spins, and every step takes twice as long.
    """
    from afterword.engine.batching import probe  # noqa: PLC0415
    from afterword.engine.batching.runner import DecodeError  # noqa: PLC0415
    from afterword.engine.llama.runner import temporary_runner  # noqa: PLC0415

    def ask(runner: ModelRunner) -> Probed:
        difference = probe.batch_difference(runner)
        if difference:
            # If rows depend on their batch, a reused prefix changes them too.
            return Probed(
                model.repack,
                batch_invariant=False,
                sharing="none",
                together=difference <= _MOST_ROUNDING,
            )
        return Probed(model.repack, batch_invariant=True, sharing=probe.proven_sharing(runner))

    with (
        model.narrowed(probe.WINDOW_TOKENS),
        temporary_runner(
            model, options.compute_threads, exact=True, slots=_PROBE_SLOTS, room=_PROBE_TOKENS
        ) as runner,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        try:
            return thread.submit(ask, runner).result()
        except DecodeError as error:
            raise ConfigError(f"llama.cpp cannot compute with this model: {error}") from error


def kernels() -> str:
    """Returns the library's version and variant, its build and features, and our kernels."""
    return f"{LIBRARY} {BUILD} {system_info()} {CHANGES} {packed_kernels()}"
