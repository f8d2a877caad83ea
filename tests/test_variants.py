"""Which build of ggml's CPU library a processor runs, and what happens without any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from afterword_native.processor import NEEDS, VariantError, choose, features

SSE = {"fpu", "sse", "sse2", "ssse3", "sse4_1", "sse4_2", "popcnt"}
IVY_BRIDGE = SSE | {"avx", "f16c"}
HASWELL = IVY_BRIDGE | {"avx2", "fma", "bmi1", "bmi2", "abm", "movbe"}
ZEN_3 = HASWELL | {"sha_ni", "vaes", "vpclmulqdq"}
SKYLAKE_X = HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
CASCADE_LAKE = SKYLAKE_X | {"avx512_vnni"}
SAPPHIRE_RAPIDS = CASCADE_LAKE | {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}
KNIGHTS_LANDING = HASWELL | {"avx512f", "avx512cd", "avx512er", "avx512pf"}


@pytest.mark.parametrize(
    ("has", "variant"),
    [
        (set(), "x86-64"),
        (SSE, "x86-64"),
        (IVY_BRIDGE, "x86-64"),
        (HASWELL, "x86-64-v3"),
        (ZEN_3, "x86-64-v3"),
        (KNIGHTS_LANDING, "x86-64-v3"),
        (SKYLAKE_X, "x86-64-v4"),
        (CASCADE_LAKE, "x86-64-v4"),
        (SAPPHIRE_RAPIDS, "x86-64-v4"),
        # Virtual machines leave out single features.
        (HASWELL - {"fma"}, "x86-64"),
        (CASCADE_LAKE - {"avx512vl"}, "x86-64-v3"),
        (CASCADE_LAKE - {"bmi2"}, "x86-64"),
    ],
)
def test_the_best_that_a_processor_runs(has: set[str], variant: str) -> None:
    assert choose(NEEDS, frozenset(has), None) == variant


def test_only_what_was_built_is_chosen() -> None:
    assert choose(["x86-64", "x86-64-v3"], frozenset(CASCADE_LAKE)) == "x86-64-v3"


def test_another_one_can_be_asked_for() -> None:
    for variant in NEEDS:
        assert choose(NEEDS, frozenset(CASCADE_LAKE), variant) == variant
    assert choose(NEEDS, frozenset(), "x86-64") == "x86-64"


@pytest.mark.parametrize("wanted", ["x86-64-v4", "abacus", ""])
def test_what_cannot_run_is_refused(wanted: str) -> None:
    """An instruction that the processor has not would end the process without a word."""
    with pytest.raises(VariantError, match=rf"VARIANT={wanted}: .* runs x86-64-v3, x86-64$"):
        choose(NEEDS, frozenset(HASWELL), wanted)


def test_features_are_those_of_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nvmx flags\t: ept\n")
    assert features(file) == {"fpu", "avx2", "fma"}
    file.write_text("processor\t: 0\nFeatures\t: asimd\n")
    assert features(file) == frozenset()
    assert features(tmp_path / "missing") == frozenset()


def complete(before: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``afterword complete`` after a statement."""
    code = f"import sys; {before}; from afterword.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "complete", "a"], check=False, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_without_a_native_half_one_line_says_what_to_do() -> None:
    done = complete("sys.modules['afterword_native'] = None")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("afterword: the native half of Afterword cannot be loaded (")
    assert line.endswith("install a wheel, or run make install in the checkout")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("AFTERWORD_NATIVE_VARIANT", "abacus"),
        ("AFTERWORD_NATIVE_PATH", "/nowhere"),
        ("AFTERWORD_NATIVE_PATH", str(Path(__file__).parent)),
    ],
)
def test_a_library_that_is_not_there_is_one_line(name: str, wanted: str) -> None:
    done = complete(**{name: wanted})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert wanted in line


def test_another_llama_cpp_is_neither_used_nor_disturbed() -> None:
    """Neither by the module, nor by the names of libraries in the process."""
    code = (
        "import sys; sys.modules['llama_cpp'] = None; import afterword.engine.llama.binding; "
        "print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = {Path(line.split()[-1]).name for line in done.stdout.splitlines() if line}
    libraries = {name for name in names if "llama" in name or "ggml" in name}
    assert len(libraries) == 4
    assert all(name.startswith("libafterword-") for name in libraries)
