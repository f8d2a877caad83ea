"""Compiles and runs the tests of native/ on every kind of processor that the kernels are for.

Without arguments: with sanitizers of memory and of threads, for AVX2, for x86-64 without AVX (by
clang, emulated), and for ARM (emulated). With --libraries it only compiles the tests for the
libraries in a folder, and prints the program's path; tests/native runs that.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import native_build
from native_build import (
    CMAKE_FLAGS,
    LOG_LINES,
    NATIVE,
    NO_AMX,
    BuildError,
    compiler,
    fetch,
    say,
    unpack,
)
from native_check import base

# What stands alone of native/ is compiled with the tests.
SOURCES = (
    *sorted((NATIVE / "tests").glob("*.cpp")), NATIVE / "library" / "regex.cpp",
    NATIVE / "library" / "abort.cpp", NATIVE / "library" / "message.cpp",
    NATIVE / "kernels" / "packed_memory.cpp",
)  # fmt: skip
HEADERS = tuple(NATIVE / folder for folder in ("include", "library", "kernels"))
WARNINGS = ("-Wall", "-Wextra")
PROGRAM = "afterword-tests"
PROCESSORS = os.cpu_count() or 1
SANITIZERS = f"-g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all {NO_AMX}"
# gcc warns that this sanitizer does not know fences: ggml has other code for it.
OF_THREADS = f"-g1 -O1 -fsanitize=thread -Wno-tsan {NO_AMX}"
# Products of ggml's own that take long to compile, and that no test needs.
LEFT_OUT = ("-DGGML_CPU_REPACK=OFF", "-DGGML_LLAMAFILE=OFF")


class Build(NamedTuple):
    """One way to compile ggml and the tests, and to run them."""

    name: str
    cxx: str = "g++"
    cc: str = "gcc"
    cmake: Sequence[str] = ("-DGGML_NATIVE=OFF",)
    flags: str = ""
    emulator: Sequence[str] = ()
    kernels: Sequence[str] = ("portable",)
    # How the names of the cases begin that are run; all of them if there are none.
    cases: Sequence[str] = ()


BUILDS = (
    Build(
        "sanitized", cmake=("-DCMAKE_BUILD_TYPE=None",), flags=SANITIZERS,
        kernels=("amx", "avx512", "avx2", "portable"),
    ),
    # What threads share; the rest would only take longer.
    Build(
        "threads", cmake=("-DCMAKE_BUILD_TYPE=None", *LEFT_OUT), flags=OF_THREADS,
        kernels=("amx",),
        cases=(
            "threads/", "draw/2 threads", "draw/5 threads", "packed/portions", "experts/q4_K",
            "attention/f16 blocks", "guard/",
        ),
    ),
    Build(
        "avx2", kernels=("avx2",),
        cmake=(
            *LEFT_OUT, "-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON",
            "-DGGML_BMI2=ON",
        ),
    ),
    # Plain x86-64: neither SSE 4 nor AVX. gcc warns of headers of its own.
    Build(
        "x86-64", cxx="clang++", cc="clang", flags="-Werror",
        cmake=(
            *LEFT_OUT, "-DGGML_NATIVE=OFF", "-DGGML_SSE42=OFF", "-DGGML_AVX=OFF", "-DGGML_AVX2=OFF",
            "-DGGML_FMA=OFF", "-DGGML_F16C=OFF", "-DGGML_BMI2=OFF",
        ),
        emulator=("qemu-x86_64", "-cpu", "qemu64"),
    ),
    Build(
        "aarch64", cxx="aarch64-linux-gnu-g++", cc="aarch64-linux-gnu-gcc",
        cmake=(
            *LEFT_OUT, "-DGGML_NATIVE=OFF", "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        ),
        emulator=("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
    ),
)  # fmt: skip
# Debian's packages of the programs that are needed.
PACKAGES = {
    "patch": "patch", "cmake": "cmake", "ninja": "ninja-build", "g++": "g++", "clang++": "clang",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
}  # fmt: skip


def cache() -> Path:
    """Returns the folder in which builds stay."""
    return native_build.cache().with_name("native-tests")


def digest(*parts: Path | str) -> str:
    """Returns a short digest of files and texts."""
    contents = [part.read_bytes() if isinstance(part, Path) else part.encode() for part in parts]
    return hashlib.sha256(b"\n".join(contents)).hexdigest()[:16]


def run_quietly(command: Sequence[str | Path]) -> None:
    """Run a command. Raises ``BuildError``, with the end of its output, if it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = done.stdout.splitlines()[-LOG_LINES:]
        raise BuildError("\n".join([f"failed: {command[0]}", *last]))


def compile_tests(
    cxx: str, flags: Sequence[str], headers: Sequence[Path], libraries: Path, folder: Path
) -> Path:
    """Compile the tests for the libraries in a folder. Returns the program, in another folder.

    Raises ``BuildError`` if they do not compile.
    """
    program = folder / PROGRAM
    options = [f"-I{path}" for path in HEADERS] + [f"-isystem{path}" for path in headers]
    options += ["-std=c++17", "-O1", *WARNINGS, *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch, f"{source.parent.name}-{source.stem}.o") for source in SOURCES]

        def compile_one(source: Path, to: Path) -> None:
            run_quietly([cxx, *options, "-c", source, "-o", to])

        with ThreadPoolExecutor(PROCESSORS) as pool:
            list(pool.map(compile_one, SOURCES, objects))
        linked = Path(scratch, program.name)
        shared = [*libraries.glob("lib*ggml.so"), *libraries.glob("lib*ggml-base.so")]
        paths = [f"-Wl,-rpath,{libraries}", "-Wl,--allow-shlib-undefined"]
        # ggml finds its library of kernels when the program runs: there may be several.
        run_quietly([
            cxx, *flags, *objects, *shared, *paths, "-ldl", "-pthread", "-o", linked,
        ])  # fmt: skip
        # A rename puts the program there completely or not at all.
        return linked.replace(program)


