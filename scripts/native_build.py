"""Builds Afterword's native half, the package ``afterword_native``, from native/ and llama.cpp.

Runs on Python 3.11 or newer with nothing installed but pip. What was compiled stays in the user's
cache, under a digest of all that it depends on. docs/native.md says what is where.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Way: TypeAlias = Literal["native", "portable", "vulkan", "cuda", "metal", "hip"]
"""For this processor, for all processors of its kind, or for this one and a kind of GPU."""

Version: TypeAlias = tuple[int, ...]

ROOT = Path(__file__).resolve().parent.parent
# Changes to llama.cpp: patches, added files, and the CMake file that applies them.
NATIVE = ROOT / "native"
REQUIREMENT = ROOT / "requirements" / "llama.txt"
SOURCE_PACKAGE = "llama-cpp-python"
PACKAGE = "afterword_native"
_BUILD_FILE = f"{PACKAGE}/_build.py"
LOG_LINES = 30
# The build leaves out everything that the server does not use; afterword.cmake does the rest.
# Threads are ggml's own, not OpenMP's: see docs/decisions/0008-one-thread-pool.md.
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DGGML_OPENMP=OFF", "-DGGML_CCACHE=OFF",
    # Off is what other systems do anyway; macOS would take these in place of our kernels.
    "-DGGML_METAL=OFF", "-DGGML_BLAS=OFF", "-DGGML_ACCELERATE=OFF",
    f"-DCMAKE_PROJECT_INCLUDE={NATIVE / 'afterword.cmake'}",
)  # fmt: skip


class Sdk(NamedTuple):
    """What llama.cpp needs to be compiled for a kind of GPU.

    ``flags`` replace those of the same name in ``CMAKE_FLAGS``. ``homes`` are the variables that
    may name its folder. ``advice`` says how to get it.
    """

    name: str
    flags: Sequence[str]
    program: str
    headers: Sequence[str]
    homes: Sequence[str]
    advice: str


SDKS: Mapping[Way, Sdk] = {
    "vulkan": Sdk(
        "the Vulkan SDK", ("-DGGML_VULKAN=ON",), "glslc",
        ("vulkan/vulkan.hpp", "spirv/unified1/spirv.hpp"), ("VULKAN_SDK",),
        "on Debian and Ubuntu: apt install glslc libvulkan-dev spirv-headers",
    ),
    "cuda": Sdk(
        # Without virtual memory, the library opens on a machine that has no driver, too.
        "the CUDA toolkit", ("-DGGML_CUDA=ON", "-DGGML_CUDA_NO_VMM=ON"), "nvcc",
        ("cublas_v2.h",), ("CUDA_HOME", "CUDA_PATH"),
        "install NVIDIA's package cuda-toolkit, and put its bin folder into PATH or its folder "
        "into CUDA_HOME",
    ),
    "metal": Sdk(
        "Metal", ("-DGGML_METAL=ON",), "xcrun", (), (),
        "it is part of macOS; there: xcode-select --install",
    ),
    "hip": Sdk(
        "ROCm", ("-DGGML_HIP=ON",), "hipconfig",
        ("hip/hip_runtime.h", "hipblas/hipblas.h", "rocblas/rocblas.h"), ("ROCM_PATH",),
        "install AMD's packages hip-dev, hipblas-dev and rocblas-dev, and put its bin folder into "
        "PATH or its folder into ROCM_PATH",
    ),
}  # fmt: skip
_INSTRUCTIONS = ("SSE42", "AVX", "AVX2", "BMI2", "F16C", "FMA", "AVX512")
# Instructions by the build of ggml's CPU library. The first is also that of the other libraries.
# VNNI is left out of the last, so that Skylake-X runs it: our kernels look for it themselves.
X86_VARIANTS: Mapping[str, Sequence[str]] = {
    "x86-64": (),
    "x86-64-v3": _INSTRUCTIONS[:-1],
    "x86-64-v4": _INSTRUCTIONS,
}
LEAST_CMAKE = (3, 21)
# ggml's kernels with AMX depend on the batch, and GCC 12 breaks them. Ours ask for AMX themselves.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
STEP = re.compile(r"\[\s*(\d+)/(\d+)\]")
# What the bindings of llama-cpp-python import and open, and what they do here instead.
_FROM_HERE = f"from {PACKAGE}._ctypes_extensions import ("
_OPENING = re.compile(
    r"^# Specify the base name of the shared library.*?^_lib = load_shared_library\(.*?\)\n",
    re.MULTILINE | re.DOTALL,
)
_RELATIVE = b"\0GLIBC_ABI_DT_RELR\0"
_NEEDS = re.compile(rb"(?<=\0)(GLIBC|GLIBCXX|CXXABI|GCC)_(\d+(?:\.\d+)*)(?=\0)")
# The newest versions of the C++ runtime that systems with a glibc have, as auditwheel says.
_RUNTIMES: Mapping[Version, Mapping[bytes, Version]] = {
    (2, 17): {b"GLIBCXX": (3, 4, 19), b"CXXABI": (1, 3, 7), b"GCC": (4, 8, 0)},
    (2, 28): {b"GLIBCXX": (3, 4, 24), b"CXXABI": (1, 3, 11), b"GCC": (7, 0, 0)},
    (2, 31): {b"GLIBCXX": (3, 4, 28), b"CXXABI": (1, 3, 12), b"GCC": (7, 0, 0)},
    (2, 34): {b"GLIBCXX": (3, 4, 29), b"CXXABI": (1, 3, 13), b"GCC": (7, 0, 0)},
    (2, 35): {b"GLIBCXX": (3, 4, 30), b"CXXABI": (1, 3, 13), b"GCC": (12, 0, 0)},
    (2, 39): {b"GLIBCXX": (3, 4, 33), b"CXXABI": (1, 3, 15), b"GCC": (14, 0, 0)},
}


class BuildError(Exception):
    """The native half cannot be built; the message is for a terminal."""


class Variant(NamedTuple):
    """One configuration of llama.cpp, and which of its libraries go into which folder."""

    name: str
    flags: Sequence[str]
    targets: Sequence[str]
    folder: str


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"==> {text}", flush=True)


# What a build is made for, and what it needs.


def cpu_flags() -> str:
    """Returns the processor's features; a native build is for exactly these."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def compiler() -> str:
    """Returns the C++ compiler. Raises ``BuildError`` if there is none."""
    wanted = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    found = next(filter(None, (shutil.which(name) for name in wanted if name)), None)
    if found is None:
        raise BuildError("no C++ compiler found; on Debian and Ubuntu: apt install g++")
    return found


