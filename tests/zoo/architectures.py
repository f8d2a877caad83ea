"""Tiny models of many architectures, as data: common sizes, and what each one adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

Value: TypeAlias = bool | int | float | str | list[int] | list[bool]
VocabularyKind: TypeAlias = Literal["bpe", "spm", "rwkv"]
Weights: TypeAlias = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q6_K", "Q5_K", "Q4_K", "Q3_K",
    "Q2_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
    "TQ2_0", "TQ1_0", "MXFP4",
]  # fmt: skip

CONTEXT = 512
WINDOW = 64
"""Length of a sliding window in tokens."""

SIZES: Mapping[str, Value] = {
    "context_length": CONTEXT,
    "embedding_length": 128,
    "block_count": 2,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 32,
    "rope.freq_base": 10000.0,
}

SLIDING: Mapping[str, Value] = {
    "attention.sliding_window": WINDOW,
    "attention.sliding_window_pattern": 2,
}
"""Every other layer attends to the last ``WINDOW`` tokens only."""
EXPERTS: Mapping[str, Value] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 128,
}
SHARED_EXPERT: Mapping[str, Value] = {
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 128,
}
SUPER_BLOCKS: Mapping[str, Value] = {"embedding_length": 256, "expert_feed_forward_length": 256}
"""Rows of experts are whole blocks of the formats that end in K."""
HEADS_OF_32: Mapping[str, Value] = {"attention.key_length": 32, "attention.value_length": 32}
LATENT: Mapping[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 64,
    "attention.kv_lora_rank": 64,
    "attention.key_length": 96,
    "attention.value_length": 64,
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 32,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
}
SCAN: Mapping[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
}
SCAN_BY_HEADS: Mapping[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 1,
}
DELTA: Mapping[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 2,
    "rope.dimension_count": 16,
}
NO_ATTENTION: Mapping[str, Value] = {"attention.head_count": 0, "attention.head_count_kv": 0}
SOME_ATTEND: Mapping[str, Value] = {"block_count": 3, "attention.head_count_kv": [0, 2, 0]}
"""One layer has attention; the others have a state."""


class Architecture(msgspec.Struct, frozen=True):
    """One architecture of llama.cpp: its metadata in addition to ``SIZES``, and its file format.

    ``without`` names keys that it must not have, ``needs`` tensors that are optional elsewhere,
    and ``lacks`` the ends of the names of optional tensors that another architecture has.
    ``embeddings`` is the standard deviation of the token embeddings. It is small if the model
    scales embeddings itself; otherwise the context of a token would hardly matter.
    """

    arch: str
    keys: Mapping[str, Value] = {}
    vocabulary: VocabularyKind = "bpe"
    weights: Weights = "F16"
    without: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    embeddings: float = 0.3


ARCHITECTURES: Mapping[str, Architecture] = {
    # All layers attend to the whole context.
    "llama": Architecture("llama", weights="Q4_1"),
    "qwen3moe": Architecture(
        "qwen3moe", {**EXPERTS, **HEADS_OF_32, **SUPER_BLOCKS}, weights="Q4_K", embeddings=0.2
    ),
    "deepseek2": Architecture(
        "deepseek2", {**LATENT, **EXPERTS, **SHARED_EXPERT}, weights="IQ4_NL"
    ),
    "mpt": Architecture("mpt", {"attention.head_count_kv": 4, "attention.max_alibi_bias": 8.0}),
    # Some layers attend to the last tokens only.
    "gemma2": Architecture(
        "gemma2",
        {
            **SLIDING,
            **HEADS_OF_32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        vocabulary="spm",
        embeddings=0.1,
    ),
    "gemma3": Architecture(
        "gemma3",
        {**SLIDING, **HEADS_OF_32, "block_count": 3},
        vocabulary="spm",
        weights="Q8_0",
        embeddings=0.1,
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        {**SLIDING, **HEADS_OF_32, **EXPERTS, "rope.freq_base": 150000.0},
        weights="MXFP4",
    ),
    "cohere2": Architecture("cohere2", {**SLIDING, "logit_scale": 0.5}),
    "olmo3": Architecture(
        "olmo2",
        {**SLIDING, "block_count": 3, "attention.sliding_window_pattern": [True, False, True]},
    ),
    # The context is a recurrent state.
    "mamba2": Architecture("mamba2", {**SCAN_BY_HEADS, **NO_ATTENTION, "feed_forward_length": 0}),
    "rwkv7": Architecture(
        "rwkv7",
        {
            "wkv.head_size": 64,
            "attention.head_count": 0,
            "attention.decay_lora_rank": 32,
            "attention.iclr_lora_rank": 32,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 32,
        },
        vocabulary="rwkv",
    ),
    # Some layers attend, others have a recurrent state.
    "lfm2": Architecture("lfm2", {**SOME_ATTEND, "shortconv.l_cache": 3}),
    "falcon-h1": Architecture("falcon-h1", {**SCAN_BY_HEADS, **HEADS_OF_32}),
    "qwen3next": Architecture(
        "qwen3next",
        {**DELTA, **HEADS_OF_32, **EXPERTS, **SHARED_EXPERT, "block_count": 3},
    ),
    "granitehybrid": Architecture(
        "granitehybrid",
        {
            **SCAN_BY_HEADS,
            **EXPERTS,
            **SHARED_EXPERT,
            **SOME_ATTEND,
            "logit_scale": 2.0,
            "residual_scale": 0.22,
            "embedding_scale": 12.0,
            "attention.scale": 0.03125,
            "rope.scaling.finetuned": False,
        },
        embeddings=0.1,
    ),
    "jamba": Architecture("jamba", {**SCAN, **EXPERTS, **SOME_ATTEND}),
    "plamo2": Architecture(
        "plamo2",
        {
            **SCAN_BY_HEADS,
            **SOME_ATTEND,
            **HEADS_OF_32,
            "ssm.group_count": 0,
            "attention.head_count": [0, 4, 0],
        },
    ),
    "kimi-linear": Architecture(
        "kimi-linear",
        {
            **LATENT,
            **EXPERTS,
            **SHARED_EXPERT,
            "block_count": 3,
            "attention.head_count_kv": [0, 1, 0],
            "ssm.conv_kernel": 4,
            "kda.head_dim": 32,
        },
        without=("attention.q_lora_rank",),
    ),
}
"""At least one of each kind; every test run checks the law on them."""
