"""More architectures, for ``make zoo`` only: each is similar to one of ``ARCHITECTURES``."""

from __future__ import annotations

from collections.abc import Mapping

from zoo.architectures import (
    CONTEXT,
    DELTA,
    EXPERTS,
    HEADS_OF_32,
    LATENT,
    NO_ATTENTION,
    SCAN,
    SHARED_EXPERT,
    SLIDING,
    SOME_ATTEND,
    Architecture,
    Value,
)

_ALL_HEADS: Mapping[str, Value] = {"attention.head_count_kv": 4}
_ONE_HEAD: Mapping[str, Value] = {"attention.head_count_kv": 1}
_ALIBI: Mapping[str, Value] = {**_ALL_HEADS, "attention.max_alibi_bias": 8.0}
_PARALLEL: Mapping[str, Value] = {"use_parallel_residual": True, "rope.dimension_count": 16}
_DENSE_FIRST: Mapping[str, Value] = {
    **EXPERTS,
    **SHARED_EXPERT,
    "leading_dense_block_count": 1,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
}
_BY_SIGMOID: Mapping[str, Value] = {"expert_gating_func": 2}
_GRANITE: Mapping[str, Value] = {
    "logit_scale": 2.0,
    "residual_scale": 0.22,
    "embedding_scale": 12.0,
    "attention.scale": 0.03125,
}
_SECTIONS: Mapping[str, Value] = {"rope.dimension_sections": [4, 6, 6, 0]}

