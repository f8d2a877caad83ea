"""A tiny model as Hugging Face lays them out: random weights, a token for each byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

END = "<|endoftext|>"
_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that GPT-2's byte-level tokens write as the character of the same number."""
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]


def pieces() -> Sequence[bytes]:
    """The bytes of every token by id."""
    return [*(bytes([byte]) for byte in (*_SHOWN, *_HIDDEN)), END.encode()]


def make_hf(folder: Path, *, context: int = 512) -> Path:
    """Write configuration and tokenizer; servers make weights up (``--load-format dummy``)."""
    names = [*map(chr, _SHOWN), *(chr(0x100 + at) for at in range(len(_HIDDEN))), END]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    bpe = {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []}
    end = {"id": 256, "content": END, "special": True, "normalized": False, "single_word": False,
           "lstrip": False, "rstrip": False}  # fmt: skip
    files = {
        "tokenizer.json": {
            "version": "1.0", "added_tokens": [end], "pre_tokenizer": byte_level,
            "decoder": byte_level, "model": bpe, "normalizer": None, "post_processor": None,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END,
            "clean_up_tokenization_spaces": False,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(names),
            "max_position_embeddings": context, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "tie_word_embeddings": False, "torch_dtype": "float32", "eos_token_id": 256,
        },
    }  # fmt: skip
    for name, shape in files.items():
        (folder / name).write_text(json.dumps(shape))
    return folder
