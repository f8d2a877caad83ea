"""Sets up .venv: requirements, llama.cpp compiled for this machine, afterword, the model.

Runs on Python 3.11 or newer with nothing installed. Finished steps are not repeated. The compiled
wheel stays in the user's cache, so a second checkout takes seconds.
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
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements"
# Changes to llama.cpp: patches, added files, and the CMake file that applies them.
NATIVE = ROOT / "native"
INCLUDE = NATIVE / "afterword.cmake"
LOG_LINES = 30
LEAST_PYTHON = (3, 11)
# The build leaves out everything that the server does not use; afterword.cmake does the rest.
# Threads are ggml's own, not OpenMP's: see docs/decisions/0008-one-thread-pool.md.
CMAKE_FLAGS = (
    "-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF", "-DGGML_OPENMP=OFF",
)  # fmt: skip
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# Requests the tile registers from the kernel, then uses one.
AMX_PROBE = r"""
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
__attribute__((target("amx-tile"))) int main() {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1;
    alignas(64) unsigned char config[64] = {1};
    config[16] = 64;
    config[48] = 16;
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_release();
    return 0;
}
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STEP = re.compile(r"\[\s*(\d+)/(\d+)\]")


class InstallError(Exception):
    """An installation that cannot go on; the message is for a terminal."""


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"==> {text}", flush=True)


def run(command: Sequence[str | Path], **environment: str) -> None:
    """Run a command with its output shown. Raises ``InstallError`` if it fails."""
    if subprocess.run(command, env={**os.environ, **environment}, check=False).returncode:
        raise InstallError(f"failed: {' '.join(map(str, command))}")


def pip(*arguments: str | Path) -> None:
    """Run pip in the environment; it shows progress bars on a terminal."""
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    run([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments])


def make_venv() -> None:
    """Create the environment unless its interpreter exists."""
    if PYTHON.exists():
        return
    say(f"creating .venv with Python {platform.python_version()}")
    if subprocess.run([sys.executable, "-m", "venv", VENV], check=False).returncode:
        raise InstallError("python -m venv failed; on Debian and Ubuntu install python3-venv")


def compiler() -> str:
    """Returns the C++ compiler. Raises ``InstallError`` if there is none."""
    wanted = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    found = next(filter(None, (shutil.which(name) for name in wanted if name)), None)
    if found is None:
        raise InstallError("no C++ compiler found; on Debian and Ubuntu: apt install g++")
    return found


def cpu_flags() -> str:
    """Returns the processor's features; the build is for exactly these."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def amx_is_broken(cxx: str) -> bool:
    """Returns whether AMX is advertised but faults, as in some virtual machines.

    A native build uses every advertised feature and would crash at its first matrix.
    """
    if "amx" not in cpu_flags():
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text(AMX_PROBE)
        built = subprocess.run(
            [cxx, "-O1", source, "-o", program], check=False, capture_output=True
        )
        return built.returncode != 0 or subprocess.run([program], check=False).returncode != 0


def build_environment() -> Mapping[str, str]:
    """Returns the environment variables of llama.cpp's build on this machine."""
    flags = NO_AMX if amx_is_broken(compiler()) else ""
    more = os.environ.get("CMAKE_ARGS", "")
    return {
        "CMAKE_ARGS": " ".join([*CMAKE_FLAGS, f"-DCMAKE_PROJECT_INCLUDE={INCLUDE}", more]).strip(),
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}".strip(),
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {flags}".strip(),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
    }


def changes() -> Sequence[Path]:
    """Returns the files that change llama.cpp."""
    return sorted(path for path in NATIVE.rglob("*") if path.is_file())