OTHERS: Mapping[str, Architecture] = {
    # All layers attend to the whole context.
    **{
        name: Architecture(name)
        for name in (
            "mistral3",
            "deci",
            "qwen2",
            "olmo",
            "olmo2",
            "starcoder2",
            "chatglm",
            "exaone",
            "smollm3",
            "nemotron",
            "internlm2",
            "orion",
            "xverse",
            "ernie4_5",
            "arcee",
            "codeshell",
            "bitnet",
        )
    },
    **{name: Architecture(name, HEADS_OF_32) for name in ("qwen3", "seed_oss", "hunyuan-dense")},
    **{name: Architecture(name, _ALL_HEADS) for name in ("qwen", "gpt2", "bloom", "baichuan")},
    **{name: Architecture(name, _ONE_HEAD) for name in ("falcon", "starcoder", "refact")},
    "stablelm": Architecture("stablelm", _PARALLEL),
    "mistral-spm": Architecture("llama", vocabulary="spm"),
    "gptneox": Architecture("gptneox", {**_PARALLEL, **_ALL_HEADS}),
    "jais": Architecture("jais", _ALIBI),
    "phi2": Architecture("phi2", {**_ALL_HEADS, "rope.dimension_count": 16}),
    "command-r": Architecture("command-r", {"logit_scale": 0.5}),
    "minicpm": Architecture(
        "minicpm",
        {"embedding_scale": 12.0, "residual_scale": 0.5, "logit_scale": 0.25},
        embeddings=0.1,
    ),
    "granite": Architecture("granite", _GRANITE, embeddings=0.1),
    "gemma": Architecture("gemma", HEADS_OF_32, vocabulary="spm", embeddings=0.1),
    "qwen2vl": Architecture("qwen2vl", _SECTIONS),
    "qwen3vl": Architecture("qwen3vl", {**HEADS_OF_32, **_SECTIONS, "n_deepstack_layers": 0}),
    "glm4": Architecture("glm4", {"rope.dimension_count": 16}),
    "minicpm3": Architecture(
        "minicpm3",
        {
            **_ALL_HEADS,
            "attention.q_lora_rank": 64,
            "attention.kv_lora_rank": 64,
            "attention.key_length": 64,
            "attention.value_length": 32,
        },
    ),
    # Experts.
    "arctic": Architecture("arctic", EXPERTS),
    "mixtral": Architecture("llama", EXPERTS, without=("expert_feed_forward_length",)),
    "qwen2moe": Architecture("qwen2moe", {**EXPERTS, **SHARED_EXPERT}),
    "hunyuan-moe": Architecture("hunyuan-moe", {**EXPERTS, **SHARED_EXPERT}),
    "olmoe": Architecture("olmoe", {**EXPERTS, **_ALL_HEADS}),
    "granitemoe": Architecture("granitemoe", {**EXPERTS, **_GRANITE}, embeddings=0.1),
    "dbrx": Architecture("dbrx", {**EXPERTS, "attention.clamp_kqv": 8.0}),
    "phimoe": Architecture("phimoe", {**EXPERTS, "rope.scaling.original_context_length": CONTEXT}),
    "minimax-m2": Architecture(
        "minimax-m2", {**EXPERTS, **HEADS_OF_32, **_BY_SIGMOID, "rope.dimension_count": 16}
    ),
    "deepseek": Architecture("deepseek", _DENSE_FIRST),
    "bailingmoe": Architecture("bailingmoe", _DENSE_FIRST),
    "bailingmoe2": Architecture("bailingmoe2", {**_DENSE_FIRST, **_BY_SIGMOID}),
    "dots1": Architecture("dots1", {**_DENSE_FIRST, **_BY_SIGMOID, **HEADS_OF_32, **_ALL_HEADS}),
    "glm4moe": Architecture(
        "glm4moe",
        {
            **_DENSE_FIRST,
            **_BY_SIGMOID,
            **HEADS_OF_32,
            "rope.dimension_count": 16,
            "nextn_predict_layers": 0,
        },
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5-moe",
        {
            **EXPERTS,
            **SHARED_EXPERT,
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 1,
        },
    ),
    "grok": Architecture(
        "grok",
        {
            **EXPERTS,
            "attn_logit_softcapping": 30.0,
            "router_logit_softcapping": 30.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "mistral4": Architecture("mistral4", {**LATENT, **EXPERTS, **SHARED_EXPERT}),
    "deepseek32": Architecture(
        "deepseek32",
        {
            **LATENT,
            **EXPERTS,
            **SHARED_EXPERT,
            "attention.indexer.head_count": 4,
            "attention.indexer.key_length": 64,
            "attention.indexer.top_k": 16,
        },
    ),
    "llama4": Architecture(
        "llama4",
        {
            **EXPERTS,
            **SHARED_EXPERT,
            **HEADS_OF_32,
            "block_count": 4,
            "interleave_moe_layer_step": 2,
        },
    ),
    # Sliding windows.
    "exaone4": Architecture("exaone4", {**SLIDING, "block_count": 3}),
    "plamo3": Architecture("plamo3", {**SLIDING, **HEADS_OF_32}),
    "afmoe": Architecture(
        "afmoe", {**_DENSE_FIRST, **_BY_SIGMOID, **SLIDING, **HEADS_OF_32, "block_count": 3}
    ),
    "smallthinker": Architecture(
        "smallthinker", {**EXPERTS, **_BY_SIGMOID, **SLIDING, **HEADS_OF_32}
    ),
    "mellum": Architecture("mellum", {**EXPERTS, **SLIDING, **HEADS_OF_32}),
    "mimo2": Architecture(
        "mimo2",
        {
            **EXPERTS,
            **_BY_SIGMOID,
            **SLIDING,
            **HEADS_OF_32,
            "attention.sliding_window_pattern": [False, True],
            "attention.head_count_kv": [2, 2],
            "rope.freq_base_swa": 10000.0,
            "expert_weights_norm": True,
        },
    ),
    # Recurrent states.
    "mamba": Architecture("mamba", {**SCAN, **NO_ATTENTION, "feed_forward_length": 0}),
    "rwkv6": Architecture(
        "rwkv6",
        {
            "wkv.head_size": 64,
            "time_mix_extra_dim": 32,
            "time_decay_extra_dim": 64,
            "attention.head_count": 0,
            "rescale_every_n_layers": 6,
        },
        vocabulary="rwkv",
    ),
    "qwen35": Architecture(
        "qwen35",
        {**DELTA, **HEADS_OF_32, "block_count": 3, "rope.dimension_sections": [4, 2, 2, 0]},
    ),
    "lfm2moe": Architecture(
        "lfm2moe",
        {
            **EXPERTS,
            **_BY_SIGMOID,
            **SOME_ATTEND,
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 1,
        },
    ),
}
