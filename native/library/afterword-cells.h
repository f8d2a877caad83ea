#pragma once

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

// A saved state that has the cells behind a sliding window, too.
constexpr llama_state_seq_flags AFTERWORD_STATE_WHOLE = 1u << 16;

// How many tokens of a batch each of its streams gets, in the order of the batch.
std::vector<uint32_t> afterword_tokens_by_stream(const llama_ubatch & ubatch, uint32_t n_stream);

// Writes the cell of each token, counted over all streams, of stream_size cells each.
void afterword_input_cells(
    int64_t * cells, const llama_ubatch & ubatch, const llama_kv_cache::slot_info & slots, uint32_t stream_size);

// The cells of each row, by which attention finds its stream or its table of blocks. Without them, the rows of a batch
// belong to one stream after another, all with equally many.
inline ggml_tensor * afterword_row_cells(
    const llama_cparams & cparams, const llama_ubatch & ubatch, ggml_tensor * cells) {
    const bool ragged = !cparams.kv_unified && !ubatch.equal_seqs() && cparams.n_seq_max > 1;
    return ragged || cells->ne[1] > 1 ? cells : nullptr;
}

// Fills new memory with zeros. Pages that nobody has written yet read as zeros, and are not taken.
void afterword_clear_pages(ggml_backend_buffer_t buffer);
