// Attention of rows that share K and V, by tiles: for K and V of halves or of floats.
//
// Cells are taken in tiles that begin at the first cell of the row's stream, with one soft-max over the tiles of a split
// (https://arxiv.org/pdf/2112.05682.pdf). The splits of a row are merged from the first to the last, whether one thread
// computes them or several.
//
// The tiles of scores, their scratch memory and the order of the soft-max come from
// ggml_compute_forward_flash_attn_ext_tiled of llama.cpp (Copyright (c) 2023-2026 The ggml authors, MIT licence).

#include "attention_lanes.h"
#include "attention_op.h"
#include "attention_parts.h"
#include "attention_tiles.h"
#include "ops.h"
#include "vec.h"

namespace afterword {

static_assert(TILE_CELLS == BLOCK_CELLS, "a tile is a block");
static_assert(SPLIT_CELLS % TILE_CELLS == 0, "a split is tiles");

namespace {

// Up to so many rows, heads that do not share K and V are in one tile.
constexpr int GROUPED_ROWS = 64;

// Rows that share K and V.
struct group {
    int          begin;
    int          end;
    const char * keys;  // of the first cell
    const char * values;
};

// Rows of one sequence, with what is known of them in the split at hand.
struct tile {
    tile(const attention_op & op, float * scratch)
        : queries(scratch), scores(queries + TILE_ROWS * op.key_size), mask(scores + TILE_ROWS * TILE_CELLS),
          sums(mask + TILE_ROWS * TILE_CELLS), merged(sums + TILE_ROWS * op.value_size),
          value_buffer(merged + TILE_ROWS * part_floats(op)), key_buffer(value_buffer + TILE_CELLS * op.value_size) {}

    int     n;
    int64_t batch;
    int     row[TILE_ROWS];
    int     head[TILE_ROWS];
    float   slope[TILE_ROWS];
    float   total[TILE_ROWS];    // of exp(score - largest)
    float   largest[TILE_ROWS];  // score

    int   n_groups;
    group groups[GROUPED_ROWS];
    bool  all_heads;  // of its rows are here

    const int32_t *     table;            // of blocks, or nullptr
    const ggml_fp16_t * seen[TILE_ROWS];  // the mask of each row, or nullptr

