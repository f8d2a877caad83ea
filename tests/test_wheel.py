"""The native half as a package, and the wheel that has it. Nothing is compiled here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import afterword_native
import pytest

import native_build
from afterword import playground
from native_build import BuildError

ROOT = Path(__file__).parents[1]
INSTALLED = Path(afterword_native.__file__).parent
# What the bindings of llama-cpp-python are expected to contain.
BINDINGS = """\
from llama_cpp._ctypes_extensions import (
    byref,
)

# Specify the base name of the shared library to load
_lib_base_name = "llama"
_lib = load_shared_library(_lib_base_name, _base_path)
rest = 1
"""
TYPES = "from typing_extensions import TypeAlias\n"


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has the libraries of a portable build: those that are installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = native_build.cache() / native_build.build_digest("portable")
    shutil.copytree(INSTALLED / "lib", folder / "lib")
    (folder / "llama_cpp.py").write_text(BINDINGS)
    (folder / "_ctypes_extensions.py").write_text(TYPES)
    return folder


@pytest.fixture
def wheel(compiled: Path, tmp_path: Path) -> Path:
    assert compiled.is_dir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel(wheel: Path) -> None:
    """One for every Python, with both halves, what they need to know, and all licences."""
    tag = native_build.platform_tag(INSTALLED)
    assert re.fullmatch(rf"afterword-[\d.]+\w*-py3-none-{tag}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith("dist-info/WHEEL"))
        text = archive.read(about).decode()
    assert "Root-Is-Purelib: false" in text
    assert f"Tag: py3-none-{tag}" in text
    # The list of languages is made when the server starts.
    pages = set(playground.load()) - {playground.LANGUAGES}
    assert {f"afterword/playground/files/{path}" for path in pages} <= names
    libraries = {str(file.relative_to(INSTALLED)) for file in INSTALLED.glob("lib/**/*.so")}
    modules = {"__init__.py", "_build.py", "_ctypes_extensions.py", "llama_cpp.py", "processor.py"}
    assert {f"afterword_native/{name}" for name in libraries | modules} <= names
    licences = about.replace("WHEEL", "licenses/")
    texts = [file.relative_to(ROOT) for file in (ROOT / "native" / "licenses").iterdir()]
    assert len(texts) == 3
    assert {f"{licences}{name}" for name in ("LICENSE", "NOTICE", *texts)} <= names


@pytest.mark.slow
def test_the_native_half_is_taken_from_a_wheel_of_this_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    assert native_build.source_of(wheel) == native_build.source_digest()
    target = tmp_path / "site" / "afterword_native"
    native_build.extract(wheel, target)
    native_build.extract(wheel, target)
    assert (target / "processor.py").read_bytes() == (INSTALLED / "processor.py").read_bytes()
    assert {file.name for file in target.parent.iterdir()} == {"afterword_native"}


def test_a_wheel_of_something_else_has_no_native_half(tmp_path: Path) -> None:
    file = tmp_path / "other.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other/__init__.py", "")
    assert native_build.source_of(file) is None


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["no C++ compiler", "patch", "cmake and ninja"])
def test_pip_install_says_in_one_line_what_is_missing(tmp_path: Path, missing: str) -> None:
    """And gives no installation that would compute without our kernels."""
    programs = tmp_path / "bin"
    programs.mkdir()
    there = {"no C++ compiler": (), "patch": ("c++",), "cmake and ninja": ("c++", "patch")}
    for name in there[missing]:
        (programs / name).symlink_to(shutil.which("true") or "/bin/true")
    environment = {
        "PATH": str(programs), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    target = tmp_path / "site"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
            "--no-index", "--target", target, ROOT,
        ],
        env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "[1 lines of output]" in said
    assert f"afterword: {missing} not found" in said.replace("compiler found", "compiler not found")
    assert not target.exists()


@pytest.mark.parametrize(
    ("names", "tag"),
    [
        ([b"GLIBC_2.2.5", b"GLIBC_2.34", b"GLIBC_2.4"], "manylinux_2_34_"),
        ([b"GLIBC_2.17"], "manylinux_2_17_"),
        # Relative relocations are read by glibc 2.36 and newer.
        ([b"GLIBC_2.17", b"GLIBC_ABI_DT_RELR"], "manylinux_2_36_"),
        # The C++ library of a system is as old as its glibc.
        ([b"GLIBC_2.17", b"GLIBCXX_3.4.19", b"CXXABI_1.3.9", b"GCC_3.0"], "manylinux_2_28_"),
        ([b"GLIBC_2.34", b"GLIBCXX_3.4.29", b"CXXABI_1.3.13"], "manylinux_2_34_"),
        ([b"GLIBC_2.34", b"GLIBCXX_3.4.30"], "manylinux_2_35_"),
        ([b"GLIBC_2.34", b"GLIBCXX_3.4.99"], "linux_"),
    ],
)
def test_the_tag_is_what_the_libraries_need(names: list[bytes], tag: str, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        file = tmp_path / "lib" / str(number) / "a.so"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\x7fELF\0libc.so.6\0" + name + b"\0end")
    assert native_build.platform_tag(tmp_path).startswith(tag)


def test_the_tag_agrees_with_the_linker() -> None:
    """The versions that readelf finds in the libraries that are installed."""
    libraries = [str(file) for file in INSTALLED.glob("lib/**/*.so")]
    done = subprocess.run(
        ["readelf", "--version-info", "--wide", *libraries], check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    found = re.findall(r"Name: ([A-Z]+)_([\d.]+)", done.stdout)
    assert found
    tag = native_build.platform_tag(INSTALLED)
    newest = max(tuple(map(int, version.split("."))) for name, version in found if name == "GLIBC")
    major, minor = map(int, tag.split("_")[1:3])
    assert (major, minor) >= newest
    runtimes = {version for name, version in found if name == "GLIBCXX"}
    assert tag.startswith("manylinux_") or max(runtimes) > "3.4.33"


def test_bindings_open_no_library() -> None:
    text = native_build.bindings(BINDINGS)
    assert "llama_cpp._ctypes_extensions" not in text
    assert "load_shared_library(" not in text
    assert text.endswith("import afterword_native\n\n_lib = afterword_native.LIBRARY\nrest = 1\n")


@pytest.mark.parametrize("gone", ["import (", "# Specify"])
def test_bindings_that_changed_are_an_error(gone: str) -> None:
    with pytest.raises(BuildError, match="has changed"):
        native_build.bindings(BINDINGS.replace(gone, ""))
    with pytest.raises(BuildError, match="has changed"):
        native_build.extensions("")


def test_a_package_that_cannot_be_written_leaves_the_old_one(
    compiled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "site" / "afterword_native"
    native_build.assemble(compiled, folder, "one")
    (compiled / "llama_cpp.py").write_text("new")
    with pytest.raises(BuildError):
        native_build.assemble(compiled, folder, "two")
    assert 'BUILD = "one"' in (folder / "_build.py").read_text()
    assert [file.name for file in folder.parent.iterdir()] == ["afterword_native"]


def test_an_empty_name_of_a_cache_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert native_build.cache() == Path.home() / ".cache" / "afterword" / "native"


def test_sources_that_change_while_they_are_compiled_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text("one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_build, "compiled_files", lambda: [kernel])
    monkeypatch.setattr(native_build, "check_programs", lambda _way: None)
    monkeypatch.setattr(native_build, "fetch", lambda folder: folder)
    monkeypatch.setattr(native_build, "unpack", lambda _file, folder: folder)
    monkeypatch.setattr(native_build, "compile_all", lambda *_: kernel.write_text("two"))
    with pytest.raises(BuildError, match="changed while it was compiled"):
        native_build.compiled("native")
    assert native_build.cached("native") is None
    assert native_build.compiled("native").is_dir()


def test_a_build_is_named_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = native_build.build_digest("native"), native_build.build_digest("portable")
    assert before[0] != before[1]
    monkeypatch.setattr(native_build, "cpu_flags", lambda: "other")
    assert native_build.build_digest("native") != before[0]
    assert native_build.build_digest("portable") == before[1]
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_LTO=ON")
    assert native_build.build_digest("portable") != before[1]


def test_the_cache_has_what_was_compiled(compiled: Path) -> None:
    assert native_build.cached("portable") == compiled
    assert native_build.cached("native") is None
