"""A file on which the library would crash or end the process is refused in one line."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from afterword.engine.llama import binding
from zoo.making import make, make_model
from zoo.others import OTHERS

pytestmark = pytest.mark.skipif(not binding.CHANGES, reason="an unchanged library ends the process")

_LOAD = """
import sys
from pathlib import Path
from afterword.core.errors import ConfigError
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from afterword.models.parts import read_header
path = Path(sys.argv[1])
read_header(path)
for _ in range(2):
    try:
        open_engine(path, digest="0" * 64, name="x", options=EngineOptions(ctx=64, threads=1))
    except ConfigError as error:
        print(error)
"""


def _changed(key: str, number: int) -> Callable[[str, Path], Path]:
    """Returns a maker of models whose header has another number."""

    def make_changed(name: str, path: Path) -> Path:
        data = bytearray(make_model(name, path).read_bytes())
        struct.pack_into("<I", data, data.index(key.encode()) + len(key) + 4, number)
        path.write_bytes(data)
        return path

    return make_changed


def _with_first(name: str, path: Path) -> Path:
    """A tensor that only models with a norm behind their heads have, and no such norm."""
    return make(msgspec.structs.replace(OTHERS[name], lacks=()), name, path)


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("rwkv6qwen2", _with_first, "it reads memory that is not there"),
        ("rwkv6qwen2", _changed("rwkv6qwen2.wkv.head_size", 0), "it divides by zero"),
        (
            "codeshell",
            _changed("codeshell.rope.dimension_count", 16),
            "codeshell.cpp:57: GGML_ASSERT(n_embd_head == n_rot) failed",
        ),
    ],
)
def test_a_load_that_would_end_the_process(
    tmp_path: Path, name: str, made: Callable[[str, Path], Path], said: str
) -> None:
    """A second try says the same, so that the first left nothing behind."""
    path = made(name, tmp_path / f"{name}.gguf")
    command = [sys.executable, "-c", _LOAD, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].endswith(said)
