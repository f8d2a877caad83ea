"""The GPUs that the library finds, and how many layers of a model fit into their memory."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import LLAMA, start
from afterword.engine.llama.offload import ON_PROCESSOR, Device, Offload, split
from afterword.models.gguf import Header
from afterword.models.parts import part_paths, read_header

Layers: TypeAlias = int | Literal["auto"]
"""How many layers run on GPUs; ``auto`` for as many as fit."""

_BACKENDS = {
    "Vulkan": ("ggml-vulkan", "ggml_backend_vk_reg"),
    "CUDA": ("ggml-cuda", "ggml_backend_cuda_reg"),
    "HIP": ("ggml-hip", "ggml_backend_cuda_reg"),
    "Metal": ("ggml-metal", "ggml_backend_metal_reg"),
}
"""By kind of GPU: the library of its backend, and the function that registers it."""
_VARIABLES = ("GGML_CUDA_", "GGML_METAL_", "GGML_VK_", "HSA_OVERRIDE_")
"""Beginnings of the names of variables that choose kernels, or switch parts of a backend off."""
_CHOOSES_DEVICES = "_DEVICES"
"""The end of those that choose devices. What they choose is known by its name."""
_GPU, _INTEGRATED = 1, 2
"""Types of devices in ggml-backend.h."""
_SPARE_BYTES = 256 * 2**20
"""Left free on each device: for the driver, and for the library's smaller buffers."""
_LOGITS_ROWS = 512
"""Rows of logits that the library has a buffer for: those of a batch."""
_KV_PART = 4
"""Without a given context, KV memory counts with at most one part in this many of a device."""
_F16_BYTES = 2
_GIB = 2**30
_opening = threading.Lock()


def _function(name: str, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - types of ctypes
    function = getattr(LLAMA, name)
    function.restype, function.argtypes = result, arguments
    return function


def backends() -> Sequence[str]:
    """Returns the kinds of GPU that the library was built for."""
    return [kind for kind in _BACKENDS if _linked(kind) or _file(kind).exists()]


def _file(kind: str) -> Path:
    """Returns the library of a backend, beside libllama whether it is there or not."""
    llama = Path(LLAMA._name)  # noqa: SLF001 - ctypes documents it
    return llama.with_name(llama.name.replace("llama", _BACKENDS[kind][0]))


def _linked(kind: str) -> bool:
    """Returns whether libllama needs the library, as where others built both: it registers it."""
    return _file(kind).exists() and hasattr(LLAMA, _BACKENDS[kind][1])


@cache
def _opened() -> Sequence[str]:
    """Open and register the backends, once. Returns the reasons why some cannot be opened.

    Their libraries need those of a driver or toolkit, which a machine may not have.
    """
    why_not = []
    for kind in backends():
        if _linked(kind):
            continue
        try:
            library = ctypes.CDLL(str(_file(kind)))
        except OSError as error:
            why_not.append(str(error))
            continue
        registers = getattr(library, _BACKENDS[kind][1])
        registers.restype = ctypes.c_void_p
        _function("ggml_backend_register", None, ctypes.c_void_p)(registers())
    return why_not


def searched() -> str:
    """Returns for what kinds of GPU none was found, with the reasons that are known."""
    kinds = ", ".join(backends())
    return f"{kinds} ({'; '.join(_opened())})" if _opened() else kinds


def devices() -> Sequence[Device]:
    """Returns the GPUs that the library finds, with the memory that is free now.

    Asking for it may take some: CUDA opens its context in this process.
    """
    size = ctypes.POINTER(ctypes.c_size_t)
    found = []
    for device in _found():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
        memory(device.pointer, ctypes.byref(free), ctypes.byref(total))
        found.append(
            msgspec.structs.replace(device, free_bytes=free.value, total_bytes=total.value)
        )
    return found


def descriptions() -> Sequence[str]:
    """Returns the names and descriptions of the GPUs, and takes none of their memory."""
    return [f"{device.name} ({device.description})" for device in _found()]


def variables() -> Sequence[str]:
    """Returns what the environment says about how GPUs compute."""
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(_VARIABLES) and not name.endswith(_CHOOSES_DEVICES)
    )


def _found() -> Iterator[Device]:
    """Yields the GPUs that the library finds; their memory is not asked for."""
    if not backends():
        return
    start()
    # Models may be opened on several threads, and none may look before all backends are there.
    with _opening:
        _opened()
    pointer = ctypes.c_void_p
    get = _function("ggml_backend_dev_get", pointer, ctypes.c_size_t)
    kind = _function("ggml_backend_dev_type", ctypes.c_int, pointer)
    name = _function("ggml_backend_dev_name", ctypes.c_char_p, pointer)
    description = _function("ggml_backend_dev_description", ctypes.c_char_p, pointer)
    for index in range(_function("ggml_backend_dev_count", ctypes.c_size_t)()):
        device = get(index)
        if kind(device) in {_GPU, _INTEGRATED}:
            yield Device(
                name=name(device).decode(errors="replace"),
                description=description(device).decode(errors="replace"),
                free_bytes=0,
                total_bytes=0,
                integrated=kind(device) == _INTEGRATED,
                pointer=device,
            )


