"""The native tests pass with the installed library, and each set of kernels that runs here.

native/tests has them; a case of theirs is a subtest here. ``make native-test`` runs the same cases
under sanitizers and on other processors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from afterword.engine.llama.binding import CHANGES, lib

ROOT = Path(__file__).parents[2]
CHOICE = "AFTERWORD_KERNELS"
KERNELS = ("amx", "avx512", "avx2", "portable")
PACKED = ("packed", "experts")
# What does not depend on the kernels for packed weights.
OTHERS = ("attention", "draw", "exponentials", "guard", "memory", "regex", "threads", "tokenizers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHANGES, reason="an unchanged library"),
]


LIBRARIES = Path(lib._lib._name).parent


def open_libraries() -> str:
    """Returns the folders of the libraries that are open: the one with kernels may be apart."""
    maps = Path("/proc/self/maps")
    rows = maps.read_text().splitlines() if maps.exists() else []
    files = [Path(row.split(maxsplit=5)[5]) for row in rows if "ggml" in row]
    return os.pathsep.join(sorted({str(file.parent) for file in files}))


@pytest.fixture(scope="session")
def program() -> Path:
    """The native tests, compiled for the library of this process."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "native_test.py", "--libraries", LIBRARIES],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def lines(program: Path, *arguments: str, kernels: str = "") -> Sequence[str]:
    """Returns what the program says. A crash is an error, a test that fails is not."""
    environment = os.environ | ({CHOICE: kernels} if kernels else {})
    environment["LD_LIBRARY_PATH"] = open_libraries()
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return done.stdout.splitlines()


def check_all(cases: Sequence[str], subtests: pytest.Subtests) -> None:
    assert cases
    for case in cases:
        verdict, _, rest = case.partition(" ")
        with subtests.test(rest.partition(": ")[0]):
            assert verdict == "ok", rest


@pytest.mark.parametrize("kernels", KERNELS)
def test_packed_products(program: Path, subtests: pytest.Subtests, kernels: str) -> None:
    first, *cases, _ = lines(program, *(f"{name}/" for name in PACKED), kernels=kernels)
    if first != f"kernels {kernels}":
        pytest.skip("this processor does not have them")
    check_all(cases, subtests)


@pytest.mark.parametrize("name", OTHERS)
def test_native(program: Path, subtests: pytest.Subtests, name: str) -> None:
    _, *cases, _ = lines(program, f"{name}/")
    check_all(cases, subtests)


def test_every_native_case_runs_here(program: Path) -> None:
    names = {case.partition("/")[0] for case in lines(program, "--list")}
    assert names == {*OTHERS, *PACKED}
