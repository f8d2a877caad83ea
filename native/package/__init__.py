"""Afterword's native half: llama.cpp with the changes of native/, and its low-level bindings.

``llama_cpp`` has the functions of llama.h for ctypes, as llama-cpp-python declares them. An
installed llama-cpp-python is neither used nor disturbed: the libraries have names of their own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path

from afterword_native import _build
from afterword_native._build import BASE
from afterword_native.processor import VariantError, choose, features

__all__ = ["BASE", "BUILD", "LIBRARY", "VARIANT"]

_OURS = Path(__file__).parent / "lib"
_SUFFIX = "dylib" if sys.platform == "darwin" else "so"
_PATH, _WANTED = "AFTERWORD_NATIVE_PATH", "AFTERWORD_NATIVE_VARIANT"


def _open(folder: Path, name: str) -> ctypes.CDLL:
    """Open a library. One that llama-cpp-python built has no prefix."""
    files = [folder / f"lib{prefix}{name}.{_SUFFIX}" for prefix in ("afterword-", "")]
    for file in files:
        if file.exists():
            return ctypes.CDLL(str(file))
    raise ImportError(f"{files[0]}: there is no such library")


def _load(folder: Path) -> tuple[str, ctypes.CDLL]:
    """Open libllama. Returns the name of the build of ggml's CPU library, and libllama.

    A library that is open already is taken for every library that needs one of its name. So the
    chosen build is opened first, and libllama finds it. Raises ``ImportError``.
    """
    built = [path.parent.name for path in folder.glob(f"*/libafterword-ggml-cpu.{_SUFFIX}")]
    wanted = os.environ.get(_WANTED) or None
    if not built:
        if wanted is not None:
            raise VariantError(f"{_WANTED}={wanted}: this library has no variants")
        return "native", _open(folder, "llama")
    variant = choose(built, features(), wanted)
    # The reference keeps it open until libllama has one of its own.
    chosen = _open(folder / variant, "ggml-cpu")
    library = _open(folder, "llama")
    del chosen
    return variant, library


def _digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if f".{_SUFFIX}" in file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


_ELSEWHERE = os.environ.get(_PATH)
VARIANT, LIBRARY = _load(Path(_ELSEWHERE) if _ELSEWHERE else _OURS)
"""The build of ggml's CPU library that is open (``native``: there is only one), and libllama."""
BUILD = _digest(Path(_ELSEWHERE)) if _ELSEWHERE else _build.BUILD
"""Digest of all that the libraries depend on, or of the libraries of ``AFTERWORD_NATIVE_PATH``."""