def compiled(libraries: Path) -> Path:
    """Returns the tests for the libraries in a folder; compiles them unless the cache has them.

    Raises ``BuildError`` if they do not compile.
    """
    headers = includes(source(None))
    own = [path for folder in (*HEADERS, NATIVE / "tests") for path in sorted(folder.glob("*.h"))]
    files = [*SOURCES, *own, NATIVE / "BASE", Path(__file__)]
    cxx = compiler()
    program = cache() / f"installed-{digest(*files, cxx, str(libraries))}" / PROGRAM
    return (
        program if program.exists() else compile_tests(cxx, (), headers, libraries, program.parent)
    )


def includes(tree: Path) -> Sequence[Path]:
    """Returns the folders of headers of a source package."""
    return [tree / "vendor/llama.cpp/include", tree / "vendor/llama.cpp/ggml/include"]


def source(given: Path | None) -> Path:
    """Returns the unpacked source package of the base; the given file spares fetching it.

    Raises ``BuildError`` if it is not the package that BASE names.
    """
    version, expected = base()
    patches = sorted((NATIVE / "patches").iterdir())
    folder = cache() / f"source-{version}-{digest(*patches)}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file = given or fetch(Path(scratch))
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise BuildError(f"{file.name} is not the package that native/BASE names")
        return unpack(file, Path(scratch) / "unpacked").replace(folder)


def library(build: Build, tree: Path) -> Path:
    """Compile ggml with native/ in one way. Returns the folder of the libraries."""
    compiled_by = (build.cc, build.cxx, build.flags, *build.cmake)
    folder = cache() / f"{build.name}-{digest(str(tree), *compiled_by)}"
    # The last of two options of one name holds.
    options = [*CMAKE_FLAGS, *build.cmake]
    run_quietly([
        "cmake", "-G", "Ninja", "-S", tree, "-B", folder, *options,
        f"-DCMAKE_C_COMPILER={build.cc}", f"-DCMAKE_CXX_COMPILER={build.cxx}",
        f"-DCMAKE_C_FLAGS={build.flags}", f"-DCMAKE_CXX_FLAGS={build.flags}",
    ])  # fmt: skip
    run_quietly(["ninja", "-C", folder, f"-j{PROCESSORS}", "ggml", "ggml-cpu"])
    return folder / "bin"


def run_tests(program: Path, build: Build) -> Mapping[str, int]:
    """Run the tests with each set of kernels. Returns how many passed.

    Raises ``BuildError`` if one fails.
    """
    passed = {}
    for kernels in build.kernels:
        # All tests with the first set; with the others those of packed weights.
        first = kernels == build.kernels[0]
        wanted = build.cases if first else ("packed/", "experts/", "threads/")
        done = subprocess.run(
            [*build.emulator, program, *wanted], stdout=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "AFTERWORD_KERNELS": kernels},
        )  # fmt: skip
        lines = done.stdout.splitlines()
        if done.returncode:
            last = [line for line in lines if not line.startswith("ok ")] or lines[-1:]
            raise BuildError("\n".join([f"{build.name}, {kernels}: tests fail", *last]))
        used = lines[0].removeprefix("kernels ")
        if used != kernels:
            say(f"{build.name}: this processor does not have {kernels}; {used} was tested")
        passed[used] = sum(line.startswith("ok ") for line in lines)
    return passed


def test(build: Build, tree: Path) -> None:
    """Compile one build and run its tests. Raises ``BuildError`` if that fails."""
    started = time.monotonic()
    libraries = library(build, tree)
    folder = libraries.parent / "tests"
    program = compile_tests(build.cxx, build.flags.split(), includes(tree), libraries, folder)
    compiled = time.monotonic()
    passed = run_tests(program, build)
    counts = ", ".join(f"{count} with {kernels}" for kernels, count in passed.items())
    say(
        f"{build.name}: {counts} pass; compiled in {compiled - started:.0f} s,"
        f" run in {time.monotonic() - compiled:.0f} s"
    )


def check_tools(builds: Sequence[Build]) -> None:
    """Raises ``BuildError``, with what to install, if a program is missing."""
    if platform.machine() != "x86_64":
        raise BuildError("its builds are made on x86-64; make test runs the tests here")
    needed = ["patch", "cmake", "ninja", *(build.cxx for build in builds)]
    needed += [build.emulator[0] for build in builds if build.emulator]
    packages = sorted({PACKAGES[name] for name in needed if shutil.which(name) is None})
    if packages:
        raise BuildError(f"on Debian and Ubuntu: apt install {' '.join(packages)}")


def main() -> None:
    """Test; exit with the reason if something is missing or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [build.name for build in BUILDS]
    parser.add_argument("builds", nargs="*", metavar="BUILD", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--libraries", type=Path, help="only compile the tests, for the libraries in this folder"
    )
    parser.add_argument("--source", type=Path, help="the source package that native/BASE names")
    arguments = parser.parse_args()
    chosen = [build for build in BUILDS if build.name in (arguments.builds or names)]
    if unknown := set(arguments.builds) - set(names):
        parser.error(f"no such build: {', '.join(sorted(unknown))}")
    try:
        if arguments.libraries:
            print(compiled(arguments.libraries.resolve()))
            return
        check_tools(chosen)
        tree = source(arguments.source)
        for build in chosen:
            test(build, tree)
    except BuildError as error:
        sys.exit(f"native-test: {error}")


if __name__ == "__main__":
    main()
