"""The GPUs that the library finds, and how many layers of a model fit into their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import lib, start
from afterword.engine.llama.offload import ON_PROCESSOR, Device, Offload
from afterword.models.gguf import Header
from afterword.models.parts import part_paths, read_header

Layers: TypeAlias = int | Literal["auto"]
"""How many layers run on GPUs; ``auto`` for as many as fit."""

_BACKENDS = {
    "Vulkan": "ggml_backend_vk_reg",
    "CUDA or HIP": "ggml_backend_cuda_reg",
    "Metal": "ggml_backend_metal_reg",
}
_GPU, _INTEGRATED = 1, 2
"""Types of devices in ggml-backend.h."""
_SPARE_BYTES = 256 * 2**20
"""Left free on devices: for the driver, and for the library's smaller buffers."""
_LOGITS_ROWS = 512
"""Rows of logits that the library has a buffer for: those of a batch."""
_KV_PART = 4
"""Without a given context, KV memory counts with at most one part in this many of a device."""
_F16_BYTES = 2
_GIB = 2**30


def _function(name: str, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - types of ctypes
    function = getattr(lib._lib, name)  # noqa: SLF001 - no binding has it
    function.restype, function.argtypes = result, arguments
    return function


def backends() -> Sequence[str]:
    """Returns the kinds of GPU that the library was built for."""
    return [kind for kind, symbol in _BACKENDS.items() if hasattr(lib._lib, symbol)]  # noqa: SLF001


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


def _found() -> Iterator[Device]:
    """Yields the GPUs that the library finds; their memory is not asked for."""
    if not backends():
        return
    start()
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
    free = sum(device.free_bytes for device in chosen)
    count = min(wanted, layers) if wanted != "auto" else 0
    if wanted == "auto":
        kv_bytes = _least_kv_bytes(header, free, context) if kv else 0
        count = layers_that_fit(header, file_bytes, free, kv_bytes)
        if not count:
            return Offload(
                why_not=f"{', '.join(device.name for device in chosen)} has {free / _GIB:.1f} GiB "
                "free, which is too little for a layer"
            )
    return Offload(
        layers=count,
        all_layers=layers,
        devices=tuple(chosen),
        kv=kv,
        free_bytes=free,
        weights_bytes=file_bytes * count // layers,
    )


def _chosen(names: str | None) -> Sequence[Device]:
    """Returns the named devices, or those to use. Raises ``ConfigError`` if there are none."""
    if not backends():
        raise ConfigError(
            "this native half is for no GPU; GPU=vulkan make install builds one that is"
        )
    found = devices()
    if not found:
        raise ConfigError(f"no GPU found for {', '.join(backends())}")
    if names is None:
        cards = [device for device in found if not device.integrated]
        return cards or found[:1]
    by_name = {device.name: device for device in found}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in by_name:
            raise ConfigError(f"there is no {name!r} (there is: {', '.join(by_name)})")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def layers_that_fit(header: Header, file_bytes: int, free_bytes: int, kv_bytes: int) -> int:
    """Returns how many layers fit into ``free_bytes`` with their KV memory, the output counted.

    Every layer counts as if the file had nothing but layers. So a layer is never larger than that
    on average, and there is room for what a layer needs beside its weights.
    """
    layers = _number(header, "block_count")
    buffers = _SPARE_BYTES + _LOGITS_ROWS * header.vocabulary * 4
    room = free_bytes - buffers
    if not layers or room <= 0:
        return 0
    if file_bytes + kv_bytes <= room:
        return layers + 1
    return min(room * layers // (file_bytes + kv_bytes), layers)


def kv_room(offload: Offload) -> int | None:
    """Returns the bytes that KV memory may take so that its part on devices fits there.

    Returns None if no part is on a device. A driver may not count what was taken already, so the
    weights count by their estimate, too.
    """
    if not offload.kv_share:
        return None
    names = {device.name for device in offload.devices}
    free = sum(device.free_bytes for device in devices() if device.name in names)
    room = min(free, offload.free_bytes - offload.weights_bytes) - _SPARE_BYTES
    return int(max(room, 0) / offload.kv_share)


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
