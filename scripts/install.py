"""Sets up .venv: requirements, the native half, afterword, the model. Or writes the wheel.

Runs on Python 3.11 or newer with nothing installed. Finished steps are not repeated. What was
compiled stays in the user's cache, so a second checkout takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import native_build
from native_build import say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements"
WHEELS = ROOT / "dist"
LEAST_PYTHON = (3, 11)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PURPOSES = ("base", "test", "fast")
INSTALLED_GPU = VENV / "gpu"
"""The file that keeps the kind of GPU of the last installation."""


class InstallError(Exception):
    """An installation that cannot go on; the message is for a terminal."""


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


def add_to_path() -> None:
    """Let builds find the programs of the environment, behind those of the machine."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(VENV / "bin")])


def kept_gpu() -> str:
    """Returns the kind of GPU of the last installation; none if it was for none."""
    return INSTALLED_GPU.read_text() if INSTALLED_GPU.exists() else "none"


def wanted_way() -> native_build.Way:
    """Returns how to build: for the kind of GPU that the variable GPU names, or without one.

    Without the variable, the kind of the last installation stays. Raises ``InstallError``.
    """
    wanted = os.environ.get("GPU") or kept_gpu()
    if wanted == "none":
        return "native"
    for way in native_build.SDKS:
        if way == wanted:
            return way
    kinds = ", ".join(native_build.SDKS)
    raise InstallError(f"GPU={wanted} is no kind of GPU; there are {kinds}, and none")


def install_native(way: native_build.Way) -> None:
    """Put the native half into the environment: from a wheel, from the cache, or compiled.

    A wheel of this checkout is in dist/ after ``make wheel``. It is for no GPU.
    """
    (site,) = VENV.glob("lib/python3*/site-packages")
    for wheel in WHEELS.glob("*.whl") if way == "native" else ():
        if native_build.source_of(wheel) == native_build.source_digest():
            say(f"taking the native half of {wheel.name}")
            native_build.extract(wheel, site / native_build.PACKAGE)
            return
    if native_build.cached(way) is None:
        install_compiling(way)
    # In the environment, whose pip fetches the source. It says itself what went wrong.
    folder = site / native_build.PACKAGE
    gpu = () if way == "native" else ("--gpu", way)
    if subprocess.run([PYTHON, native_build.__file__, folder, *gpu], check=False).returncode:
        sys.exit(1)


def install_compiling(way: native_build.Way = "native") -> None:
    """Install the programs that compile, unless this machine has them."""
    if native_build.missing_packages():
        pip("--require-hashes", "--requirement", REQUIREMENTS / "compile.txt")
    native_build.check_programs(way)


def make_wheel() -> None:
    """Write the wheel into dist/, in place of those that were there."""
    make_venv()
    add_to_path()
    pip("--require-hashes", "--requirement", REQUIREMENTS / "build.txt")
    if native_build.cached("portable") is None:
        install_compiling()
    for old in WHEELS.glob("afterword-*.whl"):
        old.unlink()
    run([
        PYTHON, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps",
        "--no-build-isolation", "--verbose", "--wheel-dir", WHEELS, ROOT,
    ])  # fmt: skip


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
    run([*prefix, apt, "install", *options, "chromium", "fonts-dejavu-core", "fonts-noto-cjk"])


def stamp(purpose: str, way: native_build.Way) -> str:
    """Returns a digest of everything that an installation consists of."""
    files = [
        Path(__file__),
        Path(native_build.__file__),
        *native_build.compiled_files(),
        *native_build.gpu_files(),
        *native_build.package_files(),
        ROOT / "pyproject.toml",
        *sorted(REQUIREMENTS.glob("*.txt")),
    ]
    parts = [
        purpose,
        way,
        native_build.cpu_flags(),
        str(VENV.resolve()),
        *(file.read_text() for file in files),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def mark_of(purpose: str) -> Path:
    """Returns the file that keeps the stamp of the installation for a purpose."""
    return VENV / f"installed-{purpose}"


def forget_others(way: native_build.Way) -> None:
    """Remove the marks of installations that the next one replaces: those of another checkout."""
    for purpose in PURPOSES:
        mark = mark_of(purpose)
        if mark.exists() and mark.read_text() != stamp(purpose, way):
            mark.unlink()


def is_installed(purpose: str, way: native_build.Way) -> bool:
    """Whether an installation for this purpose is there and up to date."""
    mark = mark_of(purpose)
    if not PYTHON.exists() or kept_gpu() != ("none" if way == "native" else way):
        return False
    return mark.exists() and mark.read_text() == stamp(purpose, way)


def install(purpose: str) -> None:
    """Bring .venv up to date: to serve ("base"), for all tests ("test"), for fast ones ("fast")."""
    way = wanted_way()
    if purpose == "test":
        install_browser()
    if is_installed(purpose, way) or (purpose == "fast" and is_installed("test", way)):
        return
    if native_build.cached(way) is None:
        native_build.check_sdk(way)
    make_venv()
    forget_others(way)
    add_to_path()
    packages = "base" if purpose == "base" else "test"
    say(f"installing requirements/{packages}.txt")
    pip("--require-hashes", "--requirement", REQUIREMENTS / f"{packages}.txt")
    install_native(way)
    INSTALLED_GPU.write_text("none" if way == "native" else way)
    say("installing afterword")
    pip("--require-hashes", "--requirement", REQUIREMENTS / "build.txt")
    pip("--no-deps", "--no-build-isolation", "--editable", ROOT)
    if purpose != "fast":
        say("fetching the embedded model")
        run([VENV / "bin" / "afterword", "models", "pull", "smollm2-135m-instruct"])
    mark_of(purpose).write_text(stamp(purpose, way))


def main() -> None:
    """Install; exit with the reason if that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    flags = {
        "test": "also install what the tests need",
        "fast": "install what make test-fast needs: no browser, no model",
        "wheel": "write the wheel into dist/ instead",
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
        if arguments.purpose == "wheel":
            make_wheel()
        else:
            install(arguments.purpose)
    except (InstallError, native_build.BuildError) as error:
        sys.exit(f"install: {error}")
    if time.monotonic() - started > 1:
        say(f"installed in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
