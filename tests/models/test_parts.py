"""A model in parts is one model, and its parts are checked against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from afterword.core.errors import ConfigError
from afterword.engine.llama.binding import LlamaModel, convert
from afterword.models.parts import part_name, part_paths, read_header
from support.tiny_gguf import make_gguf

PART_TENSORS = 8


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The three parts of a tiny model."""
    return list(part_paths(make_gguf(tmp_path / "tiny.gguf", part_tensors=PART_TENSORS)))


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_header(path)
    return str(refused.value).removeprefix(f"{path.parent}/")


def test_the_numbers_of_parts_are_written_in_ascii() -> None:
    """Other digits would be numbers for Python, and no other part has such a name."""
    assert part_name("m-00001-of-00002.gguf") is not None
    assert part_name("m-\uff10\uff10\uff10\uff10\uff11-of-00002.gguf") is None


def test_the_whole_is_the_model_that_was_split(tmp_path: Path, parts: list[Path]) -> None:
    whole = read_header(make_gguf(tmp_path / "whole.gguf"))
    header = read_header(parts[0])
    assert (header.parts, whole.parts) == (3, 1)
    assert header.formats == whole.formats
    assert header.tensors == whole.tensors == 21
    assert header.file_bytes == sum(path.stat().st_size for path in parts)
    assert header.vocabulary == whole.vocabulary


def test_other_parts_are_no_beginning(parts: list[Path]) -> None:
    said = "is part 3 of 3 of a model; begin with part 1, tiny-00001-of-00003.gguf"
    assert refusal(parts[2]) == f"{parts[2].name}: {said}"
    with pytest.raises(ConfigError, match="begin with part 1"):
        part_paths(parts[1])
    # The number comes from the file's metadata, not from its name.
    swapped = Path(shutil.copy(parts[2], parts[0].with_name("other-00001-of-00003.gguf")))
    said = "says that it is part 3 of 3, and its name says part 1 of 3"
    assert refusal(swapped) == f"{swapped.name}: {said}"
    renamed = parts[2].rename(parts[2].with_name("model.gguf"))
    assert refusal(renamed) == "model.gguf: is part 3 of 3 of a model; begin with part 1"


def test_a_part_that_is_missing_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    said = "part 2 of 3 is missing: tiny-00002-of-00003.gguf"
    assert refusal(parts[0]) == f"{parts[0].name}: {said}"


def test_a_first_part_of_another_name(parts: list[Path]) -> None:
    for name in ("model.gguf", "tiny-00001-of-00004.gguf", "tiny-1-of-3.gguf"):
        renamed = Path(shutil.copy(parts[0], parts[0].with_name(name)))
        assert "is part 1 of 3 of a model, and its name has to end in -00001-of-00003" in refusal(
            renamed
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts[1].write_bytes(parts[2].read_bytes()),
         "tiny-00002-of-00003.gguf: says that it is part 3 of 3, and its name says part 2 of 3"),
        (lambda parts: parts[1].write_bytes(parts[1].read_bytes()[:-999]),
         "tiny-00002-of-00003.gguf: is truncated"),
        (lambda parts: parts[1].write_bytes(b"not at all"),
         "tiny-00002-of-00003.gguf: is no GGUF file"),
        (lambda parts: make_gguf(parts[1]),
         "tiny-00002-of-00003.gguf: does not say that it is part 2 of 3 of a model"),
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together(
    parts: list[Path], change: Callable[[list[Path]], object], said: str
) -> None:
    change(parts)
    assert refusal(parts[0]).startswith(said)


def test_parts_of_models_that_were_split_otherwise(tmp_path: Path, parts: list[Path]) -> None:
    """The other model has as many parts, but fewer tensors in the last one."""
    (tmp_path / "other").mkdir()
    other = part_paths(make_gguf(tmp_path / "other" / "tiny.gguf", part_tensors=9))
    assert len(other) == len(parts)
    parts[2].write_bytes(other[2].read_bytes())
    assert "its 3 parts have 19 tensors, and the first says 21" in refusal(parts[0])


def test_a_whole_file_may_be_named_as_a_part(tmp_path: Path) -> None:
    for name in ("a-00001-of-00001.gguf", "a-00001-of-00003.gguf"):
        path = make_gguf(tmp_path / name)
        assert part_paths(path) == (path,)
        assert read_header(path).parts == 1


@pytest.mark.parametrize(
    "name", ["a.gguf", "a-1-of-2.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf"]
)
def test_names_of_no_part(name: str) -> None:
    assert part_name(name) is None


def test_a_model_in_parts_is_loaded_and_converted_as_one(tmp_path: Path, parts: list[Path]) -> None:
    model = LlamaModel(parts[0])
    assert model.describe().startswith("llama")
    model.close()
    made = tmp_path / "made.gguf"
    convert(parts[0], made, "f16", 1)
    assert read_header(made).parts == 1
    assert read_header(made).parameters == read_header(parts[0]).parameters
