// Cells of the KV cache: memory that is taken when it is used, forks of a sequence, and the length of windows.

#include "afterword-cells.h"
#include "afterword-guard.h"
#include "afterword.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#if defined(__linux__)
#    include <sys/mman.h>
#    include <unistd.h>
#endif

#include <cstring>
#include <utility>

void afterword_clear_pages(ggml_backend_buffer_t buffer) {
#if defined(__linux__)
    const uintptr_t page  = sysconf(_SC_PAGESIZE);
    const uintptr_t base  = (uintptr_t) ggml_backend_buffer_get_base(buffer);
    const uintptr_t end   = base + ggml_backend_buffer_get_size(buffer);
    const uintptr_t first = (base + page - 1) / page * page;
    const uintptr_t last  = end / page * page;

    if (ggml_backend_buffer_get_type(buffer) == ggml_backend_cpu_buffer_type() && first < last &&
        madvise((void *) first, last - first, MADV_DONTNEED) == 0) {
        memset((void *) base, 0, first - base);
        memset((void *) last, 0, end - last);
        return;
    }
#endif
    ggml_backend_buffer_clear(buffer, 0);
}

// Makes a sequence the first n_pos positions of another one. False if that is not possible here.
bool llama_kv_cache::fork(llama_seq_id from, llama_seq_id to, llama_pos n_pos) {
    const auto s0 = seq_to_stream[from];
    const auto s1 = seq_to_stream[to];
    if (blocks || v_trans || other || !model.devices.empty() || s0 == s1 || v_cells[s0].get_has_shift()) {
        return false;
    }

    auto & cells = v_cells[s1];
    cells.reset();
    uint32_t n_cells = 0;
    for (uint32_t i = 0; i < v_cells[s0].size(); ++i) {
        if (v_cells[s0].pos_in(i, 0, n_pos) && v_cells[s0].seq_has(i, from)) {
            cells.pos_set(i, v_cells[s0].pos_get(i));
            cells.ext_set(i, v_cells[s0].ext_get(i));
            cells.seq_add(i, to);
            n_cells = i + 1;
        }
    }
    v_heads[s1] = n_cells;

    // A cell is a row of each layer's keys and values.
    for (const auto & layer : layers) {
        for (const auto * streams : { &layer.k_stream, &layer.v_stream }) {
            if (const auto * rows = (*streams)[s0]) {
                memcpy((*streams)[s1]->data, rows->data, n_cells * rows->nb[1]);
            }
        }
    }
    return true;
}

extern "C" {

int32_t llama_afterword_fork(
    llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos n_pos, bool * result) {
    return afterword_guarded(result, [&] {
        if (auto * windows = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
            return windows->get_base()->fork(from, to, n_pos) && windows->get_swa()->fork(from, to, n_pos);
        }
        auto * cache = dynamic_cast<llama_kv_cache *>(memory);
        return cache && cache->fork(from, to, n_pos);
    });
}

uint32_t llama_afterword_window(llama_model * model, uint32_t tokens) {
    return std::exchange(model->hparams.n_swa, tokens);
}
}
