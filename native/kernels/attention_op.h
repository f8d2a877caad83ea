// The operands of one GGML_OP_FLASH_ATTN_EXT by their names.
//
// A row is a token of the batch. A stream is one of the caches that K and V hold one after another (their dimension 3).
// A block is BLOCK_CELLS cells of one cache; the cells of a sequence are in blocks anywhere in it.
#pragma once

#include "afterword.h"
#include "common.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace afterword {

constexpr int64_t BLOCK_CELLS = AFTERWORD_BLOCK_CELLS;

// A split is so many cells of a row's stream, counted from the first. It has a soft-max of its own.
constexpr int64_t SPLIT_CELLS = 512;

struct attention_op {
    explicit attention_op(const ggml_tensor * dst)
        : dst(dst), q(dst->src[0]), k(dst->src[1]), v(dst->src[2]), mask(dst->src[3]), sinks(dst->src[4]),
          cells(dst->src[5]), key_size(k->ne[0]), value_size(v->ne[0]), n_rows(q->ne[1]), n_heads(q->ne[2]),
          n_batches(q->ne[3]), n_cells(k->ne[1]) {
        GGML_ASSERT(q->ne[0] == key_size);
        GGML_ASSERT(dst->ne[0] == value_size);
        GGML_ASSERT(dst->ne[2] == n_rows);

        // the values of a row are next to each other
        GGML_ASSERT(q->nb[0] == ggml_type_size(q->type));
        GGML_ASSERT(k->nb[0] == ggml_type_size(k->type));
        GGML_ASSERT(v->nb[0] == ggml_type_size(v->type));

        // dst is neither transposed nor permuted
        GGML_ASSERT(dst->nb[0] == sizeof(float));
        GGML_ASSERT(dst->nb[0] <= dst->nb[1]);
        GGML_ASSERT(dst->nb[1] <= dst->nb[2]);
        GGML_ASSERT(dst->nb[2] <= dst->nb[3]);

        std::memcpy(&scale,    (const float *) dst->op_params + 0, sizeof(float));
        std::memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
        std::memcpy(&softcap,  (const float *) dst->op_params + 2, sizeof(float));
        if (softcap != 0) {
            scale /= softcap;
        }
    }

    // Whether rows of several sequences are in the batch. Then src[5] has the cell of each row, counted over all streams.
    bool mixed() const {
        return cells != nullptr;
    }

    // Whether cells are in blocks. Then src[5] has the table of each row, too: which block has the cells from 0, 64, 128
    // and so on of the row's sequence. All streams are one.
    bool in_blocks() const {
        return mixed() && cells->ne[1] > 1;
    }

    const int32_t * table(int64_t row) const {
        return in_blocks() ? (const int32_t *) (intptr_t) ((const int64_t *) cells->data)[n_rows + row] : nullptr;
    }

    // A number that rows of a mixed batch have in common if they are of one sequence.
    int64_t sequence(int64_t row) const {
        return in_blocks() ? (int64_t) (intptr_t) table(row) : stream(row);
    }

    // Where a cell of a sequence is, counted from the first of the memory that its row sees.
    static int64_t place(const int32_t * table, int64_t cell) {
        return table ? table[cell / BLOCK_CELLS] * BLOCK_CELLS + cell % BLOCK_CELLS : cell;
    }

    int64_t n_splits() const { return (n_cells + SPLIT_CELLS - 1) / SPLIT_CELLS; }

    // Rows of q, counted over batches, heads and rows.
    int64_t rows_and_heads() const { return n_rows * n_heads * n_batches; }

    // Heads that share K and V.
    int64_t heads_of_group() const { return std::min(n_heads / k->ne[2], n_heads / v->ne[2]); }

    // The slope of ALiBi.
    float slope(uint32_t head) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const uint32_t n_head_log2 = 1u << (uint32_t) std::floor(std::log2((uint32_t) n_heads));
        const float    m0          = powf(2.0f, -(max_bias       ) / n_head_log2);
        const float    m1          = powf(2.0f, -(max_bias / 2.0f) / n_head_log2);
        return head < n_head_log2 ? powf(m0, head + 1) : powf(m1, 2 * (head - n_head_log2) + 1);
    }

    const float * query(int64_t row, int64_t head, int64_t batch) const {
        return (const float *) ((const char *) q->data + row * q->nb[1] + head * q->nb[2] + batch * q->nb[3]);
    }

    // The first of the cells that a row may see with a head. The next is nb[1] bytes on; see place().
    const char * keys(int64_t row, int64_t head, int64_t batch) const {
        return first_cell(k, row, head, batch);
    }

    const char * values(int64_t row, int64_t head, int64_t batch) const {
        return first_cell(v, row, head, batch);
    }

    // What is added to the score of each cell, or nullptr.
    const ggml_fp16_t * mask_of(int64_t row, int64_t head, int64_t batch) const {
        if (mask == nullptr) {
            return nullptr;
        }
        return (const ggml_fp16_t *) ((const char *) mask->data + row * mask->nb[1] +
                                      (head % mask->ne[2]) * mask->nb[2] + (batch % mask->ne[3]) * mask->nb[3]);
    }

    float sink(int64_t head) const {
        return ((const float *) sinks->data)[head];
    }

    void write(int64_t row, int64_t head, int64_t batch, const float * values) const {
        const int64_t place = batch * dst->ne[2] * dst->ne[1] + head + row * dst->ne[1];
        std::memcpy((char *) dst->data + place * dst->nb[1], values, dst->nb[1]);
    }

    const ggml_tensor * dst;
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    const ggml_tensor * cells;

    int64_t key_size;
    int64_t value_size;
    int64_t n_rows;
    int64_t n_heads;
    int64_t n_batches;
    int64_t n_cells;  // of a stream

    float scale;
    float max_bias;
    float softcap;

private:
    // The stream of a row in a mixed batch without blocks.
    int64_t stream(int64_t row) const {
        return ((const int64_t *) cells->data)[row] / (int64_t) (k->nb[3] / k->nb[1]);
    }

    const char * first_cell(const ggml_tensor * cache, int64_t row, int64_t head, int64_t batch) const {
        const int64_t cache_head   = head / (n_heads / cache->ne[2]);
        const int64_t cache_stream = in_blocks() ? 0 : mixed() ? stream(row) : batch / (n_batches / cache->ne[3]);
        return (const char *) cache->data + cache_head * cache->nb[2] + cache_stream * cache->nb[3];
    }
};

// Computes rows [begin, end) of q, counted over batches, streams, groups of heads, heads of the group, and rows of the
// stream. K and V are halves or floats. scratch: scratch_of_tiles(op) floats. (attention_by_tiles.cpp)
void    attention_by_tiles(const attention_op & op, int64_t begin, int64_t end, float * scratch);
int64_t scratch_of_tiles(const attention_op & op);

// Computes one split of these rows. parts: a part for each split of each row of the operation.
void attention_of_split(
    const attention_op & op, int64_t begin, int64_t end, int64_t split, float * parts, float * scratch);

// Makes rows [begin, end) of all of their parts, and writes them. Overwrites the parts.
void merge_splits(const attention_op & op, int64_t begin, int64_t end, float * parts, float * scratch);

// Computes rows [begin, end) of q, counted over batches, heads and rows, one after another, with K and V of any type.
// scratch: key_size + 2 * value_size floats. (attention_rows.cpp)
void attention_by_rows(const attention_op & op, int64_t begin, int64_t end, float * scratch);

}  // namespace afterword
