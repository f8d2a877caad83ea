"""Files that cannot continue text are refused before they are loaded, by their kind."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from afterword.core.errors import ConfigError
from afterword.models.gguf import Value
from afterword.models.kinds import is_no_continuation
from afterword.models.parts import read_header
from support.tiny_gguf import make_gguf


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"general.architecture": "bert"}, "an encoder (bert)"),
        ({"general.architecture": "nomic-bert-moe"}, "an encoder (nomic-bert-moe)"),
        ({"general.architecture": "t5"}, "an encoder with a decoder (t5)"),
        ({"general.architecture": "t5encoder"}, "an encoder (t5encoder)"),
        ({"general.architecture": "gemma-embedding"}, "an embedding model (gemma-embedding)"),
        ({"general.architecture": "llada"}, "a diffusion model (llada)"),
        ({"general.architecture": "eagle3"}, "the draft half of another model (eagle3)"),
        ({"general.architecture": "wavtokenizer-dec"}, "a part of a speech model"),
        ({"general.architecture": "flux"}, "a model of pictures or films (flux)"),
        ({"general.architecture": "controlvector"}, "a control vector for another model"),
        ({"general.architecture": "clip"}, "a projector of pictures or sound for another model"),
        ({"general.type": "mmproj"}, "a projector of pictures or sound for another model (llama)"),
        ({"general.type": "adapter"}, "an adapter for another model (llama)"),
        ({"general.type": "imatrix"}, "an importance matrix for quantizing another model"),
        ({"adapter.type": "lora"}, "an adapter for another model (llama)"),
        ({"diffusion.shift_logits": True}, "a diffusion model (llama)"),
        ({"llama.attention.causal": False}, "an encoder (llama)"),
        ({"llama.pooling_type": 1}, "an embedding model (llama)"),
        ({"llama.pooling_type": 3}, "an embedding model (llama)"),
        ({"llama.pooling_type": 4}, "a reranker or classifier (llama)"),
        ({"llama.classifier.output_labels": ["yes", "no"]}, "a reranker or classifier (llama)"),
    ],
)
def test_what_cannot_continue_text(tmp_path: Path, changed: dict[str, object], kind: str) -> None:
    path = make_gguf(tmp_path / "x.gguf", changed=changed)
    with pytest.raises(ConfigError) as refused:
        read_header(path)
    assert str(refused.value).startswith(f"{path}: is {kind}")
    assert str(refused.value).endswith(": it cannot continue text")


@pytest.mark.parametrize(
    "changed",
    [
        {"general.type": "model"},
        {"llama.attention.causal": True},
        {"llama.pooling_type": 0},
        # llama.cpp writes this value for "none".
        {"llama.pooling_type": 2**32 - 1},
        # A key of another architecture.
        {"bert.attention.causal": False},
        # An unknown architecture: the library may know it.
        {"general.architecture": "tomorrow"},
    ],
)
def test_what_may_continue_text(tmp_path: Path, changed: dict[str, object]) -> None:
    read_header(make_gguf(tmp_path / "x.gguf", changed=changed))


def write(path: Path, *, vocabulary: bool, weights: bool) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    if vocabulary:
        writer.add_token_list(["a", "b"])
    if weights:
        writer.add_tensor("a", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_half_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write(path, vocabulary=True, weights=False)
    with pytest.raises(ConfigError, match="has a vocabulary and no weights"):
        read_header(path)
    write(path, vocabulary=False, weights=True)
    with pytest.raises(ConfigError, match="has no vocabulary: it cannot continue text"):
        read_header(path)


def test_the_most_telling_reason_is_given() -> None:
    said: dict[str, Value] = {
        "general.type": "adapter",
        "general.architecture": "bert",
        "bert.pooling_type": 1,
    }
    assert is_no_continuation(said, {}) == "an adapter for another model"
    # A file without architecture and type is refused elsewhere.
    assert is_no_continuation({}, {}) is None
