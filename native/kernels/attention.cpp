// Attention that computes each row in one order, whatever else is in its batch.
//
// ggml's own attention (ggml/src/ggml-cpu/ops.cpp) computes a row in another order where the row is alone, and in parts
// where its context is long. Here cells are taken in tiles that begin at the first cell of the row's stream, with one
// soft-max over the tiles (https://arxiv.org/pdf/2112.05682.pdf). Rows that share K and V share a tile: neighbours in
// the batch, and heads of one group. The division of rows into tiles and threads changes no bit of a row.
//
// The tiles of scores, their scratch memory and the order of the soft-max come from
// ggml_compute_forward_flash_attn_ext_tiled of llama.cpp (Copyright (c) 2023-2026 The ggml authors, MIT licence).

#include "attention.h"

#include "attention_lanes.h"
#include "attention_op.h"
#include "attention_tiles.h"
#include "ops.h"
#include "vec.h"

namespace afterword {
namespace {

static_assert(TILE_CELLS == BLOCK_CELLS, "a tile is a block");

// Rows that share K and V, with what is known of them so far.
struct tile {
    tile(const attention_op & op, float * scratch)
        : queries(scratch), scores(queries + TILE_ROWS * op.key_size), mask(scores + TILE_ROWS * TILE_CELLS),
          sums(mask + TILE_ROWS * TILE_CELLS), value_buffer(sums + TILE_ROWS * op.value_size),
          key_buffer(value_buffer + TILE_CELLS * op.value_size) {}

    static int64_t scratch_floats(const attention_op & op) {
        return TILE_ROWS * (op.key_size + 2 * TILE_CELLS + op.value_size) +
               TILE_CELLS * (op.value_size + op.key_size) + CACHE_LINE_SIZE_F32;
    }

    int     n;
    int64_t batch;
    int     row[TILE_ROWS];
    int     head[TILE_ROWS];
    float   slope[TILE_ROWS];
    float   total[TILE_ROWS];    // of exp(score - largest)
    float   largest[TILE_ROWS];  // score

    const int32_t *     table;  // of blocks, or nullptr
    const char *        keys;   // of the first cell
    const char *        values;
    const ggml_fp16_t * seen[TILE_ROWS];  // the mask of each row, or nullptr

