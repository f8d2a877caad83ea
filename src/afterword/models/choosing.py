"""Chooses a file of a hub's repository as llama.cpp's ``-hf ORG/REPO[:QUANTIZATION]`` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from afterword.models.parts import part_name

_USUAL = ("Q4_K_M", "Q8_0")
"""What is chosen if no quantization is named, the first that there is."""
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Parts of names of files that go with a model. Source: ``gguf_filename_is_model``."""


def choose(files: Sequence[str], quantization: str | None) -> str | None:
    """Returns the path of the file in ``files``, or None. A model in parts gives its first part.

    A named quantization, in any case, stands in the path before a dot or a hyphen. Without one it
    is Q4_K_M, else Q8_0, else the first file. Source: ``find_best_model`` of llama.cpp.
    """
    usual = named(files, quantization)
    if usual is None and quantization is None:
        return next(iter(models_in(files)), None)
    return usual


def named(files: Sequence[str], quantization: str | None) -> str | None:
    """Returns the file with the named quantization, or with a usual one if none is named."""
    for tag in _USUAL if quantization is None else (quantization,):
        pattern = re.compile(f"{re.escape(tag)}[.-]", re.IGNORECASE)
        for file in models_in(files):
            if pattern.search(file):
                return file
    return None


def models_in(files: Sequence[str]) -> Sequence[str]:
    """Returns the files that are models, or first parts of one, in their order."""
    return [file for file in files if _begins_model(PurePosixPath(file).name)]


def _begins_model(name: str) -> bool:
    if not name.endswith(".gguf") or any(word in name for word in _NO_MODELS):
        return False
    said = part_name(name)
    return said is None or said.number == 1
