"""A native half for a GPU: what is compiled, what is said if an SDK is missing, what is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import afterword_native
import pytest

import gpu_test
import install
import native_build
from install import InstallError
from native_build import SDKS, BuildError, Way
from support.short_form import short_form

ROOT = Path(__file__).parents[1]
KINDS = tuple(SDKS)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any SDK: its only program is the compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "c++").symlink_to(shutil.which("c++") or "/usr/bin/c++")
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "CUDACXX", *(home for sdk in SDKS.values() for home in sdk.homes)):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of its own, with an interpreter."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    monkeypatch.setattr(install, "VENV", folder)
    monkeypatch.setattr(install, "PYTHON", folder / "bin" / "python")
    monkeypatch.setattr(install, "INSTALLED_GPU", folder / "gpu")
    monkeypatch.delenv("GPU", raising=False)
    return folder


@pytest.mark.parametrize("way", KINDS)
def test_a_gpu_is_one_flag_more(way: Way) -> None:
    """The last of two flags with one name counts."""
    (plain,), (made,) = native_build.variants("native"), native_build.variants(way)
    assert made.flags[: len(plain.flags)] == plain.flags
    assert made.flags[len(plain.flags)] == f"-DGGML_{way.upper()}=ON"
    assert made.flags[-1].endswith("native/gpu.cmake")
    assert (made.name, made.folder) == (plain.name, plain.folder)
    # The other libraries are those for no GPU.
    assert made.targets == (f"ggml-{way}",)


def test_each_kind_has_a_build_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {way: native_build.build_digest(way) for way in ("native", "portable", *KINDS)}
    assert len(set(before.values())) == len(before)
    monkeypatch.setattr(native_build, "gpu_files", lambda: [ROOT / "Makefile"])
    after = {way: native_build.build_digest(way) for way in before}
    # What is for a GPU changes nothing in the other builds.
    assert {way for way in before if before[way] != after[way]} == set(KINDS)


def test_kernels_of_the_processor_compile_no_backend_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shaders take longer than all the rest."""
    kernel = make_program(tmp_path / "kernel.cpp", "")
    before = [native_build.backend_digest("vulkan"), native_build.build_digest("vulkan")]
    monkeypatch.setattr(native_build, "compiled_files", lambda: [kernel])
    after = [native_build.backend_digest("vulkan"), native_build.build_digest("vulkan")]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_libraries_for_a_gpu_are_those_for_none_and_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache has of both is not compiled again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_build, "check_programs", lambda _way: None)
    digests = {"llama": native_build.build_digest("native")}
    digests["ggml-vulkan"] = native_build.backend_digest("vulkan")
    for name, digest in digests.items():
        make_program(native_build.cache() / digest / "lib" / f"libafterword-{name}.so", name)
    whole = native_build.compiled("vulkan")
    assert whole == native_build.cached("vulkan")
    assert {file.name for file in (whole / "lib").iterdir()} == {
        "libafterword-llama.so", "libafterword-ggml-vulkan.so",
    }  # fmt: skip


@pytest.mark.parametrize("way", KINDS)
def test_a_missing_sdk_is_one_line(way: Way, programs: Path) -> None:
    assert programs.is_dir()
    sdk = SDKS[way]
    with pytest.raises(BuildError) as raised:
        native_build.check_programs(way)
    said = str(raised.value)
    assert said == f"GPU={way}: {sdk.name} not found (no {sdk.program}); {sdk.advice}"
    assert "\n" not in said