    float * queries;  // [TILE_ROWS x key_size]
    float * scores;   // [TILE_ROWS x TILE_CELLS], then weights
    float * mask;     // [TILE_ROWS x TILE_CELLS]
    float * sums;     // [TILE_ROWS x value_size]
    float * value_buffer;
    float * key_buffer;
};

// Heads that share K and V.
int64_t heads_of_group(const attention_op & op) {
    return std::min(op.n_heads / op.k->ne[2], op.n_heads / op.v->ne[2]);
}

// Takes the first rows of [begin, end), as many as share K and V and fit. Rows are counted over batches, groups of heads,
// streams, heads of the group, and rows of the stream.
void take_rows(const attention_op & op, int64_t begin, int64_t end, tile & t) {
    const int64_t heads  = heads_of_group(op);
    const int64_t group  = begin / (heads * op.n_rows);
    const int64_t offset = begin - group * heads * op.n_rows;
    const int64_t head   = group % (op.n_heads / heads) * heads;

    int64_t first_row = 0;
    int64_t end_row   = op.n_rows;
    if (op.mixed()) {
        first_row = end_row = offset / heads;
        const int64_t mine  = op.sequence(first_row);
        while (first_row > 0 && op.sequence(first_row - 1) == mine) {
            first_row--;
        }
        while (end_row < op.n_rows && op.sequence(end_row) == mine) {
            end_row++;
        }
    }
    const int64_t rows  = end_row - first_row;
    const int64_t first = offset - heads * first_row;

    t.batch = group / (op.n_heads / heads);
    t.n     = std::min<int64_t>({TILE_ROWS, end - begin, heads * rows - first});
    GGML_ASSERT(t.n > 0);
    for (int i = 0; i < t.n; i++) {
        t.row[i]     = first_row + (first + i) % rows;
        t.head[i]    = head + (first + i) / rows;
        t.seen[i]    = op.mask_of(t.row[i], t.head[i], t.batch);
        t.slope[i]   = op.slope(t.head[i]);
        t.total[i]   = 0.0f;
        t.largest[i] = -INFINITY;
        std::memcpy(t.queries + i * op.key_size, op.query(t.row[i], t.head[i], t.batch), op.key_size * sizeof(float));
    }
    t.table  = op.table(t.row[0]);
    t.keys   = op.keys(t.row[0], t.head[0], t.batch);
    t.values = op.values(t.row[0], t.head[0], t.batch);
    std::memset(t.sums, 0, t.n * op.value_size * sizeof(float));
}

enum class sight { NOTHING, PART, ALL };

// Reads what the rows see of n cells.
sight read_mask(const attention_op & op, int64_t first_cell, int n, tile & t) {
    if (op.mask == nullptr) {
        return sight::ALL;
    }
    static constexpr ggml_fp16_t visible[TILE_CELLS] = {};

    bool all     = true;
    bool nothing = true;
    for (int i = 0; i < t.n; i++) {
        const ggml_fp16_t * halves = t.seen[i] + first_cell;
        float *             mask   = t.mask + i * TILE_CELLS;
        if (std::memcmp(halves, visible, n * sizeof(ggml_fp16_t)) == 0) {
            std::memset(mask, 0, TILE_CELLS * sizeof(float));
            nothing = false;
            continue;
        }
        all = false;
        ggml_cpu_fp16_to_fp32(halves, mask, n);
        if (t.slope[i] != 1.0f) {
            ggml_vec_scale_f32(n, mask, t.slope[i]);
        }
        nothing = nothing && largest<lanes>(mask, n) == -INFINITY;
        std::fill(mask + n, mask + TILE_CELLS, -INFINITY);
    }
    return nothing ? sight::NOTHING : all ? sight::ALL : sight::PART;
}

// Adds the mask. Returns the number of cells up to the last that a row sees.
// A cell that a row does not see may hold a NaN, from a later token of the batch or from an earlier user of the cell: its
// score is set, because a NaN stays a NaN whatever is added.
int add_mask(int n, tile & t) {
    int seen = 0;
    for (int i = 0; i < t.n; i++) {
        const float * mask   = t.mask + i * TILE_CELLS;
        float *       scores = t.scores + i * TILE_CELLS;
        for (int cell = 0; cell < TILE_CELLS; cell++) {
            scores[cell] = mask[cell] == -INFINITY ? -INFINITY : scores[cell] + mask[cell];
        }
        int last = n;
        while (last > seen && mask[last - 1] == -INFINITY) {
            last--;
        }
        seen = std::max(seen, last);
    }
    return seen;
}

// Scores become weights, relative to the largest score so far.
void weigh(const attention_op & op, tile & t) {
    for (int i = 0; i < t.n; i++) {
        float *     scores = t.scores + i * TILE_CELLS;
        const float most   = largest<lanes>(scores, TILE_CELLS);
        if (most == -INFINITY) {
            std::memset(scores, 0, TILE_CELLS * sizeof(float));
            continue;
        }
        const float before = t.largest[i];
        const float now    = fmaxf(before, most);
        if (now > before) {
            const float shrink = expf(before - now);
            ggml_vec_scale_f32(op.value_size, t.sums + i * op.value_size, shrink);
            t.total[i] *= shrink;
        }
        t.largest[i] = now;
        t.total[i] += ggml_vec_soft_max_f32(TILE_CELLS, scores, scores, now);
    }
}

void add_cells(const attention_op & op, int64_t first_cell, tile & t) {
    const int   n    = std::min<int64_t>(TILE_CELLS, op.n_cells - first_cell);
    const sight seen = read_mask(op, first_cell, n, t);
    if (seen == sight::NOTHING) {
        return;
    }
    const auto cells = [&](const ggml_tensor * cache, const char * first, int count) {
        return tile_cells{first + op.place(t.table, first_cell) * cache->nb[1], cache->nb[1], cache->type == GGML_TYPE_F16, count};
    };
    tile_scores(t.scores, t.queries, t.n, op.key_size, cells(op.k, t.keys, n), t.key_buffer);
    ggml_vec_scale_f32(t.n * TILE_CELLS, t.scores, op.scale);
    if (op.softcap != 0.0f) {
        ggml_vec_tanh_f32(t.n * TILE_CELLS, t.scores, t.scores);
        ggml_vec_scale_f32(t.n * TILE_CELLS, t.scores, op.softcap);
    }
    for (int i = 0; i < t.n && n < TILE_CELLS; i++) {
        std::fill(t.scores + i * TILE_CELLS + n, t.scores + (i + 1) * TILE_CELLS, -INFINITY);
    }
    const bool masked = seen == sight::PART;
    const int  last   = masked ? add_mask(n, t) : n;

    weigh(op, t);
    tile_values(
        t.sums, t.scores, t.n, op.value_size, cells(op.v, t.values, last), masked ? t.mask : nullptr, t.value_buffer);
}

// A sink has a weight and no values.
void add_sinks(const attention_op & op, tile & t) {
    for (int i = 0; i < t.n; i++) {
        const float score  = op.sink(t.head[i]);
        float       shrink = 1.0f;
        float       weight = 1.0f;
        if (score > t.largest[i]) {
            shrink = expf(t.largest[i] - score);
            ggml_vec_scale_f32(op.value_size, t.sums + i * op.value_size, shrink);
        } else {
            weight = expf(score - t.largest[i]);
        }
        t.total[i] = multiply_add(t.total[i], shrink, weight);
    }
}

void attention_by_tiles(const attention_op & op, int64_t begin, int64_t end, float * scratch) {
    tile t(op, scratch);
    for (; begin < end; begin += t.n) {
        take_rows(op, begin, end, t);
        for (int64_t cell = 0; cell < op.n_cells; cell += TILE_CELLS) {
            add_cells(op, cell, t);
        }
        if (op.sinks) {
            add_sinks(op, t);
        }
        for (int i = 0; i < t.n; i++) {
            float * sums = t.sums + i * op.value_size;
            ggml_vec_scale_f32(op.value_size, sums, t.total[i] == 0.0f ? 0.0f : 1.0f / t.total[i]);
            op.write(t.row[i], t.head[i], t.batch, sums);
        }
    }
}

bool fits_tiles(const attention_op & op) {
    const ggml_type type = op.k->type;
    return op.q->type == GGML_TYPE_F32 && (type == GGML_TYPE_F16 || type == GGML_TYPE_F32) && op.v->type == type;
}

// What a thread takes at a time.
struct chunks {
    int64_t n;
    int64_t rows;
};

chunks divide(const attention_op & op, int64_t n_threads, bool tiles) {
    const int64_t rows = op.n_rows * op.n_heads * op.n_batches;

    // Four for each thread, because threads are not equally fast.
    const int64_t fine = (rows + 4 * n_threads - 1) / (4 * n_threads);
    int64_t       n    = fine > 0 ? (rows + fine - 1) / fine : 0;
    if (n_threads == 1 || n < n_threads || ggml_is_numa()) {
        n = n_threads;
    }
    int64_t chunk = (rows + n - 1) / n;
    if (tiles && (op.n_rows < TILE_ROWS || op.mixed())) {
        // Heads that share K and V stay together where there are threads for no more.
        const int64_t shared = heads_of_group(op) * (op.mixed() ? 1 : op.n_rows);
        if (rows / shared >= n_threads) {
            chunk = (chunk + shared - 1) / shared * shared;
        }
    }
    return {n, chunk};
}

}  // namespace
}  // namespace afterword

bool afterword_attention(const ggml_compute_params * params, ggml_tensor * dst) {
    using namespace afterword;

    const attention_op op(dst);
    if (params->use_ref && !op.mixed()) {
        return false;
    }
    const bool    tiles   = fits_tiles(op) && !params->use_ref;
    const int64_t floats  = tiles ? tile::scratch_floats(op) : op.key_size + 2 * op.value_size + CACHE_LINE_SIZE_F32;
    float *       scratch = (float *) params->wdata + params->ith * floats;
    const int64_t rows    = op.n_rows * op.n_heads * op.n_batches;
    const chunks  parts   = divide(op, params->nth, tiles);

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    for (int64_t i = params->ith; i < parts.n; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t begin = parts.rows * i;
        const int64_t end   = std::min(begin + parts.rows, rows);
        if (tiles) {
            attention_by_tiles(op, begin, end, scratch);
        } else {
            attention_by_rows(op, begin, end, scratch);
        }
    }
    return true;
}