def wheel_folder(environment: Mapping[str, str]) -> Path:
    """Returns the cache folder of this build's wheel."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parts = [
        (REQUIREMENTS / "llama.txt").read_text(), cpu_flags(), platform.platform(),
        *(file.read_text() for file in changes()), *CMAKE_FLAGS, os.environ.get("CMAKE_ARGS", ""),
        environment["CFLAGS"], environment["CXXFLAGS"],
    ]  # fmt: skip
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return home / "afterword" / "wheels" / key


def llama_wheel() -> Path:
    """Returns the wheel of the bindings; compiles it unless the cache has it."""
    environment = build_environment()
    folder = wheel_folder(environment)
    for wheel in folder.glob("*.whl"):
        return wheel
    say("compiling llama.cpp for this machine: about 4 minutes on 2 cores, once")
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command: list[str | Path] = [
            PYTHON, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir",
            "--require-hashes", "--no-binary", "llama-cpp-python",
            "--requirement", REQUIREMENTS / "llama.txt", "--wheel-dir", scratch,
        ]  # fmt: skip
        show_build(command, environment)
        (built,) = Path(scratch).glob("*.whl")
        folder.mkdir(exist_ok=True)
        # A rename puts the wheel into the cache completely or not at all.
        kept = built.replace(folder / f"{built.name}.part").rename(folder / built.name)
    say(f"compiled in {time.monotonic() - started:.0f} s")
    return kept


def show_build(command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    """Run a build and show its progress; its last lines are in the error if it fails."""
    last: deque[str] = deque(maxlen=LOG_LINES)
    shown = -1
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            last.append(line.rstrip())
            found = STEP.search(line)
            if found:
                shown = show_step(int(found[1]), int(found[2]), shown)
    if sys.stdout.isatty():
        print()
    if process.returncode:
        raise InstallError("llama.cpp did not compile:\n" + "\n".join(last))


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


def install_browser() -> None:
    """Install chromium, which tests of the playground need, unless it is there."""
    if any(map(shutil.which, BROWSERS)):
        return
    apt = shutil.which("apt-get")
    prefix = () if os.geteuid() == 0 else ("sudo", "--non-interactive")
    if apt is None or (prefix and shutil.which("sudo") is None):
        raise InstallError("the tests need chromium; on Debian and Ubuntu: apt install chromium")
    say("installing chromium for the tests of the playground")
    options = ("-o", "DPkg::Lock::Timeout=300", "-qq", "-y", "--no-install-recommends")
    run([*prefix, apt, "update", "-qq"])
    run([*prefix, apt, "install", *options, "chromium", "fonts-dejavu-core"])


def stamp(purpose: str) -> str:
    """Returns a digest of everything that an installation consists of."""
    files = [
        Path(__file__),
        *changes(),
        ROOT / "pyproject.toml",
        *sorted(REQUIREMENTS.glob("*.txt")),
    ]
    parts = [purpose, cpu_flags(), str(VENV.resolve()), *(file.read_text() for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_installed(purpose: str) -> bool:
    """Whether an installation for this purpose is there and up to date."""
    mark = VENV / f"installed-{purpose}"
    return PYTHON.exists() and mark.exists() and mark.read_text() == stamp(purpose)


def install(purpose: str) -> None:
    """Bring .venv up to date: to serve ("base"), for all tests ("test"), for fast ones ("fast")."""
    if purpose == "test":
        install_browser()
    if is_installed(purpose) or (purpose == "fast" and is_installed("test")):
        return
    compiler()
    if shutil.which("patch") is None:
        raise InstallError("patch not found; on Debian and Ubuntu: apt install patch")
    make_venv()
    packages = "base" if purpose == "base" else "test"
    say(f"installing requirements/{packages}.txt")
    pip("--require-hashes", "--requirement", REQUIREMENTS / f"{packages}.txt")
    # Another build may have the same version, so the reinstall is forced.
    pip("--no-deps", "--force-reinstall", llama_wheel())
    say("installing afterword")
    pip("--no-deps", "--editable", ROOT)
    if purpose != "fast":
        say("fetching the embedded model")
        run([VENV / "bin" / "afterword", "models", "pull", "smollm2-135m-instruct"])
    (VENV / f"installed-{purpose}").write_text(stamp(purpose))


def main() -> None:
    """Install; exit with the reason if that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    flags = {
        "test": "also install what the tests need",
        "fast": "install what make test-fast needs: no browser, no model",
    }
    for purpose, words in flags.items():
        parser.add_argument(
            f"--{purpose}", dest="purpose", action="store_const", const=purpose, default="base",
            help=words,
        )  # fmt: skip
    arguments = parser.parse_args()
    if sys.version_info < LEAST_PYTHON:
        sys.exit(f"Python 3.11 or newer is needed; this is {platform.python_version()}")
    started = time.monotonic()
    try:
        install(arguments.purpose)
    except InstallError as error:
        sys.exit(f"install: {error}")
    if time.monotonic() - started > 1:
        say(f"installed in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