def place(
    path: Path, wanted: Layers, names: str | None, *, kv: bool, context: int | None
) -> Offload:
    """Returns which layers of a file run on GPUs.

    ``names`` are those of devices, separated by commas; by default all graphics cards, or else the
    first integrated one. ``context`` is the room that a sequence must have, in tokens; None if
    that is open.

    Raises ``ConfigError`` if a number of layers is wanted, and no GPU or no device of that name is
    there. With ``auto``, that is the reason why the processor computes all layers.
    """
    if wanted == 0 or (wanted == "auto" and names is None and not backends()):
        return ON_PROCESSOR
    try:
        chosen = _chosen(names)
    except ConfigError as error:
        if wanted != "auto":
            what = f"--gpu-layers {wanted}" if names is None else f"--device {names}"
            raise ConfigError(f"{what}: {error}") from error
        return Offload(why_not=str(error) if names is None else f"--device {names}: {error}")
    header = read_header(path)
    layers = _number(header, "block_count") + 1
    file_bytes = sum(part.stat().st_size for part in part_paths(path))
    if wanted == "auto":
        free = sum(device.free_bytes for device in chosen)
        kv_bytes = _least_kv_bytes(header, free, context) if kv else 0
        count, fitting = _most_layers(header, file_bytes, kv_bytes, chosen)
        if not count:
            return Offload(
                why_not=f"{', '.join(device.name for device in chosen)} has {free / _GIB:.1f} GiB "
                "free, which is too little for a layer"
            )
        chosen = fitting
    else:
        count = min(wanted, layers)
    return Offload(
        layers=count,
        all_layers=layers,
        devices=tuple(chosen),
        kv=kv,
        weights_bytes=file_bytes * count // layers,
        variables=tuple(variables()),
    )


def _chosen(names: str | None) -> Sequence[Device]:
    """Returns the named devices, or those to use. Raises ``ConfigError`` if there are none."""
    if not backends():
        raise ConfigError(
            "this native half is for no GPU; GPU=vulkan make install builds one that is"
        )
    found = devices()
    if not found:
        raise ConfigError(f"no GPU found for {searched()}")
    if names is None:
        cards = [device for device in found if not device.integrated]
        return cards or found[:1]
    by_name = {device.name: device for device in found}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in by_name:
            raise ConfigError(f"there is no {name!r} (there is: {', '.join(by_name)})")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _most_layers(
    header: Header, file_bytes: int, kv_bytes: int, chosen: Sequence[Device]
) -> tuple[int, Sequence[Device]]:
    """Returns how many layers fit, and on which devices.

    A card with little memory may be left out: the library would give it more than has room there.
    """
    most: tuple[int, Sequence[Device]] = (0, ())
    for least in sorted({device.free_bytes for device in chosen}):
        larger = [device for device in chosen if device.free_bytes >= least]
        free = [device.free_bytes for device in larger]
        most = max(most, (layers_that_fit(header, file_bytes, kv_bytes, free), larger), key=_count)
    return most


def _count(found: tuple[int, Sequence[Device]]) -> int:
    return found[0]


def layers_that_fit(
    header: Header, file_bytes: int, kv_bytes: int, free_bytes: Sequence[int]
) -> int:
    """Returns how many layers fit into the memory of devices with their KV, the output counted.

    Every layer counts as if the file had nothing but layers. So a layer is never larger than that
    on average, and there is room for what a layer needs beside its weights. The output, which is
    the last, takes no more.
    """
    layers = _number(header, "block_count")
    buffers = _SPARE_BYTES + _LOGITS_ROWS * header.vocabulary * 4
    rooms = [free - buffers for free in free_bytes]
    if not layers or not any(room > 0 for room in rooms):
        return 0

    def fit(count: int) -> bool:
        on_each = list(split(count, free_bytes))
        if count > layers:
            last = max(device for device, n in enumerate(on_each) if n)
            on_each[last] -= 1
        taken = file_bytes + kv_bytes
        return all(
            n * taken <= room * layers for n, room in zip(on_each, rooms, strict=True) if n > 0
        )

    return next((count for count in range(layers + 1, 0, -1) if fit(count)), 0)


def kv_room(offload: Offload) -> int | None:
    """Returns the bytes that KV memory may take so that each device has room for its part.

    Returns None if no part is on a device. A driver may not count what was taken already, so the
    weights count by their estimate, too.
    """
    if not offload.layers or not offload.kv:
        return None
    free = {device.name: device.free_bytes for device in devices()}
    rooms = []
    for device, count in zip(offload.devices, offload.on_each, strict=True):
        weights = offload.weights_bytes * count // offload.layers
        room = min(free.get(device.name, 0), device.free_bytes - weights) - _SPARE_BYTES
        if count:
            rooms.append(max(room, 0) * offload.all_layers // count)
    return min(rooms)


def _least_kv_bytes(header: Header, free_bytes: int, context: int | None) -> int:
    """Returns the bytes of one sequence's KV memory, by the metadata of a plain transformer."""
    heads = max(_number(header, "attention.head_count"), 1)
    width = _number(header, "embedding_length") // heads
    values = sum(_number(header, f"attention.{kind}_length") or width for kind in ("key", "value"))
    kv_heads = _number(header, "attention.head_count_kv") or heads
    token = _number(header, "block_count") * kv_heads * values * _F16_BYTES
    if context is not None:
        return context * token
    return min((header.context_tokens or 0) * token, free_bytes // _KV_PART)


def _number(header: Header, key: str) -> int:
    """Returns a number of the metadata; 0 if it is missing, or has a value for each layer."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, int) else 0
