"""Toy models whose rows a llama of a library computes, with layers on a GPU or without."""

from __future__ import annotations

from pathlib import Path

import msgspec

from afterword.engine.batching.engine import BatchingEngine
from afterword.engine.llama.engine import open_model, start_engine
from afterword.engine.llama.loading import EngineOptions, load
from afterword.engine.toy import ToyTokenizer
from support.tiny_gguf import make_gguf
from support.tiny_vocab import CONTROL, NORMAL, Vocabulary, byte_alphabet

_CONTEXT = 256
_SLOTS = 4
_OUTPUT_SCALE = 0.25
"""Logits differ by about as much as those of the toy model."""


def toy_gguf(path: Path) -> Path:
    """Write a tiny llama with a row for each token of the toy model."""
    toy = ToyTokenizer()
    plain = byte_alphabet()
    # The library never sees a text: its tokens only have to be as many.
    others = range(len(plain), len(toy.pieces))
    words = Vocabulary(
        "gpt2",
        [*plain, *(f"<{number}>" for number in others)],
        [NORMAL] * len(plain) + [CONTROL if i in toy.special_ids else NORMAL for i in others],
        pre="gpt-2",
        merges=["< 1"],
        more={"eos_token_id": min(toy.end_ids)},
    )
    return make_gguf(path, context=_CONTEXT, vocabulary=words, output_scale=_OUTPUT_SCALE)


def offloaded_engine(
    path: Path, layers: int, *, adds_bos: bool = False, infill: bool = True
) -> BatchingEngine:
    """Returns an engine with the tokens of the toy model, and the rows of the model in ``path``.

    ``layers`` of it run on a GPU. There the model without infill tokens shares prefixes as with
    ``--kv fast``: a search (F3) needs that, and no GPU is known to be batch-invariant.
    """
    exact = infill or not layers
    options = EngineOptions(ctx=_CONTEXT, slots=_SLOTS, threads=1, gpu_layers=layers, exact=exact)
    opened = open_model(load(path, options), digest="0" * 64, name="toy", options=options)
    assert (opened.card.details.get("gpu_layers") or 0) == min(layers, 3)
    toy = ToyTokenizer(adds_bos=adds_bos, infill=infill)
    return start_engine(msgspec.structs.replace(opened, tokenizer=toy), options)
