// Attention that computes each row in one order, whatever else is in its batch.
//
// ggml's own attention (ggml/src/ggml-cpu/ops.cpp) computes a row in another order where the row is alone, and in parts
// that depend on the number of threads where its context is long. Here the parts are splits of a fixed number of cells.
// The division of rows and splits into tiles and threads changes no bit of a row.

#include "attention.h"

#include "attention_op.h"
#include "attention_parts.h"
#include "ggml-cpu.h"
#include "ops.h"
#include "turns.h"

namespace afterword {
namespace {

// Chunks for each thread, because threads are not equally fast.
constexpr int64_t CHUNKS = 4;

constexpr int64_t MOST_PART_FLOATS = 2 * 1024 * 1024;

// So many rows that share K and V are a tile that is worth its copy of them.
constexpr int64_t FULL_TILE = ggml_fa_tile_config::Q;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool fits_tiles(const attention_op & op) {
    const ggml_type type = op.k->type;
    return op.q->type == GGML_TYPE_F32 && (type == GGML_TYPE_F16 || type == GGML_TYPE_F32) && op.v->type == type;
}

int64_t floats_of_parts(const attention_op & op) { return op.rows_and_heads() * op.n_splits() * part_floats(op); }

// Whether threads compute splits of a row, which are merged in a stage of its own. Many rows are work enough without.
bool in_stages(const attention_op & op, int64_t n_threads) {
    return fits_tiles(op) && op.n_splits() > 1 && n_threads > 1 &&
           op.rows_and_heads() <= CHUNKS * n_threads * FULL_TILE &&
           floats_of_parts(op) <= MOST_PART_FLOATS;
}

// What a thread takes at a time: rows, or one split of them.
struct chunks {
    int64_t n;
    int64_t rows;
};

// Whether each thread has about as many of n equal parts.
bool are_even(int64_t n, int64_t n_threads) { return 4 * n >= 3 * ceil_div(n, n_threads) * n_threads; }

// How many rows stay together: all heads of a row, or those that share K and V, if there is work for all threads then.
int64_t rows_together(const attention_op & op, int64_t n_threads, int64_t splits) {
    const int64_t rows  = op.rows_and_heads();
    const int64_t lone  = op.mixed() ? 1 : op.n_rows;
    const int64_t all   = op.n_heads * lone;
    const int64_t group = op.heads_of_group() * lone;
    if (are_even(rows / all * splits, n_threads)) {
        return all;
    }
    return rows / group * splits >= n_threads ? group : 1;
}

chunks divide(const attention_op & op, int64_t n_threads, bool tiles, int64_t splits) {
    const int64_t rows = op.rows_and_heads();
    const int64_t most = ceil_div(CHUNKS * n_threads, splits);

    // How many chunks of equal size there are, of at most so many.
    int64_t n = rows > 0 ? ceil_div(rows, ceil_div(rows, most)) : 0;
    if (n_threads == 1 || n * splits < n_threads || ggml_is_numa()) {
        n = n_threads;
    }
    int64_t chunk = ceil_div(rows, n);
    if (tiles && (op.n_rows < FULL_TILE || op.mixed())) {
        const int64_t together = rows_together(op, n_threads, splits);
        chunk = ceil_div(chunk, together) * together;
    }
    return {n, chunk};
}

int64_t scratch_floats(const attention_op & op, bool tiles) {
    return tiles ? scratch_of_tiles(op) : op.key_size + 2 * op.value_size + CACHE_LINE_SIZE_F32;
}

}  // namespace
}  // namespace afterword

int afterword_attention_stages(const ggml_tensor * op, int threads) {
    return afterword::in_stages(afterword::attention_op(op), threads) ? 2 : 1;
}

size_t afterword_attention_bytes(const ggml_tensor * tensor, int threads) {
    using namespace afterword;

    const attention_op op(tensor);
    const int64_t      parts = in_stages(op, threads) ? floats_of_parts(op) : 0;
    return (parts + threads * scratch_floats(op, fits_tiles(op))) * sizeof(float);
}

bool afterword_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace afterword;

    const attention_op op(dst);
    if (params->use_ref && !op.mixed()) {
        return false;
    }
    const int64_t rows    = op.rows_and_heads();
    float * const scratch = (float *) params->wdata;
    if (afterword_turns_stage(params->threadpool) == 1) {
        merge_splits(op, 0, rows, scratch, scratch + floats_of_parts(op));
        return true;
    }
    const bool    tiles  = fits_tiles(op) && !params->use_ref;
    const bool    staged = tiles && in_stages(op, params->nth);
    const int64_t splits = staged ? op.n_splits() : 1;
    const chunks  all    = divide(op, params->nth, tiles, splits);
    float * const mine =
        scratch + (staged ? floats_of_parts(op) : 0) + params->ith * scratch_floats(op, tiles);
    GGML_ASSERT(params->wsize >= afterword_attention_bytes(dst, params->nth));

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    for (int64_t i = params->ith; i < all.n * splits; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t begin = all.rows * (i / splits);
        const int64_t end   = std::min(begin + all.rows, rows);
        if (staged) {
            attention_of_split(op, begin, end, i % splits, scratch, mine);
        } else if (tiles) {
            attention_by_tiles(op, begin, end, mine);
        } else {
            attention_by_rows(op, begin, end, mine);
        }
    }
    return true;
}
