"""Makes tiny GGUF files with random weights and a byte-level vocabulary, for the real engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from support.tiny_vocab import CONTROL, NORMAL, Vocabulary, byte_alphabet

CONTEXT = 512
_LAYERS, _FEED_FORWARD = 2, 128

FAMILIES: Mapping[str, Sequence[str]] = {
    "plain": (),
    "starcoder": ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>",
                  "<repo_name>", "<file_sep>"),
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
    part_tensors: int = 0,
    changed: Mapping[str, object] | None = None,
    nan_tokens: Sequence[int] = (),
    nan_weights: str | None = None,
    more_tokens: Mapping[str, gguf.TokenType] | None = None,
    vocabulary: Vocabulary | None = None,
    output_scale: float = 1.0,
) -> Path:
    """Write a llama model of about 200,000 random weights; greedy text of it is stable noise.

    With ``part_tensors`` it is written in parts of so many tensors, and the first's path is
    returned. ``changed`` are entries of the metadata that are added, or stand for others. The
    embeddings of ``nan_tokens`` are no numbers, nor are the first weights of the tensor
    ``nan_weights``. ``more_tokens`` are the vocabulary's last.
    ``output_scale`` is the standard deviation of the output's weights: with less of it, tokens are
    more alike in probability.
    """
    embedding = shape.embedding
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    writer.add_name(f"tiny {family}")
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    words = vocabulary or _family(family, adds_bos=adds_bos, more_tokens=more_tokens or {})
    tokens = len(words.tokens)
    words.write(writer)
    writer.add_vocab_size(tokens)

    rng = np.random.default_rng(20260928)
    kv = embedding * shape.kv_heads // shape.heads

    def weights(name: str, *shape: int, scale: float = 0.15) -> None:
        values = rng.normal(0, scale, shape).astype(np.float32)
        # The formats of the embedded model, for which batch invariance (D1) is tested.
        outer = name in {"token_embd.weight", "output.weight"}
        kind = gguf.GGMLQuantizationType.Q8_0 if outer else gguf.GGMLQuantizationType.Q4_1
        raw = gguf.quants.quantize(values, kind)
        if name == "token_embd.weight":
            # The scale of each block, a float16, comes first.
            raw[list(nan_tokens), 0::34], raw[list(nan_tokens), 1::34] = 0x00, 0x7E
        if name == nan_weights:
            raw[0, :2] = 0x00, 0x7E
        writer.add_tensor(name, raw, raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(embedding, np.float32))

    weights("token_embd.weight", tokens, embedding, scale=1.0)
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
    weights("output.weight", tokens, embedding, scale=output_scale)
    _write(writer, changed or {})
    return path if not part_tensors else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _family(
    family: str, *, adds_bos: bool, more_tokens: Mapping[str, gguf.TokenType]
) -> Vocabulary:
    """Bytes, some words, the special tokens of a family, and others."""
    special = ["<|endoftext|>", "<s>", *FAMILIES[family]]
    merges = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ a", "d e", "de f", "Ġ ="]
    merged = list(dict.fromkeys([m.replace(" ", "") for m in merges]))
    normal = [*byte_alphabet(), *merged]
    types = [NORMAL] * len(normal) + [CONTROL] * len(special)
    more = {
        "bos_token_id": len(normal) + 1,
        "eos_token_id": len(normal),
        "add_bos_token": adds_bos,
    }
    return Vocabulary(
        "gpt2",
        [*normal, *special, *more_tokens],
        [*types, *more_tokens.values()],
        pre="gpt-2",
        merges=merges,
        more=more,
    )


def _change(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    for entries in writer.kv_data:
        entries.pop(key, None)
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _write(writer: gguf.GGUFWriter, changed: Mapping[str, object]) -> None:
    for key, value in changed.items():
        _change(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
