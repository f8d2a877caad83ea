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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from install import InstallError, run
from native_build import (
    NATIVE,
    PACKAGE,
    ROOT,
    SOURCE_PACKAGE,
    BuildError,
    assemble,
    check_programs,
    compile_all,
    fetch,
    say,
    unpack,
)

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
    folders = (NATIVE / "patches", NATIVE / "gpu")
    for patch in (patch for folder in folders for patch in sorted(folder.glob("*.patch"))):
        parts = list(pieces(patch))
        print(f"  {patch.stem}", flush=True)
        failures = [line for piece in parts for line in apply(piece, tree)]
        for line in failures:
            print(f"      does not fit: {line}")
        hunks = sum(len(piece.lines) for piece in parts)
        print(f"      {hunks - len(failures)} of {hunks} hunks fit")
        missing += len(failures)
    return missing


def fetched(version: str, folder: Path) -> Path:
    """Download a version's source package. Returns its file. Raises ``BuildError``."""
    say(f"fetching {SOURCE_PACKAGE} {version}")
    return fetch(folder, f"{SOURCE_PACKAGE}=={version}")


def build_and_test(source: Path, folder: Path) -> None:
    """Compile a package with native/, and run the tests that depend on it.

    Raises ``BuildError`` or ``InstallError`` if one fails.
    """
    site, libraries = folder / "site", folder / "libraries"
    libraries.mkdir()
    say("compiling it with native/")
    check_programs()
    compile_all(source, libraries, "native")
    assemble(libraries, site / PACKAGE, "native-check")
    say("running the tests")
    path = os.pathsep.join([str(site), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
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
            file = given if given.is_file() else fetched(arguments.version, folder)
            say(f"what fits {file.name}; native/ is made for {base()[0]}")
            missing = check(unpack(file, folder / "check") / "vendor" / "llama.cpp")
            if missing:
                sys.exit(f"{missing} hunks do not fit: see docs/native.md")
            say("all hunks fit")
            if arguments.build:
                build_and_test(unpack(file, folder / "build"), folder)
    except (BuildError, InstallError) as error:
        sys.exit(f"native-check: {error}")


if __name__ == "__main__":
    main()
