"""Writes a tiny model of an architecture, with random values in the tensors that it needs.

The library names these tensors: ``llama_model_init_from_user`` asks for each tensor of an
architecture, given its metadata alone.
"""

from __future__ import annotations

import ctypes
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import msgspec
import numpy as np
import numpy.typing as npt

from afterword.engine.llama import binding
from zoo.architectures import ARCHITECTURES, SIZES, Architecture, Value, Weights
from zoo.others import OTHERS
from zoo.vocabulary import add_vocabulary

Values: TypeAlias = npt.NDArray[np.float32]

_NOT_ASKED_FOR = re.compile(r"rope_freqs|rope_factors|_scale$|\.scale$|\.input_scale$|nextn\.|^cls")
"""Optional tensors, which the models do without: random ones would make them unrealistic."""
_PLAIN = re.compile(r"norm|conv|gate_inp|lerp|ssm_[abcd]$|time_mix_([a-z]\d|first)|position_embd")
"""Tensors that are never quantized."""


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's name and ``shape`` in numpy's order, the longest stride first."""

    name: str
    shape: tuple[int, ...]


def make_model(name: str, path: Path, weights: Weights | None = None) -> Path:
    """Write a tiny model of one of ``ARCHITECTURES`` or ``OTHERS``; the same bytes each time.

    ``weights`` replaces the format of its matrices.
    """
    made = ARCHITECTURES.get(name) or OTHERS[name]
    return make(msgspec.structs.replace(made, weights=weights or made.weights), name, path)


def make(
    made: Architecture,
    name: str,
    path: Path,
    format_of: Callable[[Tensor, Architecture], str] | None = None,
) -> Path:
    """Write a tiny model of an architecture; its values depend on ``name``.

    ``format_of`` chooses the format of each tensor instead of ``usual_format``.
    """
    asked = path.with_suffix(".metadata")
    _write(_writer(asked, name, made))
    try:
        tensors = _tensors(asked, made)
    finally:
        asked.unlink()
    writer = _writer(path, name, made)
    for tensor in tensors:
        seed = zlib.crc32(f"{name} {tensor.name}".encode())
        values = _fill(tensor, made, np.random.default_rng(seed))
        kind = gguf.GGMLQuantizationType[(format_of or usual_format)(tensor, made)]
        writer.add_tensor(tensor.name, _quantized(values, kind), raw_dtype=kind)
    _write(writer)
    return path


def _writer(path: Path, name: str, made: Architecture) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, made.arch)
    writer.add_name(f"tiny {name}")
    for key, value in {**SIZES, **made.keys}.items():
        if key not in made.without:
            _add_value(writer, f"{made.arch}.{key}", value)
    add_vocabulary(writer, made.vocabulary)
    return writer


def _add_value(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _InitParams(ctypes.Structure):
    """``gguf_init_params`` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class _TensorHead(ctypes.Structure):
    """The first fields of ``ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
    )


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Returns a function of ggml, which has no binding."""
    function: Any = binding.lib._lib[name]
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


