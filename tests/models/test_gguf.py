"""Checks of headers: only complete, valid files reach native code."""

from __future__ import annotations

import math
import random
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest

from afterword.core.errors import ConfigError
from afterword.models.parts import read_header
from support.examples import examples
from support.tiny_gguf import CONTEXT, make_gguf

MUTATIONS = 2000
LOADED = 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def accepts(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_header(path)
    except ConfigError:
        return False
    return True


def test_what_a_sound_file_says(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny)
    header = read_header(path)
    assert header.architecture == "llama"
    assert header.context_tokens == CONTEXT
    assert header.vocabulary == header.array_lengths["tokenizer.ggml.tokens"]
    assert header.file_bytes == len(tiny)
    assert set(header.formats) == {"F32", "Q4_1", "Q8_0"}


def test_every_truncation_is_refused(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "cut.gguf"
    rng = random.Random(1)
    for size in [0, 3, 4, 8, 23, len(tiny) // 2, *(rng.randrange(len(tiny)) for _ in range(300))]:
        assert not accepts(path, tiny[:size])
    # Padding may follow the last tensor, but none of its bytes may be missing.
    assert accepts(path, tiny + b"\0" * 64)


def test_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for data in (b"", b"GGU", b"GGML" * 100, b"<html>", b"GGUF" + b"\xff" * 4096, b"\0" * 4096):
        assert not accepts(path, data)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_header(tmp_path)


def test_a_file_for_other_processors_is_called_so(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "be.gguf"
    path.write_bytes(tiny[:4] + struct.pack(">I", 3) + tiny[8:])
    with pytest.raises(ConfigError, match="is a GGUF file for big-endian processors"):
        read_header(path)


@pytest.mark.parametrize("tokens", [0, 2**31, 2**32 - 1])
def test_a_context_that_no_prompt_can_use(tmp_path: Path, tokens: int) -> None:
    """Without this check the library has no memory for it, or looks for some without end."""
    path = make_gguf(tmp_path / "x.gguf", context=tokens)
    with pytest.raises(ConfigError, match=rf"llama\.context_length is {tokens}$"):
        read_header(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.block_count": 600}, "llama.block_count is 600"),
        ({"llama.expert_count": 4}, "llama.expert_used_count is 0 of 4"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 5}, "llama.expert_used_count is 5"),
        ({"llama.expert_count": 1025, "llama.expert_used_count": 2}, "llama.expert_count is 1025"),
        ({"llama.expert_used_count": 2}, "llama.expert_used_count is 2 of 0"),
        ({"llama.rope.scaling.type": "twisted"}, "llama.rope.scaling.type is twisted"),
        (
            {"llama.attention.layer_norm_rms_epsilon": math.nan},
            "llama.attention.layer_norm_rms_epsilon is nan",
        ),
        (
            {"llama.attention.layer_norm_rms_epsilon": -1.0},
            "llama.attention.layer_norm_rms_epsilon is -1.0",
        ),
    ],
)
def test_numbers_that_would_end_the_process(
    tmp_path: Path, changed: Mapping[str, object], said: str
) -> None:
    path = make_gguf(tmp_path / "x.gguf", changed=changed)
    with pytest.raises(ConfigError, match="is a broken GGUF file: " + re.escape(said)):
        read_header(path)


@pytest.mark.parametrize("kind", ["I32", "F64", "Q8_K"])
def test_weights_that_the_library_cannot_multiply(tmp_path: Path, tiny: bytes, kind: str) -> None:
    """Its product of them is a call of no function."""
    path = tmp_path / "x.gguf"
    name = b"blk.0.attn_q.weight"
    # Name, number of dimensions, two dimensions, type.
    at = tiny.index(name) + len(name) + 4 + 2 * 8
    number = gguf.GGMLQuantizationType[kind]
    path.write_bytes(tiny[:at] + struct.pack("<I", number) + tiny[at + 4 :] + b"\0" * 2**16)
    with pytest.raises(ConfigError, match=rf"is a broken GGUF file: weights are in {kind}$"):
        read_header(path)


def test_names_of_tokens_that_the_library_takes_for_one(tmp_path: Path) -> None:
    """It reads a name up to its first null character, and ends the process at equal ones."""
    more = {"one\0a": gguf.TokenType.CONTROL, "one\0b": gguf.TokenType.CONTROL}
    path = make_gguf(tmp_path / "x.gguf", more_tokens=more)
    with pytest.raises(ConfigError, match="has the name of another"):
        read_header(path)


def test_lengths_are_not_believed(tmp_path: Path) -> None:
    """A text or an array of 2**63 entries costs neither memory nor time."""
    path = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    key = struct.pack("<Q", 1) + b"k"
    for tail in (
        struct.pack("<Q", 2**63),
        key + struct.pack("<IQ", 8, 2**63),
        key + struct.pack("<IIQ", 9, 4, 2**63),
        key + struct.pack("<IIQ", 9, 8, 2**63),
        key + struct.pack("<I", 99),
        key + struct.pack("<IIQ", 9, 9, 1) * 64,
    ):
        assert not accepts(path, head + tail + b"\0" * 64)


def mutations(tiny: bytes, count: int, seed: int) -> list[bytes]:
    """Copies of a file with random changes in the header, mostly in its numbers."""
    rng = random.Random(seed)
    header = tiny.index(b"output_norm.weight")
    changed = []
    for _ in range(count):
        data = bytearray(tiny)
        for _ in range(rng.choice((1, 1, 1, 4))):
            at = rng.randrange(header)
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
        changed.append(bytes(data))
    return changed


def test_changed_headers_are_read_or_refused(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "x.gguf"
    outcomes = [accepts(path, data) for data in mutations(tiny, examples(MUTATIONS), 2)]
    # Both occur: the name of a weight may be anything, but a wrong length is refused.
    assert 0.1 < sum(outcomes) / len(outcomes) < 0.95


_LOAD = """
import asyncio, sys
from pathlib import Path
from afterword.core.errors import ConfigError
from afterword.engine.llama.engine import open_engine
from afterword.engine.llama.loading import EngineOptions
from afterword.models.parts import read_header
for name in sys.argv[1:]:
    path = Path(name)
    try:
        read_header(path)
        options = EngineOptions(ctx=64, slots=1, threads=1, exact=True)
        engine = open_engine(path, digest="0" * 64, name="x", options=options)
    except ConfigError as error:
        assert "\\n" not in str(error), error
        print("refused")
    else:
        asyncio.run(engine.aclose())
        print("loaded")
"""


@pytest.mark.e2e
def test_no_changed_header_crashes_native_code(tmp_path: Path, tiny: bytes) -> None:
    """The library loads or refuses every file that passes the checks, and never crashes."""
    paths = []
    for i, data in enumerate(mutations(tiny, LOADED, 3)):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *paths], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, (len(done.stdout.split()), done.stderr[-2000:])
    assert set(done.stdout.split()) == {"refused", "loaded"}
