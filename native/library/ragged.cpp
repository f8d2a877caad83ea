// Batches with unequal numbers of tokens of each sequence: how they are cut, and the cells that their tokens get.

#include "afterword-cells.h"
#include "afterword.h"
#include "llama-batch.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>

// Cuts off the next n_ubatch tokens, with the tokens of each sequence together.
llama_ubatch llama_batch_allocr::split_ragged(uint32_t n_ubatch) {
    if (has_cpl) {
        LLAMA_LOG_ERROR("%s: not supported when there are coupled sequences in the input batch\n", __func__);
        return {};
    }
    std::vector<int32_t> idxs;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (!used[i]) {
            idxs.push_back(i);
        }
    }
    if (idxs.empty()) {
        return {};
    }
    std::stable_sort(idxs.begin(), idxs.end(), [&](int32_t a, int32_t b) {
        return batch.seq_id[a][0] < batch.seq_id[b][0];
    });
    idxs.resize(std::min<size_t>(idxs.size(), n_ubatch));
    for (const auto idx : idxs) {
        used[idx] = true;
        ++n_used;
    }
    return ubatch_add(idxs, idxs.size(), false);
}

// The processor's flash attention finds the stream of each row by itself; nothing else does.
bool llama_kv_cache::computes_by_stream() const {
    return blocks || (n_stream > 1 && !v_trans && !other && !hparams.is_mla() && model.devices.empty() &&
        model.arch != LLM_ARCH_T5 && model.arch != LLM_ARCH_MINIMAX_M3);
}

bool llama_kv_cache_iswa::computes_by_stream() const {
    return kv_base->computes_by_stream() && kv_swa->computes_by_stream() && kv_base->get_size() == kv_swa->get_size();
}

std::vector<uint32_t> afterword_tokens_by_stream(const llama_ubatch & ubatch, uint32_t n_stream) {
    if (n_stream == 1) {
        return { ubatch.n_tokens };
    }
    std::vector<uint32_t> counts;
    uint32_t begin = 0;
    for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
        uint32_t end = begin;
        while (end < ubatch.n_tokens && ubatch.seq_id[end][0] == ubatch.seq_id_unq[s]) {
            GGML_ASSERT(ubatch.n_seq_id[end] == 1);
            ++end;
        }
        GGML_ASSERT(end > begin);
        counts.push_back(end - begin);
        begin = end;
    }
    GGML_ASSERT(begin == ubatch.n_tokens);
    return counts;
}

void afterword_input_cells(
    int64_t * cells, const llama_ubatch & ubatch, const llama_kv_cache::slot_info & slots, uint32_t stream_size) {
    uint32_t i = 0;
    for (uint32_t s = 0; s < slots.n_stream(); ++s) {
        for (const auto idx : slots.idxs[s]) {
            cells[i++] = (int64_t) slots.strm[s] * stream_size + idx;
        }
    }
    GGML_ASSERT(i == ubatch.n_tokens);
}

extern "C" bool llama_afterword_ragged(llama_memory_t memory) {
    if (const auto * windows = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        return windows->computes_by_stream();
    }
    const auto * cache = dynamic_cast<const llama_kv_cache *>(memory);
    return cache && cache->computes_by_stream();
}
