"""Compiles the native half for a kind of GPU, and runs tests with it (make test-gpu).

These are tests/gpu, and the contract with all layers of its models on the GPU.

What is installed stays as it is. Without a card, lavapipe is a Vulkan device in software.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import install
import native_build
from install import ROOT
from native_build import SDKS, BuildError, Way, say

TESTS = (
    "tests/gpu", "tests/contract", "--gpu-layers", "999", "-m", "not (browser or slow)",
    # A device in software on a busy machine takes longer for a test than pyproject.toml allows.
    "-o", "faulthandler_timeout=7200",
)  # fmt: skip
_DESCRIBE = (
    "from afterword.engine.llama.devices import devices; "
    "print('; '.join(device.description for device in devices()))"
)


def libraries(way: Way) -> Path:
    """Returns the folder of the libraries; compiles them unless the cache has them."""
    if native_build.cached(way) is None:
        install.install_compiling(way)
    return native_build.compiled(way) / "lib"


def environment(folder: Path) -> Mapping[str, str]:
    """Returns the environment in which the tests find these libraries and a device.

    ggml-vulkan leaves devices in software out, unless they are named.
    """
    found = {**os.environ, "AFTERWORD_NATIVE_PATH": str(folder)}
    found.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
    return found


def described(made: Mapping[str, str]) -> str:
    """Returns the descriptions of the devices; empty if there are none."""
    done = subprocess.run(
        [sys.executable, "-c", _DESCRIBE], env=made, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def prepared(folder: Path) -> tuple[Mapping[str, str], str]:
    """Returns the environment for these libraries, and the descriptions of its devices."""
    made = environment(folder)
    return made, described(made)


def main() -> None:
    """Run the tests; exit with their status, or with the reason why they cannot run."""
    wanted = os.environ.get("GPU") or "vulkan"
    way = next((way for way in SDKS if way == wanted), None)
    if way is None:
        sys.exit(f"test-gpu: GPU={wanted} is no kind of GPU; there are {', '.join(SDKS)}")
    try:
        made, about = prepared(libraries(way))
    except (install.InstallError, BuildError) as error:
        sys.exit(f"test-gpu: {error}")
    if not about:
        sys.exit("test-gpu: no GPU found; on Debian and Ubuntu: apt install mesa-vulkan-drivers")
    say(f"testing on {about}")
    tests = [sys.executable, "-m", "pytest", *TESTS, *sys.argv[1:]]
    sys.exit(subprocess.run(tests, env=made, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
