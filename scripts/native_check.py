"""Says what of native/ fits another llama.cpp, patch by patch and hunk by hunk.

The argument is a version of llama-cpp-python, or the path of its source package. With --build, also
compiles that package with native/, and runs the tests that depend on it. docs/native.md says what
to do about hunks that do not fit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from install import NATIVE, ROOT, InstallError, build_environment, run, say, show_build

PACKAGE = "llama-cpp-python"
TESTS = ("tests/engine/llama", "tests/numerics", "tests/concurrency", "tests/zoo/test_law.py")
HUNK = re.compile(r"^@@ -(\d+)")
FILE = re.compile(r"^--- a/(\S+)")
FAILED = re.compile(r"^Hunk #(\d+) FAILED", re.MULTILINE)
MOVED = re.compile(r"^Hunk #(\d+) succeeded at (\d+) \(offset (-?\d+) lines?\)", re.MULTILINE)


class Piece(NamedTuple):
    """The hunks of a patch in one file; ``lines`` has where each begins in the recorded base."""

    file: str
    lines: list[int]
    text: str


def base() -> tuple[str, str]:
    """Returns the version and the SHA-256 of the source package that native/ is made for."""
    words = (NATIVE / "BASE").read_text().split()
    return words[1], words[3]


def pieces(patch: Path) -> Iterator[Piece]:
    """Yields a patch file by file."""
    for text in re.split(r"^(?=diff --git )", patch.read_text(), flags=re.MULTILINE)[1:]:
        rows = text.splitlines()
        file = next(found[1] for row in rows if (found := FILE.match(row)))
        yield Piece(file, [int(found[1]) for row in rows if (found := HUNK.match(row))], text)


def apply(piece: Piece, tree: Path) -> list[str]:
    """Apply those hunks of a piece that fit. Returns a line for each that does not."""
    if not (tree / piece.file).exists():
        return [f"{piece.file}: the file is gone"]
    command = ["patch", "-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch"]
    done = subprocess.run(
        [*command, "--reject-file=-"], cwd=tree, input=piece.text, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    for number, line, offset in MOVED.findall(done.stdout):
        print(f"      {piece.file}: hunk {number} fits at line {line}, moved by {offset}")
    failed = [int(number) for number in FAILED.findall(done.stdout)]
    if done.returncode and not failed:
        return [f"{piece.file}: {(done.stdout + done.stderr).strip()}"]
    return [f"{piece.file}: hunk {n}, line {piece.lines[n - 1]} of the base" for n in failed]


def check(tree: Path) -> int:
    """Apply all patches to a llama.cpp in their order, and print what fits.

    Returns how many hunks do not fit. A hunk may fail because one of an earlier patch did.
    """
    missing = 0
    for patch in sorted((NATIVE / "patches").glob("*.patch")):
        parts = list(pieces(patch))
        print(f"  {patch.stem}", flush=True)
        failures = [line for piece in parts for line in apply(piece, tree)]
        for line in failures:
            print(f"      does not fit: {line}")
        hunks = sum(len(piece.lines) for piece in parts)
        print(f"      {hunks - len(failures)} of {hunks} hunks fit")
        missing += len(failures)
    return missing


def fetch(version: str, folder: Path) -> Path:
    """Download a version's source package, without building it. Returns its file."""
    say(f"fetching {PACKAGE} {version}")
    run([
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-binary", PACKAGE, "--dest", folder,
        f"{PACKAGE}=={version}",
    ])  # fmt: skip
    (file,) = folder.glob("*.tar.gz")
    return file


def unpack(file: Path, folder: Path) -> Path:
    """Unpack a source package. Returns its folder."""
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    return source


def build_and_test(source: Path, folder: Path) -> None:
    """Compile a package with native/, and run the tests that depend on it.

    Raises ``InstallError`` if either fails.
    """
    target = folder / "site"
    say("compiling it with native/")
    command: Sequence[str | Path] = [
        sys.executable, "-m", "pip", "install", "--verbose", "--disable-pip-version-check",
        "--no-deps", "--no-cache-dir", "--target", target, source,
    ]  # fmt: skip
    show_build(command, build_environment())
    say("running the tests")
    path = os.pathsep.join([str(target), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    run([sys.executable, "-m", "pytest", *TESTS], PYTHONPATH=path.rstrip(os.pathsep))


def main() -> None:
    """Check; exit with the reason if something does not fit or a test fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="?", default=base()[0], help="default: that of BASE")
    parser.add_argument("--build", action="store_true", help="compile it, and run the tests")
    arguments = parser.parse_args()
    if shutil.which("patch") is None:
        sys.exit("patch not found; on Debian and Ubuntu: apt install patch")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            given = Path(arguments.version)
            file = given if given.is_file() else fetch(arguments.version, folder)
            say(f"what fits {file.name}; native/ is made for {base()[0]}")
            missing = check(unpack(file, folder / "check") / "vendor" / "llama.cpp")
            if missing:
                sys.exit(f"{missing} hunks do not fit: see docs/native.md")
            say("all hunks fit")
            if arguments.build:
                build_and_test(unpack(file, folder / "build"), folder)
    except InstallError as error:
        sys.exit(f"native-check: {error}")


if __name__ == "__main__":
    main()