    float * queries;  // [TILE_ROWS x key_size]
    float * scores;   // [TILE_ROWS x TILE_CELLS], then weights
    float * mask;     // [TILE_ROWS x TILE_CELLS]
    float * sums;     // [TILE_ROWS x value_size]
    float * merged;   // a part of each row, of the splits before
    float * value_buffer;
    float * key_buffer;
};

// Takes the first rows of [begin, end): as many as share K and V and fit; if they are few, the heads that follow, too.
// Rows are counted over batches, streams, groups of heads, heads of the group, and rows of the stream.
void take_rows(const attention_op & op, int64_t begin, int64_t end, tile & t) {
    const int64_t in_batch = begin % (op.n_heads * op.n_rows);

    int64_t first_row = 0;
    int64_t end_row   = op.n_rows;
    if (op.mixed()) {
        first_row = end_row = in_batch / op.n_heads;
        const int64_t mine  = op.sequence(first_row);
        while (first_row > 0 && op.sequence(first_row - 1) == mine) {
            first_row--;
        }
        while (end_row < op.n_rows && op.sequence(end_row) == mine) {
            end_row++;
        }
    }
    const int64_t rows     = end_row - first_row;
    const int64_t size     = op.heads_of_group() * rows;
    const int64_t in_rows  = in_batch - op.n_heads * first_row;
    const int64_t first    = in_rows % size;
    const int64_t n_groups = op.n_heads / op.heads_of_group();
    int64_t       next     = in_rows / size + 1;

    t.batch     = begin / (op.n_heads * op.n_rows);
    t.table     = op.table(first_row);
    t.n         = std::min<int64_t>({TILE_ROWS, end - begin, size - first});
    t.all_heads = first == 0 && t.n == size && next == 1;
    while (t.all_heads && next < n_groups && t.n + size <= std::min<int64_t>(GROUPED_ROWS, end - begin)) {
        t.n += size;
        next++;
    }
    t.all_heads = t.all_heads && next == n_groups;
    GGML_ASSERT(t.n > 0);
    for (int i = 0; i < t.n; i++) {
        const int64_t place = in_rows + i;
        t.row[i]     = first_row + place % rows;
        t.head[i]    = place / rows;
        t.seen[i]    = op.mask_of(t.row[i], t.head[i], t.batch);
        t.slope[i]   = op.slope(t.head[i]);
        std::memcpy(t.queries + i * op.key_size, op.query(t.row[i], t.head[i], t.batch), op.key_size * sizeof(float));
    }
    t.n_groups = 0;
    for (int i = 0; i < t.n; i = t.groups[t.n_groups++].end) {
        const int last = std::min<int64_t>(t.n, i + size);
        t.groups[t.n_groups] = {
            i, last, op.keys(t.row[i], t.head[i], t.batch), op.values(t.row[i], t.head[i], t.batch)};
    }
}

// The rows of a tile that see any of some cells are from `begin` to `end`. With `all`, each of them sees each cell.
struct seeing {
    int  begin;
    int  end;
    bool all;
};

bool are_zero(const ggml_fp16_t * halves, int n) {
    uint16_t any = 0;
    for (int i = 0; i < n; i++) {
        any |= halves[i];
    }
    return any == 0;
}

// Asks for what a row sees of the next tile. Rows of a mask are far apart: the processor does not foresee them.
inline void ask_for_next(const ggml_fp16_t * mask) {
#if defined(__GNUC__)
    for (int cell = TILE_CELLS; cell < 2 * TILE_CELLS; cell += CACHE_LINE_SIZE / sizeof(ggml_fp16_t)) {
        __builtin_prefetch(mask + cell);
    }
#endif
}

// Reads what the rows see of n cells. `t.mask` has it for the rows from `begin` to `end`, unless all see all.
seeing read_mask(const attention_op & op, int64_t first_cell, int n, tile & t) {
    if (op.mask == nullptr) {
        return {0, t.n, true};
    }
    const bool asks  = first_cell + TILE_CELLS < op.n_cells;
    seeing     found = {t.n, 0, true};
    bool       whole[TILE_ROWS];
    for (int i = 0; i < t.n; i++) {
        const ggml_fp16_t * halves = t.seen[i] + first_cell;
        float *             mask   = t.mask + i * TILE_CELLS;
        bool                sees   = true;
        if (asks) {
            ask_for_next(halves);
        }
        whole[i] = are_zero(halves, n);
        if (!whole[i]) {
            ggml_cpu_fp16_to_fp32(halves, mask, n);
            if (t.slope[i] != 1.0f) {
                ggml_vec_scale_f32(n, mask, t.slope[i]);
            }
            std::fill(mask + n, mask + TILE_CELLS, -INFINITY);
            sees = largest<lanes>(mask, n) != -INFINITY;
        }
        if (sees) {
            const bool gap = found.begin < i && found.end < i;
            found.all      = found.all && whole[i] && !gap;
            found.begin = std::min(found.begin, i);
            found.end   = i + 1;
        }
    }
    for (int i = found.begin; i < found.end && !found.all; i++) {
        if (whole[i]) {
            std::memset(t.mask + i * TILE_CELLS, 0, TILE_CELLS * sizeof(float));
        }
    }
    return found;
}

// Whether a mask hides a cell, or a score gives it no weight.
bool is_hidden(float value) { return value == -INFINITY; }

// Returns the number of cells up to the last that a row sees.
int seen_cells(int n, const seeing & rows, const tile & t) {
    int seen = 0;
    for (int i = rows.begin; i < rows.end; i++) {
        const float * mask = t.mask + i * TILE_CELLS;
        int           last = n;
        while (last > seen && is_hidden(mask[last - 1])) {
            last--;
        }
        seen = std::max(seen, last);
    }
    return seen;
}

// Scales scores and adds the mask, unless there is none. Returns the largest.
// A cell that a row does not see may hold a NaN, from a later token of the batch or from an earlier user of the cell: its
// score is set, because a NaN stays a NaN whatever is added.
template <class L>
float scale_and_mask(float * scores, float scale, const float * mask) {
    typename L::vec most = L::all(-INFINITY);
    for (int cell = 0; cell < TILE_CELLS; cell += L::WIDTH) {
        typename L::vec score = L::multiply(L::load(scores + cell), L::all(scale));
        if (mask) {
            const typename L::vec added = L::load(mask + cell);
            score                       = L::hidden(L::add(score, added), added);
        }
        L::store(scores + cell, score);
        most = L::larger(most, score);
    }
    return L::largest(most);
}

// Scores become exp(score - largest). Returns their sum.
template <class L>
float exponentials(float * scores, float largest) {
    typename L::vec sums = L::zero();
    for (int cell = 0; cell < TILE_CELLS; cell += L::WIDTH) {
        const typename L::vec weight = exponential<L>(L::add(L::load(scores + cell), L::all(-largest)));
        L::store(scores + cell, weight);
        sums = L::add(sums, weight);
    }
    return L::total(sums);
}

// Scores become weights, relative to the largest score so far. Rows follow each other in each of two loops, so that the
// processor goes on with the next while the largest of one is found.
void weigh(const attention_op & op, float scale, const seeing & rows, tile & t) {
    bool none[TILE_ROWS];
    for (int i = rows.begin; i < rows.end; i++) {
        float *     scores = t.scores + i * TILE_CELLS;
        const float most   = scale_and_mask<lanes>(scores, scale, rows.all ? nullptr : t.mask + i * TILE_CELLS);
        // The largest of scores does not count those that are no number, which may be all that the row sees.
        none[i] = most == -INFINITY && std::all_of(scores, scores + TILE_CELLS, is_hidden);
        if (none[i]) {
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
    }
    for (int i = rows.begin; i < rows.end; i++) {
        float * scores = t.scores + i * TILE_CELLS;
        if (none[i]) {
            std::memset(scores, 0, TILE_CELLS * sizeof(float));
        } else {
            t.total[i] += exponentials<lanes>(scores, t.largest[i]);
        }
    }
}

// Reads n cells from end to end, all heads of them: from then on they are near. Heads that take their parts of the cells in
// turn leave out what is between, and memory answers that at a third of the speed.
void bring_near(const ggml_tensor * cache, const char * first, int n) {
    for (size_t at = 0; at < n * cache->nb[1]; at += CACHE_LINE_SIZE) {
        (void) *(const volatile char *) (first + at);
    }
}

// Whether the last row sees a cell. Only then its sequence is sure to have the cell's block.
bool may_see(const attention_op & op, const tile & t, int64_t cell) {
    constexpr ggml_fp16_t MINUS_INFINITY = 0xfc00;

    return op.mask == nullptr || t.seen[t.n - 1][cell] != MINUS_INFINITY;
}

bool in_order(const ggml_tensor * cache) { return cache->nb[1] == cache->ne[2] * cache->nb[2]; }

void add_cells(const attention_op & op, int64_t first_cell, tile & t) {
    const int    n    = std::min<int64_t>(TILE_CELLS, op.n_cells - first_cell);
    const seeing rows = read_mask(op, first_cell, n, t);
    if (rows.begin >= rows.end) {
        return;
    }
    const int     n_rows = rows.end - rows.begin;
    float * const scores = t.scores + rows.begin * TILE_CELLS;
    const int64_t place  = op.place(t.table, first_cell);
    const int64_t next   = first_cell + TILE_CELLS;
    const bool    is_new = first_cell % SPLIT_CELLS == 0;
    const bool    asks   = next % SPLIT_CELLS != 0 && next < op.n_cells && may_see(op, t, next);
    const bool    whole  = t.all_heads && in_order(op.k) && in_order(op.v);
    if (whole && is_new) {
        bring_near(op.k, t.groups[0].keys + place * op.k->nb[1], n);
        bring_near(op.v, t.groups[0].values + place * op.v->nb[1], n);
    }
    // Groups of a whole row share what is next, which is asked for in the order of memory. Else each asks for its heads.
    const auto cells = [&](const ggml_tensor * cache, const char * group::*first, int i, int count) {
        const char * mine  = t.groups[i].*first;
        const char * after = whole ? t.groups[0].*first + i * TILE_CELLS * cache->nb[2] : mine;
        return tile_cells{
            mine + place * cache->nb[1], cache->nb[1], cache->type == GGML_TYPE_F16, count,
            asks ? after + op.place(t.table, next) * cache->nb[1] : nullptr, cache->nb[whole ? 2 : 1]};
    };
    // Calls f with the number of each group, and with those of its rows that see any of the cells.
    const auto of_groups = [&](auto && f) {
        for (int i = 0; i < t.n_groups; i++) {
            const int begin = std::max(t.groups[i].begin, rows.begin);
            const int end   = std::min(t.groups[i].end, rows.end);
            if (begin < end) {
                f(i, begin, end - begin);
            }
        }
    };
    of_groups([&](int i, int begin, int count) {
        tile_scores(
            t.scores + begin * TILE_CELLS, t.queries + begin * op.key_size, count, op.key_size,
            cells(op.k, &group::keys, i, n), t.key_buffer);
    });
    float scale = op.scale;
    if (op.softcap != 0.0f) {
        ggml_vec_scale_f32(n_rows * TILE_CELLS, scores, op.scale);
        ggml_vec_tanh_f32(n_rows * TILE_CELLS, scores, scores);
        scale = op.softcap;
    }
    for (int i = 0; i < n_rows && n < TILE_CELLS; i++) {
        std::fill(scores + i * TILE_CELLS + n, scores + (i + 1) * TILE_CELLS, -INFINITY);
    }
    weigh(op, scale, rows, t);
    const int last = rows.all ? n : seen_cells(n, rows, t);
    of_groups([&](int i, int begin, int count) {
        tile_values(
            t.sums + begin * op.value_size, t.scores + begin * TILE_CELLS, count, op.value_size,
            cells(op.v, &group::values, i, last), rows.all ? nullptr : t.mask + begin * TILE_CELLS, t.value_buffer);
    });
}

void add_split(const attention_op & op, int64_t split, tile & t) {
    std::fill_n(t.total, t.n, 0.0f);
    std::fill_n(t.largest, t.n, -INFINITY);
    std::memset(t.sums, 0, t.n * op.value_size * sizeof(float));
    const int64_t end = std::min(op.n_cells, (split + 1) * SPLIT_CELLS);
    for (int64_t cell = split * SPLIT_CELLS; cell < end; cell += TILE_CELLS) {
        add_cells(op, cell, t);
    }
}

void write_part(const attention_op & op, const tile & t, int i, float * part) {
    std::memcpy(part, t.sums + i * op.value_size, op.value_size * sizeof(float));
    part[op.value_size]     = t.total[i];
    part[op.value_size + 1] = t.largest[i];
}

void finish(const attention_op & op, const tile & t, int i, float * part) {
    if (op.sinks) {
        add_sink(op, t.head[i], part);
    }
    const float total = part[op.value_size];
    ggml_vec_scale_f32(op.value_size, part, total == 0.0f ? 0.0f : 1.0f / total);
    op.write(t.row[i], t.head[i], t.batch, part);
}

}  // namespace

int64_t scratch_of_tiles(const attention_op & op) {
    return TILE_ROWS * (op.key_size + 2 * TILE_CELLS + op.value_size + part_floats(op)) +
           TILE_CELLS * (op.value_size + op.key_size) + CACHE_LINE_SIZE_F32;
}

void attention_by_tiles(const attention_op & op, int64_t begin, int64_t end, float * scratch) {
    tile          t(op, scratch);
    const int64_t size = part_floats(op);
    float * const next = t.value_buffer;
    for (; begin < end; begin += t.n) {
        take_rows(op, begin, end, t);
        for (int64_t split = 0; split < op.n_splits(); split++) {
            add_split(op, split, t);
            for (int i = 0; i < t.n; i++) {
                write_part(op, t, i, split == 0 ? t.merged + i * size : next);
                if (split > 0) {
                    merge(t.merged + i * size, next, op.value_size);
                }
            }
        }
        for (int i = 0; i < t.n; i++) {
            finish(op, t, i, t.merged + i * size);
        }
    }
}

void attention_of_split(
    const attention_op & op, int64_t begin, int64_t end, int64_t split, float * parts, float * scratch) {
    tile t(op, scratch);
    for (; begin < end; begin += t.n) {
        take_rows(op, begin, end, t);
        add_split(op, split, t);
        for (int i = 0; i < t.n; i++) {
            write_part(op, t, i, parts + ((begin + i) * op.n_splits() + split) * part_floats(op));
        }
    }
}

void merge_splits(const attention_op & op, int64_t begin, int64_t end, float * parts, float * scratch) {
    tile t(op, scratch);
    for (; begin < end; begin += t.n) {
        take_rows(op, begin, end, t);
        for (int i = 0; i < t.n; i++) {
            float * part = parts + (begin + i) * op.n_splits() * part_floats(op);
            for (int64_t split = 1; split < op.n_splits(); split++) {
                merge(part, part + split * part_floats(op), op.value_size);
            }
            finish(op, t, i, part);
        }
    }
}

}  // namespace afterword