def _tensors(metadata: Path, made: Architecture) -> Sequence[Tensor]:
    """Returns the tensors that the library asks for, given the metadata of an architecture."""
    read = _function("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _InitParams)
    free = _function("gguf_free", None, ctypes.c_void_p)
    name_of = _function("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
    dimensions = _function("ggml_n_dims", ctypes.c_int, ctypes.c_void_p)
    found: dict[str, Tensor] = {}

    @binding.lib.llama_model_set_tensor_data_t  # type: ignore[untyped-decorator, unused-ignore]
    def note(pointer: int, _user: object) -> None:
        name = name_of(pointer).decode()
        ne = _TensorHead.from_address(pointer).ne[: max(1, dimensions(pointer))]
        wanted = name in made.needs or not _NOT_ASKED_FOR.search(name)
        if wanted and not name.endswith(made.lacks):
            found.setdefault(name, Tensor(name, tuple(reversed(ne))))

    binding.start()
    params = binding.lib.llama_model_default_params()
    params.use_extra_bufts = False
    # No GPU: its memory is not needed for names.
    none = (ctypes.c_void_p * 1)()
    params.devices = ctypes.cast(none, ctypes.c_void_p)
    context = read(str(metadata).encode(), _InitParams(no_alloc=True, context=None))
    model = binding.lib.llama_model_init_from_user(context, note, None, params)
    free(context)
    if not model:
        raise ValueError(f"{metadata.stem}: the library knows no model of this metadata")
    binding.lib.llama_model_free(model)
    return list(found.values())


def _normal(scale: float) -> Callable[[Tensor, np.random.Generator], Values]:
    return lambda tensor, rng: rng.normal(0, scale, tensor.shape).astype(np.float32)


def _around_one(tensor: Tensor, rng: np.random.Generator) -> Values:
    return rng.normal(1, 0.1, tensor.shape).astype(np.float32)


def _between(low: float, high: float) -> Callable[[Tensor, np.random.Generator], Values]:
    return lambda tensor, rng: rng.uniform(low, high, tensor.shape).astype(np.float32)


def _by_width(gain: float) -> Callable[[Tensor, np.random.Generator], Values]:
    """Returns values that keep the magnitude of the vectors that they are multiplied with."""
    return lambda tensor, rng: rng.normal(0, gain / np.sqrt(tensor.shape[-1]), tensor.shape).astype(
        np.float32
    )


_FILLS: Sequence[tuple[str, Callable[[Tensor, np.random.Generator], Values]]] = (
    (r"ssm_a$", _between(-3, -0.3)),
    (r"ssm_dt\.bias$", _between(-4, -1)),
    (r"ssm_d$", _around_one),
    (r"conv", _normal(0.4)),
    (r"time_mix_w0", _between(-4, -0.5)),
    (r"lerp", _between(0, 1)),
    (r"rope_freqs", _between(1, 2)),
    (r"(norm|_ln\d?)\.weight$", _around_one),
    (r"(norm|_ln\d?)\.bias$", _normal(0.05)),
    (r"\.bias$|sinks", _normal(0.1)),
    # Logits are far apart, so that greedy text has no ties, and as far in models of longer rows.
    (r"^output\.weight$", _by_width(3.4)),
    (r"^position_embd\.weight$", _normal(0.3)),
    (r"gate_inp", _by_width(2)),
    # Attention weighs some positions more than others.
    (r"attn_(q|k|qkv|q_b|k_b)\.", _by_width(2)),
)
"""Patterns of tensor names and how these tensors are filled; the first match counts."""


def _fill(tensor: Tensor, made: Architecture, rng: np.random.Generator) -> Values:
    if tensor.name == "token_embd.weight":
        return _normal(made.embeddings)(tensor, rng)
    for pattern, fill in _FILLS:
        if re.search(pattern, tensor.name):
            return fill(tensor, rng)
    vector = sum(size > 1 for size in tensor.shape) <= 1
    return (_normal(0.3) if vector else _by_width(1))(tensor, rng)


def usual_format(tensor: Tensor, made: Architecture) -> str:
    """Returns the architecture's own format for matrices, and F32 for other tensors."""
    matrix = sum(size > 1 for size in tensor.shape) >= 2 and tensor.name.endswith(".weight")
    if not matrix or _PLAIN.search(tensor.name):
        return "F32"
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[made.weights]]
    return "F16" if tensor.shape[-1] % block else made.weights


def _quantized(values: Values, kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Returns the bytes of rows in a format of files, as the library writes them.

    Some formats need to know how important each value of a row is: here, all are equally.
    """
    values = np.ascontiguousarray(values)
    if kind == gguf.GGMLQuantizationType.F32:
        return values.view(np.uint8)
    pointer = ctypes.c_void_p
    needs_importance = _function("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)
    quantize = _function(
        "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, pointer, pointer,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer,
    )  # fmt: skip
    out = np.empty(gguf.quant_shape_to_byte_shape(values.shape, kind), np.uint8)
    length = values.shape[-1]
    importance = np.ones(length, np.float32).ctypes.data_as(pointer)
    written = quantize(
        kind, values.ctypes.data, out.ctypes.data, 0, values.size // length, length,
        importance if needs_importance(kind) else None,
    )  # fmt: skip
    assert written == out.nbytes
    return out