def _has_cmake() -> bool:
    found = shutil.which("cmake")
    if found is None:
        return False
    done = subprocess.run([found, "--version"], check=False, capture_output=True, text=True)
    version = re.search(r"version (\d+)\.(\d+)", done.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= LEAST_CMAKE


def missing_packages() -> Sequence[str]:
    """Returns the Python packages that would give the build programs that this machine lacks."""
    packages = [] if _has_cmake() else ["cmake>=" + ".".join(map(str, LEAST_CMAKE))]
    return packages if shutil.which("ninja") else [*packages, "ninja"]


def _missing_headers(way: Way, program: str) -> Sequence[str]:
    """Returns the headers of an SDK that its compiler does not find."""
    headers = SDKS[way].headers
    homes = [os.environ.get("VULKAN_SDK"), _told_by_sdk(way, "-R") if way == "hip" else None]
    command = [compiler(), *(f"-I{home}/include" for home in homes if home), "-x", "c++"]
    done = subprocess.run(
        # nvcc alone knows where those of CUDA are.
        [*([program, "-x", "cu"] if way == "cuda" else command), "-E", "-"],
        input="".join(
            f"#if !__has_include(<{header}>)\n#error no {header}\n#endif\n" for header in headers
        ),
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    # Another fault, such as a compiler that is too new, is said when the build is configured.
    return [header for header in headers if f"#error no {header}" in done.stderr]


def sdk_path(way: Way) -> str:
    """Returns PATH, behind the folders of an SDK that variables name."""
    homes = [home for name in SDKS[way].homes if (home := os.environ.get(name))]
    folders = [f"{home}/bin" for home in homes]
    if way == "cuda" and (nvcc := shutil.which(os.environ.get("CUDACXX", ""))):
        folders.insert(0, str(Path(nvcc).parent))
    return os.pathsep.join([*folders, os.environ.get("PATH", "")])


def _told_by_sdk(way: Way, *flags: str) -> str:
    """Returns what the program of an SDK says; empty if it is not there."""
    program = shutil.which(SDKS[way].program, path=sdk_path(way))
    if program is None:
        return ""
    done = subprocess.run([program, *flags], check=False, capture_output=True, text=True)
    return done.stdout.strip()


def check_sdk(way: Way) -> None:
    """Raises ``BuildError`` in one line if the SDK of a GPU is missing; others need none."""
    sdk = SDKS.get(way)
    if sdk is None:
        return
    program = shutil.which(sdk.program, path=sdk_path(way))
    missing = [sdk.program] if program is None else _missing_headers(way, program)
    if missing:
        parts = f"no {' and no '.join(missing)}"
        raise BuildError(f"GPU={way}: {sdk.name} not found ({parts}); {sdk.advice}")


def check_programs(way: Way = "native") -> None:
    """Raises ``BuildError`` with what is missing and how to get it."""
    compiler()
    check_sdk(way)
    if shutil.which("patch") is None:
        raise BuildError("patch not found; on Debian and Ubuntu: apt install patch")
    packages = missing_packages()
    if packages:
        names = " and ".join(name.partition(">")[0] for name in packages)
        raise BuildError(f"{names} not found; pip install {' '.join(map(repr, packages))}")


# What is built.


def variants(way: Way) -> Sequence[Variant]:
    """Returns what is configured and compiled, in this order."""
    if way == "native":
        return (Variant("native", CMAKE_FLAGS, ("llama",), ""),)
    if way in SDKS:
        include = f"-DCMAKE_PROJECT_INCLUDE={NATIVE / 'gpu.cmake'}"
        flags = (*CMAKE_FLAGS, *SDKS[way].flags, include)
        return (Variant("native", flags, (f"ggml-{way}",), ""),)
    flags = (*CMAKE_FLAGS, "-DGGML_NATIVE=OFF")
    if platform.machine() not in {"x86_64", "AMD64"}:
        return (Variant("portable", flags, ("llama",), ""),)
    return tuple(
        Variant(
            name,
            (*flags, *(f"-DGGML_{i}={'ON' if i in has else 'OFF'}" for i in _INSTRUCTIONS)),
            ("ggml-cpu",) if has else ("llama",),
            name,
        )
        for name, has in X86_VARIANTS.items()
    )


def _files(*patterns: str) -> Sequence[Path]:
    return sorted(file for p in patterns for file in NATIVE.glob(p) if file.is_file())


def compiled_files() -> Sequence[Path]:
    """Returns the files of this checkout that the libraries depend on."""
    folders = ("patches/*", "kernels/*", "library/*", "include/*")
    return [REQUIREMENT, *_files("BASE", "afterword.cmake", *folders)]


def gpu_files() -> Sequence[Path]:
    """Returns the files that the backend of a GPU depends on: no kernels of the processor."""
    return [REQUIREMENT, *_files("BASE", "afterword.cmake", "patches/*", "gpu.cmake", "gpu/*")]


def package_files() -> Sequence[Path]:
    """Returns the Python files of the package."""
    return _files("package/*.py")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _flags_text(way: Way) -> Sequence[str]:
    # Not the folder of this checkout, which changes nothing.
    texts = [flag for variant in variants(way) for flag in (variant.name, *variant.flags)]
    return [text.replace(str(NATIVE), "") for text in texts]


def source_digest() -> str:
    """Returns the digest of all in this checkout that a portable package depends on."""
    files = (*compiled_files(), *package_files(), Path(__file__))
    return _digest(*_flags_text("portable"), *(file.read_text() for file in files))


def build_digest(way: Way) -> str:
    """Returns the digest of all that the libraries depend on, with compiler and processor.

    Raises ``BuildError`` if there is no compiler.
    """
    if way in SDKS:
        return _digest(build_digest("native"), backend_digest(way))
    return _digest_of(way, compiled_files(), ())


def backend_digest(way: Way) -> str:
    """Returns the digest of all that the backend of a GPU depends on; see ``build_digest``."""
    # Libraries of a toolkit have names with its version.
    told = (_told_by_sdk(way, "--version"),) if way in {"cuda", "hip"} else ()
    return _digest_of(way, gpu_files(), told)


def _digest_of(way: Way, files: Sequence[Path], more: Sequence[str]) -> str:
    about = subprocess.run(
        [compiler(), "--version"], check=False, capture_output=True, text=True
    ).stdout.partition("\n")[0]
    surroundings = [os.environ.get(name, "") for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS")]
    return _digest(
        *_flags_text(way), *(file.read_text() for file in files), about,
        platform.machine(), *platform.libc_ver(), "" if way == "portable" else cpu_flags(),
        *surroundings, *more,
    )  # fmt: skip


# Compiling.


def cache() -> Path:
    """Returns the folder of everything that was compiled."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "afterword" / "native"


def cached(way: Way) -> Path | None:
    """Returns the folder of this checkout's libraries; None if they must be compiled."""
    try:
        folder = cache() / build_digest(way)
    except BuildError:
        return None
    return folder if folder.is_dir() else None


def fetch(folder: Path, *requirement: str | Path) -> Path:
    """Download a source package; by default the pinned one, by its hash. Returns its file.

    pip knows this machine's index. Raises ``BuildError`` if it fails.
    """
    wanted = requirement or ("--require-hashes", "--requirement", REQUIREMENT)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-binary", SOURCE_PACKAGE, "--dest", folder, *wanted,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    found = list(folder.glob("*.tar.gz"))
    if done.returncode or len(found) != 1:
        why = done.stderr.strip().rpartition("\n")[2]
        raise BuildError(f"pip could not download the source of {SOURCE_PACKAGE}: {why}")
    return found[0]


def unpack(file: Path, folder: Path) -> Path:
    """Unpack a source package. Returns its folder."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    return source


def build_environment(way: Way) -> Mapping[str, str]:
    """Returns what the environment of a build has besides this one's."""
    flags = NO_AMX if way != "portable" and "amx" in cpu_flags() else ""
    made = {name: f"{os.environ.get(name, '')} {flags}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    if way in SDKS:
        made["PATH"] = sdk_path(way)
    if way == "hip":
        home = _told_by_sdk(way, "-R")
        made |= {
            "HIPCXX": f"{_told_by_sdk(way, '-l')}/clang", "HIP_PATH": home, "ROCM_PATH": home,
        }  # fmt: skip
    return made


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile_variant(source: Path, variant: Variant, environment: Mapping[str, str]) -> Path:
    """Configure and compile a source package. Returns the folder of its libraries.

    Raises ``BuildError`` with the last lines of the log.
    """
    build = source / "build" / variant.name
    configure: list[str | Path] = [
        "cmake", "-G", "Ninja", "-S", source, "-B", build, *variant.flags,
        *os.environ.get("CMAKE_ARGS", "").split(),
    ]  # fmt: skip
    show_build(configure, environment)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(_processors()))
    show_build(["ninja", "-C", build, "-j", jobs, *variant.targets], environment)
    return build / "bin"


def compile_all(source: Path, folder: Path, way: Way) -> None:
    """Compile all variants of a source package into a folder, with the bindings that they need.

    For a GPU that is the library of its backend alone.
    """
    for variant in variants(way):
        if variant.name != "native":
            say(f"for {variant.name}")
        libraries = compile_variant(source, variant, build_environment(way))
        wanted = f"libafterword-ggml-{way}.*" if way in SDKS else "libafterword-*"
        for file in libraries.glob(wanted):
            own = variant.folder if "ggml-cpu" in file.name else ""
            if own or way in SDKS or "llama" in variant.targets:
                target = folder / "lib" / own
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    for name in ("llama_cpp.py", "_ctypes_extensions.py"):
        shutil.copy(source / "llama_cpp" / name, folder)


@contextmanager
def _put_in_place(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes ``folder``, completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        part, old = Path(scratch, "part"), Path(scratch, "old")
        part.mkdir()
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)


def compiled(way: Way) -> Path:
    """Returns the folder of this checkout's libraries; compiles them unless the cache has them.

    Those for a GPU are those for this processor, and the library of its backend.
    Raises ``BuildError`` with what is missing, did not compile, or changed meanwhile.
    """
    found = cached(way)
    if found is not None:
        return found
    check_programs(way)
    if way not in SDKS:
        return _compiled(way, build_digest)
    parts = (compiled("native"), _compiled(way, backend_digest))
    folder = cache() / build_digest(way)
    with _put_in_place(folder) as whole:
        for part in parts:
            shutil.copytree(part, whole, dirs_exist_ok=True)
    return folder


def _compiled(way: Way, digest_of: Callable[[Way], str]) -> Path:
    digest = digest_of(way)
    folder = cache() / digest
    if folder.is_dir():
        return folder
    minutes = {"native": "4", "portable": "6"}.get(way, "20 or more")
    say(f"compiling llama.cpp, {way}: {minutes} minutes on 2 cores, once")
    started = time.monotonic()
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".build-") as scratch:
        file = fetch(Path(scratch))
        source = unpack(file, Path(scratch, "source"))
        with _put_in_place(folder) as part:
            compile_all(source, part, way)
            # Kernels are compiled where they are, so that one may be newer than its digest.
            if digest_of(way) != digest:
                raise BuildError("native/ changed while it was compiled; compile it again")
    say(f"compiled in {time.monotonic() - started:.0f} s")
    return folder


def show_build(command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    """Run a build and show its progress; its last lines are in the error if it fails."""
    last: deque[str] = deque(maxlen=LOG_LINES)
    shown, steps = -1, 0
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            last.append(line.rstrip())
            found = STEP.search(line)
            # A build inside this one has fewer steps.
            if found and int(found[2]) >= steps:
                steps = int(found[2])
                shown = show_step(int(found[1]), steps, shown)
    if shown >= 0 and sys.stdout.isatty():
        print()
    if process.returncode:
        raise BuildError("llama.cpp did not compile:\n" + "\n".join(last))


def show_step(done: int, steps: int, shown: int) -> int:
    """Show a bar on a terminal, a line for each tenth elsewhere. Returns the percentage."""
    percent = 100 * done // max(steps, 1)
    if sys.stdout.isatty():
        width = 40
        filled = width * done // max(steps, 1)
        bar = "#" * filled + "-" * (width - filled)
        print(f"\r    [{bar}] {done}/{steps}", end="", flush=True)
    elif percent // 10 > shown // 10:
        print(f"    compiled {done} of {steps}", flush=True)
    return percent


# The package.


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise BuildError(f"{SOURCE_PACKAGE} has changed: its bindings have no {old!r}")
    return text.replace(old, new)


def bindings(text: str) -> str:
    """Returns llama-cpp-python's module of functions, for the library that is open already.

    Raises ``BuildError`` if the module is not as expected.
    """
    text = _replaced(text, "from llama_cpp._ctypes_extensions import (", _FROM_HERE)
    text, found = _OPENING.subn(f"import {PACKAGE}\n\n_lib = {PACKAGE}.LIBRARY\n", text)
    if found != 1:
        raise BuildError(f"{SOURCE_PACKAGE} has changed: its bindings open libraries in a new way")
    return text


def extensions(text: str) -> str:
    """Returns llama-cpp-python's module of types, without another package."""
    return _replaced(
        text, "from typing_extensions import TypeAlias", "from typing import TypeAlias"
    )


def assemble(libraries: Path, folder: Path, digest: str) -> None:
    """Write the package from what was compiled. ``folder`` is replaced if it is there."""
    with _put_in_place(folder) as part:
        shutil.copytree(libraries / "lib", part / "lib")
        for file in package_files():
            shutil.copy(file, part)
        part.joinpath("py.typed").touch()
        base = " ".join((NATIVE / "BASE").read_text().split()[:2])
        part.joinpath(Path(_BUILD_FILE).name).write_text(
            '"""What this package was built from."""\n\n'
            f'BASE = "{base}"\nBUILD = "{digest}"\nSOURCE = "{source_digest()}"\n'
        )
        for name, change in (("llama_cpp.py", bindings), ("_ctypes_extensions.py", extensions)):
            part.joinpath(name).write_text(change((libraries / name).read_text()))


def build(way: Way, folder: Path) -> None:
    """Write the package into ``folder``; compiles what the cache has not.

    Raises ``BuildError`` with what is missing or did not compile.
    """
    assemble(compiled(way), folder, build_digest(way))


def source_of(wheel: Path) -> str | None:
    """Returns the digest of the checkout that a wheel is from; None if it has no native half."""
    with zipfile.ZipFile(wheel) as archive:
        if _BUILD_FILE not in archive.namelist():
            return None
        found = re.search(r'^SOURCE = "(\w+)"$', archive.read(_BUILD_FILE).decode(), re.MULTILINE)
    return found[1] if found else None


def extract(wheel: Path, folder: Path) -> None:
    """Write the package of a wheel into ``folder``, which is replaced if it is there."""
    with _put_in_place(folder) as part, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top, _, inside = name.partition("/")
            if top == PACKAGE and not name.endswith("/"):
                file = part / inside
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def platform_tag(package: Path) -> str:
    """Returns the tag of a wheel, by the newest versions of libc and libstdc++ that it needs.

    Libraries that need something newer than all known systems have are for systems like this one.
    """
    if sys.platform != "linux":
        return re.sub(r"[-.]", "_", sysconfig.get_platform())
    machine = platform.machine()
    contents = [file.read_bytes() for file in package.glob("lib/**/*.so")]
    needs: dict[bytes, Version] = {b"GLIBC": (2, 17)}
    for found in (match for content in contents for match in _NEEDS.finditer(content)):
        version = tuple(map(int, found[2].split(b".")))
        needs[found[1]] = max(version, needs.get(found[1], ()))
    glibc = needs.pop(b"GLIBC")
    if any(_RELATIVE in content for content in contents):
        glibc = max(glibc, (2, 36))
    for system, has in _RUNTIMES.items():
        if all(version <= has[name] for name, version in needs.items()):
            major, minor, *_ = max(glibc, system)
            return f"manylinux_{major}_{minor}_{machine}"
    return f"linux_{machine}"


def main() -> None:
    """Write the package; exit with the reason if that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help=f"where {PACKAGE} is written")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--portable", dest="way", action="store_const", const="portable", default="native",
        help="for all processors of this kind",
    )  # fmt: skip
    ways.add_argument("--gpu", dest="way", choices=list(SDKS), help="with a kind of GPU")
    arguments = parser.parse_args()
    try:
        build(arguments.way, arguments.folder)
    except BuildError as error:
        sys.exit(f"install: {error}")


if __name__ == "__main__":
    main()
