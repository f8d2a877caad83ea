"""The choice of a file by llama.cpp's rules."""

from __future__ import annotations

import pytest

from afterword.models.choosing import choose

USUAL = ["m-BF16.gguf", "m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("files", "quantization", "chosen"),
    [
        (USUAL, None, "m-Q4_K_M.gguf"),
        (USUAL, "q4_k_s", "m-Q4_K_S.gguf"),
        (USUAL, "Q4_K", None),
        (["m-F16.gguf", "m-q8_0.gguf"], None, "m-q8_0.gguf"),
        (["m-Q3_K_L.gguf", "m-Q5_K_M.gguf"], None, "m-Q3_K_L.gguf"),
        (["m-Q3_K_L.gguf"], "Q4_K_M", None),
        (["m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M-00001-of-00002.gguf"], None,
         "m-Q4_K_M-00001-of-00002.gguf"),
        (["Q4_K_M/m-Q4_K_M-00001-of-00003.gguf", "m-F16.gguf"], "Q4_K_M",
         "Q4_K_M/m-Q4_K_M-00001-of-00003.gguf"),
        (["mmproj-Q4_K_M.gguf", "imatrix.gguf", "mtp-m-Q8_0.gguf", "m.gguf"], None, "m.gguf"),
        (["README.md", "mmproj-m-f16.gguf"], None, None),
        ([], None, None),
        (["m.Q4_K_M.gguf"], "q4.k_m", None),
    ],
)  # fmt: skip
def test_the_choice(files: list[str], quantization: str | None, chosen: str | None) -> None:
    assert choose(files, quantization) == chosen
