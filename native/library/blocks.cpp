// KV memory that is a pool of blocks.

#include "afterword-blocks.h"

#include "afterword.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace {

thread_local uint32_t cells_of_next_context = 0;
thread_local uint32_t cells_of_next_cache   = 0;

// Calls f with each of the caches that a model has, if they are pools of blocks. Returns whether they are.
template <class F>
bool with_caches(llama_memory_t memory, F && f) {
    if (auto * windows = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        if (!windows->get_base()->blocks || !windows->get_swa()->blocks) {
            return false;
        }
        f(*windows->get_base());
        f(*windows->get_swa());
        return true;
    }
    auto * cache = dynamic_cast<llama_kv_cache *>(memory);
    if (cache == nullptr || !cache->blocks) {
        return false;
    }
    f(*cache);
    return true;
}

template <class T>
void write_rows(T * data, int64_t n_cells, const llama_ubatch & ubatch, bool alibi, uint32_t n_swa,
    llama_swa_type swa_type) {
    const T keep = llama_cast<T>(0.0f);
    const T drop = llama_cast<T>(-INFINITY);
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        T *             row = data + i * n_cells;
        const llama_pos pos = ubatch.pos[i];

        // The window of a row ends with its own cell, so there is one place from which on cells are seen.
        llama_pos begin = 0;
        if (swa_type != LLAMA_SWA_TYPE_NONE) {
            llama_pos end = pos;
            while (begin < end) {
                const llama_pos middle = begin + (end - begin) / 2;
                if (llama_hparams::is_masked_swa(n_swa, swa_type, middle, pos)) {
                    begin = middle + 1;
                } else {
                    end = middle;
                }
            }
        }
        std::fill(row, row + begin, drop);
        std::fill(row + begin, row + pos + 1, keep);
        std::fill(row + pos + 1, row + n_cells, drop);
        if (alibi) {
            for (llama_pos cell = begin; cell <= pos; ++cell) {
                row[cell] = llama_cast<T>(static_cast<float>(cell - pos));
            }
        }
    }
}

}  // namespace

bool afterword_blocks::remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    for (llama_seq_id i = 0; i < (llama_seq_id) sequences.size(); ++i) {
        auto & length = sequences[i].length;
        if ((seq_id >= 0 && i != seq_id) || p0 >= length) {
            continue;
        }
        if (p1 >= 0 && p1 < length) {
            return false;
        }
        length = std::max(p0, 0);
    }
    return true;
}

bool afterword_blocks::fit(const llama_ubatch & ubatch) const {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const auto & sequence = sequences[ubatch.seq_id[i][0]];
        if (ubatch.n_seq_id[i] != 1 || sequence.table == nullptr || ubatch.pos[i] >= (llama_pos) size) {
            return false;
        }
    }
    return true;
}

void afterword_blocks::add(const llama_ubatch & ubatch) {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        auto & length = sequences[ubatch.seq_id[i][0]].length;
        length        = std::max(length, ubatch.pos[i] + 1);
    }
}

uint32_t afterword_blocks::longest(const std::vector<llama_seq_id> & seq_ids) const {
    llama_pos length = 0;
    for (const auto seq_id : seq_ids) {
        length = std::max(length, sequences[seq_id].length);
    }
    return length;
}

void afterword_blocks::write_cells(int64_t * cells, const llama_ubatch & ubatch, bool tables) const {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];

        cells[i] = cell(seq_id, ubatch.pos[i]);
        if (tables) {
            cells[ubatch.n_tokens + i] = (int64_t) (intptr_t) sequences[seq_id].table;
        }
    }
}

void afterword_blocks::write_mask(ggml_tensor * mask, const llama_ubatch & ubatch, const llama_hparams & hparams,
    uint32_t n_swa, llama_swa_type swa_type) const {
    const int64_t n_cells = mask->ne[0];
    if (mask->type == GGML_TYPE_F16) {
        write_rows((ggml_fp16_t *) mask->data, n_cells, ubatch, hparams.use_alibi, n_swa, swa_type);
    } else {
        write_rows((float *) mask->data, n_cells, ubatch, hparams.use_alibi, n_swa, swa_type);
    }
}

afterword_blocks_wanted::afterword_blocks_wanted(uint32_t n_cells) {
    cells_of_next_cache = n_cells;
}

afterword_blocks_wanted::~afterword_blocks_wanted() {
    cells_of_next_cache = 0;
}

std::unique_ptr<afterword_blocks> afterword_make_blocks(
    const llama_model & model, const llama_hparams & hparams, bool plain, uint32_t size, uint32_t n_seq_max) {
    const bool computes = plain && !hparams.is_mla() && hparams.causal_attn && hparams.ple_n_heads == 0 &&
        model.devices.empty() && model.arch != LLM_ARCH_T5 && model.arch != LLM_ARCH_MINIMAX_M3;
    if (cells_of_next_cache == 0 || !computes) {
        return nullptr;
    }
    if (cells_of_next_cache < size || cells_of_next_cache % afterword_blocks::CELLS != 0) {
        throw std::runtime_error("a pool of blocks needs whole blocks, and room for one sequence");
    }
    auto blocks     = std::make_unique<afterword_blocks>();
    blocks->n_cells = cells_of_next_cache;
    blocks->size    = size;
    blocks->sequences.resize(n_seq_max);
    return blocks;
}

uint32_t afterword_take_wanted_cells() {
    return std::exchange(cells_of_next_context, 0);
}

ggml_tensor * afterword_cells_of_tokens(ggml_context * ctx, ggml_tensor * cells) {
    return cells->ne[1] == 1 ? cells : ggml_view_1d(ctx, cells, cells->ne[0], 0);
}

// A block is rows of each layer's keys and values, next to each other.
void llama_kv_cache::copy_cells(int32_t from, int32_t to, uint32_t n_cells) {
    for (const auto & layer : layers) {
        for (auto * rows : { layer.k, layer.v }) {
            if (rows != nullptr) {
                const size_t stride = rows->nb[1] * afterword_blocks::CELLS;
                memcpy((char *) rows->data + to * stride, (const char *) rows->data + from * stride, n_cells * rows->nb[1]);
            }
        }
    }
}

extern "C" {

void llama_afterword_want_blocks(uint32_t n_cells) {
    cells_of_next_context = n_cells;
}

bool llama_afterword_has_blocks(llama_memory_t memory) {
    return with_caches(memory, [](llama_kv_cache &) {});
}

void llama_afterword_bind(
    llama_memory_t memory, int32_t n_sequences, const int32_t * const * tables, const int32_t * lengths) {
    with_caches(memory, [&](llama_kv_cache & cache) {
        auto & sequences = cache.blocks->sequences;
        for (int32_t i = 0; i < n_sequences && i < (int32_t) sequences.size(); ++i) {
            sequences[i] = { tables[i], lengths[i] };
        }
    });
}

void llama_afterword_copy_cells(llama_memory_t memory, int32_t from, int32_t to, int32_t n_cells) {
    with_caches(memory, [&](llama_kv_cache & cache) { cache.copy_cells(from, to, n_cells); });
}
}
