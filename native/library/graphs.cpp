// Graphs of small batches, kept by their size.

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

// Makes the context's graph and scheduler those of a size of batch, and keeps those of the size before.
void llama_context::take_graph(uint32_t n_tokens) {
    static constexpr uint32_t MOST_TOKENS = 32;
    static constexpr size_t   MOST_KEPT   = 9;

    // Other devices have schedulers that take much memory: there, all sizes share one.
    const uint32_t size = model.devices.empty() && n_tokens <= MOST_TOKENS ? n_tokens : 0;
    if (size == gf_size) {
        return;
    }
    gf_kept.push_back({ gf_size, std::move(sched), std::move(gf_res_prev), gf_res_prev_active });
    gf_size = size;

    auto found = std::find_if(gf_kept.begin(), gf_kept.end(), [size](const auto & kept) { return kept.n_tokens == size; });
    const bool fresh = found == gf_kept.end();
    if (fresh && gf_kept.size() > MOST_KEPT) {
        // The oldest makes room, and lends its memory.
        found = std::find_if(gf_kept.begin(), gf_kept.end(), [](const auto & kept) { return kept.n_tokens != 0; });
    }
    if (found != gf_kept.end()) {
        sched              = std::move(found->sched);
        gf_res_prev        = std::move(found->prev);
        gf_res_prev_active = fresh ? nullptr : found->active;
        gf_kept.erase(found);
    } else {
        sched.reset(ggml_backend_sched_new(
            backend_ptrs.data(), backend_buft.data(), backend_ptrs.size(), gf_res_reserve->get_max_nodes(),
            cparams.pipeline_parallel, cparams.op_offload));
        gf_res_prev        = {};
        gf_res_prev_active = nullptr;
    }
}