def test_missing_headers_are_one_line(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (programs / "glslc").symlink_to(shutil.which("true", path="/usr/bin:/bin") or "/bin/true")
    there = SDKS["vulkan"]._replace(headers=("vector",))
    monkeypatch.setattr(native_build, "SDKS", {"vulkan": there})
    native_build.check_sdk("vulkan")
    gone = there._replace(headers=("no/such/header.hpp", "vector", "gone.hpp"))
    monkeypatch.setattr(native_build, "SDKS", {"vulkan": gone})
    with pytest.raises(BuildError) as raised:
        native_build.check_sdk("vulkan")
    # What is there is not named.
    assert str(raised.value) == (
        "GPU=vulkan: the Vulkan SDK not found (no no/such/header.hpp and no gone.hpp); on Debian "
        "and Ubuntu: apt install glslc libvulkan-dev spirv-headers"
    )


def test_a_toolkit_without_cublas_is_one_line(programs: Path) -> None:
    """As packages have it that are for other programs: nvcc, and no library."""
    make_program(programs / "nvcc", "echo '<stdin>:2:2: error: #error no cublas_v2.h' >&2; exit 1")
    with pytest.raises(BuildError, match=r"CUDA toolkit not found \(no cublas_v2.h\); install"):
        native_build.check_sdk("cuda")
    make_program(programs / "nvcc", "echo 'unsupported GNU version' >&2; exit 1")
    native_build.check_sdk("cuda")


def make_program(file: Path, script: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_other_builds_need_no_sdk(programs: Path) -> None:
    assert programs.is_dir()
    native_build.check_sdk("native")
    native_build.check_sdk("portable")


def test_hip_is_compiled_with_the_compiler_of_rocm(programs: Path, tmp_path: Path) -> None:
    rocm = tmp_path / "rocm"
    make_program(
        programs / "hipconfig", f'[ "$1" = -l ] && echo {rocm}/llvm/bin || echo {rocm}'
    )  # fmt: skip
    # As with the driver's packages alone.
    with pytest.raises(
        BuildError, match=r"\(no hip/hip_runtime.h and no hipblas/hipblas.h and no "
    ):
        native_build.check_sdk("hip")
    for header in SDKS["hip"].headers:
        file = rocm / "include" / header
        file.parent.mkdir(parents=True)
        file.touch()
    native_build.check_sdk("hip")
    made = native_build.build_environment("hip")
    assert made["HIPCXX"] == f"{rocm}/llvm/bin/clang"
    assert made["HIP_PATH"] == made["ROCM_PATH"] == str(rocm)
    assert "HIPCXX" not in native_build.build_environment("native")


@pytest.mark.parametrize("name", ["CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_a_variable_names_the_cuda_toolkit(
    name: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake finds it in PATH, before another one that is there."""
    nvcc = make_program(tmp_path / "toolkit" / "bin" / "nvcc", "echo 13.0")
    monkeypatch.setenv(name, str(nvcc if name == "CUDACXX" else nvcc.parents[1]))
    make_program(programs / "nvcc", "echo 12.0")
    native_build.check_sdk("cuda")
    path = native_build.build_environment("cuda")["PATH"]
    assert path == f"{nvcc.parent}:{programs}"
    assert shutil.which("nvcc", path=path) == str(nvcc)
    assert "PATH" not in native_build.build_environment("native")


@pytest.mark.parametrize(("way", "program"), [("cuda", "nvcc"), ("hip", "hipconfig")])
def test_another_version_of_an_sdk_is_another_build(way: Way, program: str, programs: Path) -> None:
    digests = []
    for version in ("12.9", "13.0"):
        make_program(programs / program, f"echo {version}")
        digests.append((native_build.build_digest(way), native_build.build_digest("native")))
    (first, native), (second, same) = digests
    assert first != second
    assert native == same


def test_the_steps_of_a_build_inside_a_build_are_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shaders of Vulkan are such a build: its last step is not the last one."""
    lines = ["[1/20] a", "[1/2] inner", "[2/2] inner", "[10/20] b", "[20/20] c"]
    native_build.show_build(["printf", "%s\\n", *lines], {})
    assert capsys.readouterr().out.split("\n") == [
        f"    compiled {done} of 20" for done in (1, 10, 20)
    ] + [""]


def test_a_library_for_cuda_opens_without_a_driver() -> None:
    """Virtual memory alone needs the library of the driver when it is opened."""
    assert "-DGGML_CUDA_NO_VMM=ON" in SDKS["cuda"].flags


def test_a_kind_of_gpu_is_kept_until_another_is_named(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install.wanted_way() == "native"
    (venv / "gpu").write_text("vulkan")
    assert install.wanted_way() == "vulkan"
    monkeypatch.setenv("GPU", "cuda")
    assert install.wanted_way() == "cuda"
    monkeypatch.setenv("GPU", "none")
    assert install.wanted_way() == "native"
    monkeypatch.setenv("GPU", "voodoo")
    with pytest.raises(InstallError, match=r"^GPU=voodoo is no kind of GPU; there are vulkan, cu"):
        install.wanted_way()


def test_an_installation_for_another_kind_is_not_up_to_date(venv: Path) -> None:
    """Even if the same purpose was installed before for the wanted kind."""
    (venv / "installed-test").write_text(install.stamp("test", "native"))
    assert install.is_installed("test", "native")
    assert not install.is_installed("test", "vulkan")
    (venv / "gpu").write_text("vulkan")
    assert not install.is_installed("test", "native")


def test_make_install_says_it_before_anything_is_installed(programs: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("scripts", "native", "requirements"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    done = subprocess.run(
        [sys.executable, checkout / "scripts" / "install.py"], check=False, capture_output=True,
        text=True,
        env={"PATH": str(programs), "GPU": "cuda", "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("install: GPU=cuda: the CUDA toolkit not found (no nvcc); install NV")
    assert not (checkout / ".venv").exists()


def test_no_gpu_and_no_kind_of_one_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the libraries that are installed, which are for no GPU."""
    installed = Path(afterword_native.__file__).parent / "lib"
    monkeypatch.setattr(gpu_test, "libraries", lambda _way: installed)
    monkeypatch.delenv("GPU", raising=False)
    with pytest.raises(SystemExit, match=r"^test-gpu: no GPU found; on Debian and Ubuntu: apt in"):
        gpu_test.main()
    monkeypatch.setenv("GPU", "voodoo")
    with pytest.raises(SystemExit, match=r"^test-gpu: GPU=voodoo is no kind of GPU; there are vu"):
        gpu_test.main()


def test_tests_on_a_gpu_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of other tests would end the run where a busy machine is the GPU."""
    usual = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    runs: list[Sequence[str]] = []

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("GPU", raising=False)
    monkeypatch.setattr(gpu_test, "libraries", lambda _way: ROOT)
    monkeypatch.setattr(gpu_test, "described", lambda _made: "a card")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit):
        gpu_test.main()
    (option,) = (word for word in runs[0] if word.startswith("faulthandler_timeout="))
    assert runs[0][runs[0].index(option) - 1] == "-o"
    assert int(option.partition("=")[2]) > usual["faulthandler_timeout"]


class Item(NamedTuple):
    """A test as pytest collected it."""

    name: str
    folder: str = "contract"
    fixturenames: Sequence[str] = ("client",)
    markers: Sequence[str] = ()

    @property
    def path(self) -> Path:
        return ROOT / "tests" / self.folder / "test_file.py"

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.markers else None


def test_the_short_form_tries_each_rule_once() -> None:
    kept = [
        Item("test_R5_R6_single_token_settings_agree[here]"),
        Item("test_R4_default_is_until_the_context_is_full[here]"),
        Item("test_R6_H12_limits[here]"),
        Item("test_a_law", folder="gpu", fixturenames=()),
    ]
    left_out = [
        Item("test_R4_default_is_until_the_context_is_full[behind vllm]", markers=("slow",)),
        Item("test_R7_computed_by_no_gpu", fixturenames=("serve",)),
        Item("test_of_no_rule[here]"),
        Item("test_R4_again[R5-here]"),
        Item("test_a_longer_law", folder="gpu", markers=("whole",)),
    ]
    items = cast("list[pytest.Item]", [*left_out[:3], *kept, *left_out[3:]])
    assert [item.name for item in short_form(items)] == [item.name for item in kept]


def test_a_device_that_is_named_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GGML_VK_VISIBLE_DEVICES", raising=False)
    made = gpu_test.environment(tmp_path)
    assert made["AFTERWORD_NATIVE_PATH"] == str(tmp_path)
    assert made["GGML_VK_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "2")
    assert gpu_test.environment(tmp_path)["GGML_VK_VISIBLE_DEVICES"] == "2"


def test_another_installation_is_not_taken_for_the_first(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that goes to another commit and back has what the other one installed."""
    done: list[str] = []
    for name in ("pip", "run", "install_native", "install_browser"):
        monkeypatch.setattr(install, name, lambda *_, name=name: done.append(name))
    monkeypatch.setattr(native_build, "cached", lambda _: venv)
    commit = "first"
    monkeypatch.setattr(install, "stamp", lambda purpose, way: f"{purpose} {way} {commit}")
    for purpose in install.PURPOSES:
        install.install(purpose)
    done.clear()
    install.install("test")
    assert "install_native" not in done
    commit = "second"
    install.install("fast")
    commit = "first"
    done.clear()
    install.install("test")
    assert "install_native" in done
    # One that broke off counts as none.
    commit = "second"

    def fail(_: Way) -> None:
        raise InstallError("failed")

    with monkeypatch.context() as broken:
        broken.setattr(install, "install_native", fail)
        with pytest.raises(InstallError):
            install.install("base")
    commit = "first"
    assert not install.is_installed("base", "native")
    assert not install.is_installed("test", "native")
