"""Tensors that the library computes with in F32 only are refused otherwise; the others are right.

Each file is computed in a process of its own, because the library ends it at what it cannot.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from afterword.core.errors import ConfigError
from afterword.models.formats import needs_f32
from afterword.models.parts import read_header
from zoo.architectures import ARCHITECTURES, Architecture
from zoo.making import Tensor, make, usual_format
from zoo.others import OTHERS

_SMALL = (
    ("llama", "blk.1.attn_norm.weight"),
    ("gpt-oss", "blk.0.ffn_down_exps.bias"),
    ("gpt-oss", "blk.0.attn_sinks.weight"),
    ("lfm2", "blk.0.shortconv.conv.weight"),
    ("mamba", "blk.0.ssm_conv1d.weight"),
    ("mamba", "blk.1.ssm_a"),
    ("mpt", "blk.0.ffn.act.scales"),
    ("plamo2", "blk.1.attn_q_norm.weight"),
    ("rwkv6", "blk.0.time_mix_first.weight"),
    ("rwkv7", "blk.0.time_mix_lerp_fused.weight"),
)
_COMPUTE = """
import sys
from pathlib import Path
import numpy as np
from afterword.engine.batching.runner import Batch
from afterword.engine.llama.binding import LlamaModel
from afterword.engine.llama.runner import temporary_runner
for name in sys.argv[1:]:
    model = LlamaModel(Path(name))
    with temporary_runner(model, 1, exact=True, slots=1, room=64) as runner:
        count = 12
        ids = np.arange(300, 300 + count, dtype=np.int32)
        place, slot = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
        rows = runner.decode(Batch(ids, place, slot, np.ones(count, np.bool_)))
        np.save(f"{name}.npy", rows)
    model.close()
"""


def _written(name: str, path: Path, format_of: dict[str, str]) -> Path:
    """Write a model of the zoo with other formats, by the names of tensors."""

    def chosen(tensor: Tensor, made: Architecture) -> str:
        return format_of.get(tensor.name, usual_format(tensor, made))

    return make(ARCHITECTURES.get(name) or OTHERS[name], name, path, chosen)


def _products(name: str, path: Path, kind: str) -> Path:
    """Write a model of the zoo in F32, with all that may have another format in ``kind``.

    The choice of experts stays in F32: the smallest difference may choose another one.
    """

    def chosen(tensor: Tensor, _made: Architecture) -> str:
        plain = needs_f32(tensor.name, tensor.shape[::-1]) or "gate_inp" in tensor.name
        return "F32" if plain else kind

    return make(ARCHITECTURES.get(name) or OTHERS[name], name, path, chosen)


def _rows(*paths: Path) -> list[npt.NDArray[np.float32]]:
    """Returns rows [tokens, vocabulary] of logits of each file, computed in another process."""
    done = subprocess.run(
        [sys.executable, "-c", _COMPUTE, *paths], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return [np.load(f"{path}.npy") for path in paths]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "rwkv6"])
def test_what_a_header_lets_pass_is_computed_rightly(tmp_path: Path, name: str) -> None:
    halves = _products(name, tmp_path / "half.gguf", "F16")
    whole = _products(name, tmp_path / "whole.gguf", "F32")
    for path in (halves, whole):
        read_header(path)
    half, exact = _rows(halves, whole)
    assert np.isfinite(half).all()
    # Rounded weights choose another expert now and then, which changes few rows very much.
    assert np.median(np.abs(half - exact)) < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize(("name", "tensor"), _SMALL)
def test_another_format_of_a_small_tensor(
    tmp_path: Path, name: str, tensor: str, kind: str
) -> None:
    path = _written(name, tmp_path / "x.gguf", {tensor: kind})
    with pytest.raises(ConfigError) as refused:
        read_header(path)
    said = f"tensor {tensor!r} is in {kind}, and llama.cpp computes with it in F32 only"
    assert str(refused.value) == f"{path}: {said}"
