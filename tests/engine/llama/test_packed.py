"""Products of packed weights agree with float64, and do not depend on the number of columns.

A process uses one set of kernels. The last tests run this file again with each other set that this
processor has.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import afterword_native.llama_cpp as lib
import numpy as np
import numpy.typing as npt
import pytest

from afterword.engine.llama.binding import CHANGES, packed_kernels

Floats = npt.NDArray[np.float32]

F32, I32 = 0, 26
PLAIN = "ggml_backend_cpu_buffer_type"
FLOATS = {"F32": 0, "F16": 1, "BF16": 30}
FORMATS = FLOATS | {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39,
}  # fmt: skip
VALUES, ROWS = 512, 48

CHOICE = "AFTERWORD_KERNELS"
KERNELS = ("amx", "avx512", "avx2", "portable")

pytestmark = pytest.mark.skipif(not packed_kernels(), reason="a library without packed weights")


class InitParams(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (
        ("bytes", ctypes.c_size_t),
        ("memory", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def call(name: str, *arguments: Any, result: Any = ctypes.c_void_p) -> Any:
    """Call one of ggml's functions, which the binding does not have."""
    function = getattr(lib._lib, name)
    function.restype = result
    return function(*arguments)


def pointer(value: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(value)


class Ggml:
    """A ggml backend that computes with one matrix of weights."""

    def __init__(self) -> None:
        self._backend = call("ggml_backend_cpu_init")

    def close(self) -> None:
        call("ggml_backend_free", pointer(self._backend), result=None)

    def product(
        self, kind: int, weights: bytes, columns: Floats, *, threads: int, rows: int = ROWS
    ) -> Floats:
        """Returns ``columns`` [n, VALUES] times packed weights [rows, VALUES], as [n, rows]."""
        memory = "ggml_afterword_packed_buffer_type"
        out = np.empty((len(columns), rows), np.float32)
        self._compute("ggml_mul_mat", (kind, weights, memory), columns, out, threads)
        return out

    def values(self, kind: int, weights: bytes) -> Floats:
        """Returns the weights [ROWS, VALUES] as floats."""
        out = np.empty((ROWS, VALUES), np.float32)
        rows = np.arange(ROWS, dtype=np.int32)
        self._compute("ggml_get_rows", (kind, weights, PLAIN), rows, out, 1)
        return out

    def _compute(
        self,
        operation: str,
        weights: tuple[int, bytes, str],
        given: npt.NDArray[Any],
        out: Floats,
        threads: int,
    ) -> None:
        kind, data, memory = weights
        # Weights have their own memory; the argument and the result share another buffer.
        contexts = [
            call("ggml_init", InitParams(bytes=1 << 20, memory=None, no_alloc=True))
            for _ in range(2)
        ]
        kept, passing = map(pointer, contexts)
        row = call("ggml_row_size", kind, ctypes.c_int64(VALUES), result=ctypes.c_size_t)
        matrix = self._tensor(kept, kind, VALUES, len(data) // row)
        buffers = [self._allocate(kept, memory)]
        self._set(matrix, data)
        shape = reversed(given.shape)
        argument = self._tensor(passing, F32 if given.dtype == np.float32 else I32, *shape)
        result = pointer(call(operation, passing, matrix, argument))
        graph = pointer(call("ggml_new_graph", passing))
        call("ggml_build_forward_expand", graph, result, result=None)
        buffers.append(self._allocate(passing, PLAIN))
        self._set(argument, given.tobytes())
        call("ggml_backend_cpu_set_n_threads", pointer(self._backend), threads, result=None)
        compute = "ggml_backend_graph_compute"
        assert call(compute, pointer(self._backend), graph, result=ctypes.c_int) == 0
        size = (ctypes.c_size_t(0), ctypes.c_size_t(out.nbytes))
        call("ggml_backend_tensor_get", result, pointer(out.ctypes.data), *size, result=None)
        for buffer in buffers:
            call("ggml_backend_buffer_free", buffer, result=None)
        for context in contexts:
            call("ggml_free", pointer(context), result=None)

    @staticmethod
    def _tensor(context: ctypes.c_void_p, kind: int, *shape: int) -> ctypes.c_void_p:
        sizes = [ctypes.c_int64(n) for n in shape]
        return pointer(call(f"ggml_new_tensor_{len(shape)}d", context, kind, *sizes))

    @staticmethod
    def _allocate(context: ctypes.c_void_p, memory: str) -> ctypes.c_void_p:
        allocate = "ggml_backend_alloc_ctx_tensors_from_buft"
        return pointer(call(allocate, context, pointer(call(memory))))

    @staticmethod
    def _set(tensor: ctypes.c_void_p, data: bytes) -> None:
        size = (ctypes.c_size_t(0), ctypes.c_size_t(len(data)))
        call("ggml_backend_tensor_set", tensor, data, *size, result=None)


@pytest.fixture(scope="module")
def ggml() -> Iterator[Ggml]:
    made = Ggml()
    yield made
    made.close()


def quantized(kind: int, weights: Floats) -> bytes:
    """Returns weights in a quantization of files."""
    row = call("ggml_row_size", kind, ctypes.c_int64(VALUES), result=ctypes.c_size_t)
    out = ctypes.create_string_buffer(row * ROWS)
    call(
        "ggml_quantize_chunk", kind, weights.ctypes.data_as(ctypes.c_void_p), out,
        ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(VALUES), None,
        result=ctypes.c_size_t,
    )  # fmt: skip
    return out.raw


def rounded(columns: Floats) -> npt.NDArray[np.float64]:
    """Returns columns rounded to eight bits, with a scale for each 32 values."""
    blocks = columns.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
    quants = np.rint(blocks * inverse).astype(np.float64)
    values: npt.NDArray[np.float64] = quants * (largest / np.float32(127))
    return values.reshape(columns.shape)


def made(seed: int, *shape: int) -> Floats:
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * 10.0 ** random.integers(-3, 2, (*shape[:-1], 1))
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_products_are_those_of_float64(ggml: Ggml, kind: str) -> None:
    weights = quantized(FORMATS[kind], made(1, ROWS, VALUES))
    columns = made(2, 31, VALUES)
    columns[3] = 0
    columns[4, 32:] = 0
    got = ggml.product(FORMATS[kind], weights, columns, threads=2)
    values = ggml.values(FORMATS[kind], weights).astype(np.float64)
    given = columns.astype(np.float64) if kind in FLOATS else rounded(columns)
    # Rounding a float32 sum of a few hundred values costs some of the last bits of its bound.
    room = 1e-6 * (np.abs(given) @ np.abs(values.T))
    assert np.all(np.abs(got - given @ values.T) <= room)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_is_identical_alone_and_among_others(ggml: Ggml, kind: str) -> None:
    weights = quantized(FORMATS[kind], made(3, ROWS, VALUES))
    columns = made(4, 40, VALUES)

    def product(given: Floats, threads: int) -> Floats:
        return ggml.product(FORMATS[kind], weights, given, threads=threads)

    alone = np.concatenate([product(columns[i : i + 1], 1) for i in range(40)])
    for count in (2, 3, 7, 12, 13, 31, 40):
        for threads in (1, 2, 3):
            assert np.array_equal(product(columns[:count], threads), alone[:count])


@pytest.mark.parametrize("kind", FORMATS)
def test_several_threads_pack_the_same_weights_as_one(ggml: Ggml, kind: str) -> None:
    """Two threads pack a megabyte if there are two processors."""
    parts = [quantized(FORMATS[kind], made(seed, ROWS, VALUES)) for seed in range(5, 150)]
    columns = made(150, 3, VALUES)
    whole = b"".join(parts)
    assert len(whole) > 2**20
    got = ggml.product(FORMATS[kind], whole, columns, threads=1, rows=ROWS * len(parts))
    expected = [ggml.product(FORMATS[kind], part, columns, threads=1) for part in parts]
    assert np.array_equal(got, np.concatenate(expected, axis=1))


@pytest.mark.parametrize("kind", FLOATS)
def test_rows_of_any_length_are_multiplied(
    ggml: Ggml, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of floats need not be whole blocks."""
    monkeypatch.setitem(globals(), "VALUES", 77)
    weights = quantized(FORMATS[kind], made(5, ROWS, 77))
    columns = made(6, 19, 77)
    got = ggml.product(FORMATS[kind], weights, columns, threads=2)
    values = ggml.values(FORMATS[kind], weights).astype(np.float64)
    room = 1e-6 * (np.abs(columns.astype(np.float64)) @ np.abs(values.T))
    assert np.all(np.abs(got - columns.astype(np.float64) @ values.T) <= room)
    alone = [ggml.product(FORMATS[kind], weights, column[None], threads=1) for column in columns]
    assert np.array_equal(got, np.concatenate(alone))


def test_every_half_is_the_float_that_ggml_reads(
    ggml: Ggml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those below the normal range, of infinity and of no number."""
    monkeypatch.setitem(globals(), "VALUES", 32)
    halves = np.arange(2**16, dtype=np.uint16)
    weights = np.zeros((len(halves), VALUES), np.uint16)
    weights[:, 0] = halves
    column = np.eye(1, VALUES, dtype=np.float32)
    got = ggml.product(FORMATS["F16"], weights.tobytes(), column, threads=1, rows=len(halves))
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(got[0], expected, equal_nan=True)


def kernels_of_process(choice: str) -> tuple[str, str]:
    """Returns the kernels that a process uses if it wants ``choice``, and what it logs."""
    script = "from afterword.engine.llama.binding import packed_kernels; print(packed_kernels())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {CHOICE: choice}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHOICE in os.environ, reason="a run with other kernels")
@pytest.mark.parametrize("kernels", KERNELS)
def test_other_kernels_pass_these_tests(kernels: str) -> None:
    used, log = kernels_of_process(kernels)
    if used != kernels:
        assert f"{CHOICE}={kernels}" in log
        pytest.skip("this processor does not have them")
    if packed_kernels() == kernels:
        pytest.skip("this process has them")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env=os.environ | {CHOICE: kernels}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(CHOICE in os.environ, reason="a run with other kernels")
def test_kernels_that_are_not_there_are_refused_in_the_log() -> None:
    used, log = kernels_of_process("abacus")
    assert used in KERNELS
    assert "AFTERWORD_KERNELS=abacus: this processor has no such kernels" in log


def test_the_portable_kernels_serve_every_processor() -> None:
    assert kernels_of_process("portable") == ("portable", "")


def test_the_changes_of_the_library_have_a_digest() -> None:
    assert len(CHANGES) == 12
