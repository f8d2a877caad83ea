"""The wheel of this checkout in a new environment, where there is no compiler, make or patch.

``make wheel`` builds it; without one of the same sources these tests are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from afterword_native.processor import NEEDS, features

import native_build

ROOT = Path(__file__).parents[2]
RUNNABLE = [name for name, needs in NEEDS.items() if needs <= features()]
QUESTION = "The capital of France is"


@pytest.fixture(scope="module")
def wheel() -> Path:
    for file in (ROOT / "dist").glob("afterword-*.whl"):
        if native_build.source_of(file) == native_build.source_digest():
            return file
    pytest.skip("there is no wheel of these sources: make wheel")


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process that finds Python, what the wheel installed, and nothing."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    kept = {name: text for name, text in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    environment = {
        **kept, "HOME": os.environ.get("HOME", ""), "PATH": str(folder / "venv" / "bin"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    pip = folder / "venv" / "bin" / "pip"
    subprocess.run(
        [pip, "install", "--quiet", wheel],
        env=environment, check=True,
    )  # fmt: skip
    return environment


def complete(environment: Mapping[str, str], **more: str) -> str:
    """Returns what ``afterword complete`` writes, greedily."""
    command = ["afterword", "complete", "--temperature", "0", "--max-tokens", "12", QUESTION]
    program = Path(environment["PATH"], command[0])
    done = subprocess.run(
        [program, *command[1:]], env={**environment, **more}, cwd="/", check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def test_the_wheel_answers(elsewhere: Mapping[str, str]) -> None:
    """With the embedded model, which it fetches."""
    assert "Paris" in complete(elsewhere)


@pytest.mark.parametrize("variant", RUNNABLE)
def test_each_variant_answers(elsewhere: Mapping[str, str], variant: str) -> None:
    assert "Paris" in complete(elsewhere, AFTERWORD_NATIVE_VARIANT=variant)


def test_doctor_names_the_variant(elsewhere: Mapping[str, str]) -> None:
    """And the fingerprint changes with it (D3)."""
    said = {}
    for variant in RUNNABLE:
        done = subprocess.run(
            [Path(elsewhere["PATH"], "afterword"), "doctor"], check=True, capture_output=True,
            text=True, env={**elsewhere, "AFTERWORD_NATIVE_VARIANT": variant},
        )  # fmt: skip
        rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
        assert rows["library"].endswith(f", {variant}")
        said[rows["fingerprint"]] = variant
    assert len(said) == len(RUNNABLE)


def test_it_needs_no_library_that_numpy_does_not(wheel: Path, elsewhere: Mapping[str, str]) -> None:
    """Its name says which versions; no file is in it twice."""
    site = next(Path(elsewhere["PATH"]).parent.glob("lib/python3*/site-packages"))
    libraries = sorted((site / native_build.PACKAGE).glob("lib/**/*.so*"))
    assert len(libraries) == 3 + len(NEEDS)
    done = subprocess.run(
        ["readelf", "--dynamic", "--wide", *libraries], check=True, capture_output=True, text=True
    )
    needed = {
        line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "NEEDED" in line
    }
    system = {name for name in needed if not name.startswith("libafterword-")}
    runtime = {"libstdc++.so.6", "libgcc_s.so.1"}
    assert system <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", *runtime}
    assert "manylinux_2_" in wheel.name
