"""Kinds of GGUF files that cannot continue text, recognised by their metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from afterword.models.gguf import Value

_ADAPTER = "an adapter for another model"
_PROJECTOR = "a projector of pictures or sound for another model"
_ENCODER = "an encoder"
_DIFFUSION = "a diffusion model"
_DRAFT = "the draft half of another model"
_SPEECH = "a part of a speech model"
_PICTURES = "a model of pictures or films"
_EMBEDDING = "an embedding model"
_RANKING = "a reranker or classifier"

_TYPES = {
    "adapter": _ADAPTER,
    "mmproj": _PROJECTOR,
    "imatrix": "an importance matrix for quantizing another model",
}
"""By ``general.type``; its value is ``model`` in a model."""

_ARCHITECTURES: Mapping[str, str] = {
    # llama.cpp computes them without a causal mask, or for their embeddings alone.
    **dict.fromkeys(
        ("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2",
         "jina-bert-v3", "eurobert", "t5encoder"),
        _ENCODER,
    ),
    **dict.fromkeys(("gemma-embedding", "llama-embed"), _EMBEDDING),
    "t5": "an encoder with a decoder",
    # llm_arch_is_diffusion in llama.cpp, and one more that its converter knows.
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1", "diffusion-gemma"), _DIFFUSION),
    # In llama.cpp they need the context of the model that they draft for.
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), _DRAFT),
    # Their tokens are sounds.
    **dict.fromkeys(("wavtokenizer-dec", "qwen3tts", "pockettts"), _SPEECH),
    "clip": _PROJECTOR,
    "controlvector": "a control vector for another model",
    # Other programs write them; llama.cpp knows none of them.
    **dict.fromkeys(
        ("flux", "sd1", "sdxl", "sd3", "aura", "cosmos", "hidream", "hunyuan_video", "hyvid",
         "ltxv", "lumina2", "pig", "qwen_image", "wan"),
        _PICTURES,
    ),
    "whisper": _SPEECH,
}  # fmt: skip

_POOLINGS = {1: _EMBEDDING, 2: _EMBEDDING, 3: _EMBEDDING, 4: _RANKING}
"""By ``pooling_type``: mean, first token, last token, rank. Other values can continue text."""

_OUTPUT_HEAD = "classifier.output_labels"


def is_no_continuation(
    metadata: Mapping[str, Value], array_lengths: Mapping[str, int]
) -> str | None:
    """Returns the kind of a file that cannot continue text, with its article; else None."""
    architecture = str(metadata.get("general.architecture", ""))
    return next(_reasons(architecture, metadata, array_lengths), None)


def _reasons(
    architecture: str,
    metadata: Mapping[str, Value],
    array_lengths: Mapping[str, int],
) -> Iterator[str]:
    """Yields kinds, the most precise first: an adapter has the architecture of its model."""
    kind = str(metadata.get("general.type", "model"))
    if kind in _TYPES:
        yield _TYPES[kind]
    if "adapter.type" in metadata:
        yield _ADAPTER
    if architecture in _ARCHITECTURES:
        yield _ARCHITECTURES[architecture]
    if any(key.startswith("diffusion.") for key in metadata):
        yield _DIFFUSION
    if f"{architecture}.{_OUTPUT_HEAD}" in array_lengths:
        yield _RANKING
    pooling = metadata.get(f"{architecture}.pooling_type")
    if pooling in _POOLINGS:
        yield _POOLINGS[int(pooling)]
    if metadata.get(f"{architecture}.attention.causal") is False:
        yield _ENCODER
