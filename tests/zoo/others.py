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
    SCAN_BY_HEADS,
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
_LATENT_EXPERTS: Mapping[str, Value] = {**LATENT, **EXPERTS, **SHARED_EXPERT}
_INDEXER: Mapping[str, Value] = {
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 16,
}
"""A row attends to the cells that a small network of its own chooses."""
_HYPER: Mapping[str, Value] = {
    "hyper_connection.count": 4,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.sinkhorn_iterations": 2,
}
_KDA: Mapping[str, Value] = {
    "block_count": 3,
    "attention.head_count_kv": [0, 1, 0],
    "ssm.conv_kernel": 4,
    "kda.head_dim": 32,
    "kda.safe_gate": True,
    "kda.gate_lower_bound": -5.0,
}
_IN_TURN: Mapping[str, Value] = {**SLIDING, "attention.sliding_window_pattern": [True, False]}

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
    "cogvlm": Architecture("cogvlm", _ALL_HEADS),
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
            **_LATENT_EXPERTS,
            **_INDEXER,
        },
    ),
    "glm-dsa": Architecture("glm-dsa", {**_LATENT_EXPERTS, **_BY_SIGMOID, **_INDEXER}),
    "hy_v4": Architecture(
        "hy_v4",
        {
            **_LATENT_EXPERTS,
            **_BY_SIGMOID,
            **_INDEXER,
            **_HYPER,
            "hyper_connection.magnitude": 2.0,
            "attention.indexer.types": [1, 0],
        },
    ),
    "deepseek4": Architecture(
        "deepseek4",
        {
            **EXPERTS,
            **SHARED_EXPERT,
            **SLIDING,
            **_ONE_HEAD,
            **_INDEXER,
            **_HYPER,
            **HEADS_OF_32,
            "block_count": 3,
            "rope.dimension_count": 16,
            "attention.q_lora_rank": 64,
            "attention.output_group_count": 4,
            "attention.output_lora_rank": 32,
            "attention.compress_ratios": [0, 4, 128],
            "attention.compress_rope_freq_base": 160000.0,
            "hash_layer_count": 0,
            "swiglu_clamp_exp": 10.0,
            "expert_gating_func": 4,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
        },
    ),
    "minimax-m3": Architecture(
        "minimax-m3",
        {
            **EXPERTS,
            **SHARED_EXPERT,
            **_BY_SIGMOID,
            **HEADS_OF_32,
            **_INDEXER,
            "block_count": 3,
            "leading_dense_block_count": 1,
            "attention.indexer.head_count": 2,
            "attention.indexer.top_k": 4,
            "attention.indexer.block_size": 8,
            "attention.indexer.local_blocks": 1,
        },
    ),
    "hy_v3": Architecture(
        "hy_v3", {**EXPERTS, **SHARED_EXPERT, **_BY_SIGMOID, "leading_dense_block_count": 1}
    ),
    "grovemoe": Architecture(
        "grovemoe",
        {
            **EXPERTS,
            **HEADS_OF_32,
            "expert_chunk_feed_forward_length": 64,
            "expert_group_scale": 0.05,
            "experts_per_group": 2,
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
    "muse-glimmer": Architecture("muse-glimmer", {**_IN_TURN, **HEADS_OF_32, "logit_scale": 1.0}),
    "spark2_5": Architecture("spark2_5", {**_IN_TURN, **HEADS_OF_32}),
    "granite_swa": Architecture("granite_swa", {**_IN_TURN, **_GRANITE}, embeddings=0.1),
    "maple": Architecture(
        "maple", {**EXPERTS, **_BY_SIGMOID, **_IN_TURN, **HEADS_OF_32, "swiglu_clamp_exp": 7.0}
    ),
    "exaone-moe": Architecture(
        "exaone-moe", {**_DENSE_FIRST, **_BY_SIGMOID, **SLIDING, **HEADS_OF_32, "block_count": 4}
    ),
    "cohere2moe": Architecture(
        "cohere2moe",
        {**_DENSE_FIRST, **_BY_SIGMOID, **_IN_TURN, **HEADS_OF_32, "logit_scale": 0.5},
    ),
    "laguna": Architecture(
        "laguna",
        {
            **_DENSE_FIRST,
            **_BY_SIGMOID,
            **_IN_TURN,
            **HEADS_OF_32,
            "rope.freq_base_swa": 10000.0,
            "rope.dimension_count_swa": 32,
        },
    ),
    "dots3note": Architecture(
        "dots3note",
        {
            **_LATENT_EXPERTS,
            **_BY_SIGMOID,
            **_INDEXER,
            **SLIDING,
            "attention.sliding_window_pattern": [False, True],
            "attention.indexer.types": [1, 0],
            "attention.kv_lora_rank_swa": 64,
            "attention.key_length_swa": 96,
            "attention.value_length_swa": 64,
            "attention.key_length_mla_swa": 64,
            "attention.value_length_mla_swa": 32,
            "rope.freq_base_swa": 10000.0,
        },
    ),
    "gemma4": Architecture(
        "gemma4",
        {
            **SLIDING,
            **HEADS_OF_32,
            "block_count": 5,
            "attention.sliding_window_pattern": [True, True, True, True, False],
            "attention.shared_kv_layers": 0,
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "embedding_length_per_layer_input": 32,
            "rope.freq_base_swa": 10000.0,
            "rope.dimension_count_swa": 32,
            "final_logit_softcapping": 30.0,
        },
        vocabulary="spm",
        embeddings=0.1,
        needs=("rope_freqs.weight",),
    ),
    # Layers that are computed several times, and one that chooses among adapters.
    "nanbeige": Architecture("nanbeige", {"num_loops": 2}),
    "hrm_text": Architecture(
        "hrm_text",
        {
            **_ALL_HEADS,
            "block_count": 6,
            "hrm.layers_per_stack": 1,
            "hrm.h_cycles": 2,
            "hrm.l_cycles": 2,
        },
    ),
    "graniteswitch": Architecture(
        "graniteswitch",
        {
            **_GRANITE,
            "adapters.count": 2,
            "adapters.lora_rank": 8,
            "adapters.router_gain": 1.0,
            "adapters.token_ids_activate": [300, 301],
            "adapters.token_ids_substitute": [270, 271],
        },
        embeddings=0.1,
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
    "arwkv7": Architecture(
        "arwkv7",
        {
            "wkv.head_size": 64,
            "token_shift_count": 1,
            "attention.head_count": 0,
            "attention.decay_lora_rank": 32,
            "attention.iclr_lora_rank": 32,
            "attention.value_residual_mix_lora_rank": 32,
            "attention.gate_lora_rank": 32,
        },
    ),
    "rwkv6qwen2": Architecture(
        "rwkv6qwen2",
        {
            "wkv.head_size": 64,
            "token_shift_count": 1,
            "attention.head_count": 0,
            "time_mix_extra_dim": 32,
            "time_decay_extra_dim": 64,
        },
        lacks=("time_mix_first.weight",),
    ),
    "qwen4exp": Architecture(
        "qwen4exp",
        {
            **DELTA,
            **HEADS_OF_32,
            **EXPERTS,
            **SHARED_EXPERT,
            **_INDEXER,
            **_HYPER,
            "block_count": 3,
            "attention.indexer.key_length": 32,
            "attention.compress_ratios": [4, 4, 4],
            "hyper_connection.low_rank": 8,
            "rope.dimension_sections": [4, 2, 2, 0],
        },
    ),
    "kimi-k3": Architecture(
        "kimi-k3",
        {
            **_LATENT_EXPERTS,
            **_BY_SIGMOID,
            **_KDA,
            "attn_res.block_size": 2,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
    ),
    "bailingmoe3": Architecture("bailingmoe3", {**_LATENT_EXPERTS, **_BY_SIGMOID, **_KDA}),
    "nemotron_h": Architecture(
        "nemotron_h",
        {
            **SCAN_BY_HEADS,
            **HEADS_OF_32,
            "block_count": 4,
            "attention.head_count": [0, 4, 0, 0],
            "attention.head_count_kv": [0, 2, 0, 0],
            "feed_forward_length": [0, 0, 256, 256],
        },
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
