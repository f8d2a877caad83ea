"""Makes tiny GGUF files with random weights and a byte-level vocabulary, for the real engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from tiny_vocab import CONTROL, NORMAL, Vocabulary, byte_alphabet

CONTEXT = 512
_LAYERS, _FEED_FORWARD = 2, 128

FAMILIES: Mapping[str, Sequence[str]] = {
    "plain": (),
    "starcoder": ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
    "qwen": ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
             "<|repo_name|>", "<|file_sep|>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 - its own bars
    "codestral": ("[SUFFIX]", "[PREFIX]", "[MIDDLE]"),
}  # fmt: skip


class Shape(NamedTuple):
    """Widths of a model; a head has ``embedding // heads`` values."""

    embedding: int = 64
    heads: int = 4
    kv_heads: int = 2


USUAL = Shape()


def make_gguf(
    path: Path,
    family: str = "plain",
    *,
    adds_bos: bool = False,
    context: int = CONTEXT,
    shape: Shape = USUAL,
    vocabulary: Vocabulary | None = None,
) -> Path:
    """Write a llama model of about 200,000 random weights; greedy text of it is stable noise."""
    embedding = shape.embedding
    vocabulary = vocabulary or _family(family, adds_bos=adds_bos)
    tokens = vocabulary.tokens

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"tiny {family}")
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    vocabulary.write(writer)

    rng = np.random.default_rng(20260928)
    kv = embedding * shape.kv_heads // shape.heads

    def weights(name: str, *shape: int, scale: float = 0.15) -> None:
        values = rng.normal(0, scale, shape).astype(np.float32)
        # The formats of the embedded model, which the promise of D1 is made for.
        kind = gguf.GGMLQuantizationType.Q8_0 if scale == 1 else gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(embedding, np.float32))

    weights("token_embd.weight", len(tokens), embedding, scale=1.0)
    for layer in range(_LAYERS):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        weights(f"{block}.attn_q.weight", embedding, embedding)
        weights(f"{block}.attn_k.weight", kv, embedding)
        weights(f"{block}.attn_v.weight", kv, embedding)
        weights(f"{block}.attn_output.weight", embedding, embedding)
        ones(f"{block}.ffn_norm.weight")
        weights(f"{block}.ffn_gate.weight", _FEED_FORWARD, embedding)
        weights(f"{block}.ffn_up.weight", _FEED_FORWARD, embedding)
        weights(f"{block}.ffn_down.weight", embedding, _FEED_FORWARD)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), embedding, scale=1.0)
    _write(writer)
    return path


def _family(family: str, *, adds_bos: bool) -> Vocabulary:
    """Bytes, some words, and the special tokens of a family."""
    special = ["<|endoftext|>", "<s>", *FAMILIES[family]]
    merges = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ a", "d e", "de f", "Ġ ="]
    merged = list(dict.fromkeys([m.replace(" ", "") for m in merges]))
    tokens = [*byte_alphabet(), *merged, *special]
    normal = len(tokens) - len(special)
    types = [NORMAL] * normal + [CONTROL] * len(special)
    more = {"bos_token_id": normal + 1, "eos_token_id": normal, "add_bos_token": adds_bos}
    return Vocabulary("gpt2", tokens, types, pre="gpt-2", merges=merges, more=more)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
