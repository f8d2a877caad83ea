// The two products of attention, for a tile of rows and a tile of cells.
//
// A score is one chain of products over the values of a key, a sum is one chain over the cells, both from the first to
// the last: how many rows are computed together changes no bit.

#include "attention_tiles.h"

#include "attention_lanes.h"
#include "ops.h"
#include "vec.h"

#include <type_traits>

namespace afterword {
namespace {

// Calls f with the number of rows as a type: a kernel keeps its sums in registers only if it is compiled for them.
template <int MOST, class F>
inline void with_rows(int n_rows, F && f) {
    if constexpr (MOST > 0) {
        if (n_rows < MOST) {
            return with_rows<MOST - 1>(n_rows, f);
        }
        f(std::integral_constant<int, MOST>());
    }
}

// ---- products of floats: c[rows x n] = a[rows x depth] * b[depth x n], which is added to c if ADDS

// For so many columns as COLUMNS vectors have.
template <class L, bool ADDS, int ROWS, int COLUMNS>
inline void multiply_block(float * c, const float * a, const float * b, int64_t depth, int64_t n) {
    typename L::vec sums[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < COLUMNS; j++) {
            sums[i][j] = ADDS ? L::load(c + i * n + j * L::WIDTH) : L::zero();
        }
    }
    for (int64_t d = 0; d < depth; d++) {
        typename L::vec row[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            row[j] = L::load(b + d * n + j * L::WIDTH);
            L::keep(row[j]);
        }
        for (int i = 0; i < ROWS; i++) {
            const typename L::vec factor = L::all(a[i * depth + d]);
            for (int j = 0; j < COLUMNS; j++) {
                sums[i][j] = L::multiply_add(row[j], factor, sums[i][j]);
            }
        }
    }
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < COLUMNS; j++) {
            L::store(c + i * n + j * L::WIDTH, sums[i][j]);
        }
    }
}

// For the last columns, fewer than a vector has.
template <class L, bool ADDS, int ROWS>
inline void multiply_rest(float * c, const float * a, const float * b, int64_t depth, int64_t n, int rest) {
    typename L::vec sums[ROWS];
    for (int i = 0; i < ROWS; i++) {
        sums[i] = ADDS ? L::load(c + i * n, rest) : L::zero();
    }
    for (int64_t d = 0; d < depth; d++) {
        const typename L::vec row = L::load(b + d * n, rest);
        for (int i = 0; i < ROWS; i++) {
            sums[i] = L::multiply_add(row, L::all(a[i * depth + d]), sums[i]);
        }
    }
    for (int i = 0; i < ROWS; i++) {
        L::store(c + i * n, sums[i], rest);
    }
}

template <class L, bool ADDS, int ROWS>
inline void multiply_rows(float * c, const float * a, const float * b, int64_t depth, int64_t n) {
    constexpr int COLUMNS = L::columns(ROWS);

    int64_t j = 0;
    for (; j + COLUMNS * L::WIDTH <= n; j += COLUMNS * L::WIDTH) {
        multiply_block<L, ADDS, ROWS, COLUMNS>(c + j, a, b + j, depth, n);
    }
    for (; j + L::WIDTH <= n; j += L::WIDTH) {
        multiply_block<L, ADDS, ROWS, 1>(c + j, a, b + j, depth, n);
    }
    if (j < n) {
        multiply_rest<L, ADDS, ROWS>(c + j, a, b + j, depth, n, n - j);
    }
}

template <class L, bool ADDS>
void multiply(float * c, const float * a, const float * b, int n_rows, int64_t depth, int64_t n) {
    int i = 0;
    for (; i + L::ROWS <= n_rows; i += L::ROWS) {
        multiply_rows<L, ADDS, L::ROWS>(c + i * n, a + i * depth, b, depth, n);
    }
    with_rows<L::ROWS - 1>(n_rows - i, [&](auto rows) {
        multiply_rows<L, ADDS, decltype(rows)::value>(c + i * n, a + i * depth, b, depth, n);
    });
}

// ---- products of a few rows: halves become floats in registers

// Few rows compute faster than memory answers. It is asked for the second cache, as the first is small.
inline void ask_for(const tile_cells & cells, int cell, int64_t size) {
#if defined(__GNUC__)
    for (int64_t at = 0; cells.next && at < size; at += CACHE_LINE_SIZE / sizeof(ggml_fp16_t)) {
        __builtin_prefetch(cells.next + cell * cells.next_stride + at * sizeof(ggml_fp16_t), 0, 2);
    }
#endif
}

template <class L, int ROWS>
void few_scores(float * scores, const float * queries, int64_t size, const tile_cells & keys) {
    for (int cell = 0; cell < TILE_CELLS; cell += L::WIDTH) {
        typename L::vec sums[ROWS];
        for (int i = 0; i < ROWS; i++) {
            sums[i] = L::zero();
        }
        for (int ahead = cell; ahead < cell + L::WIDTH; ahead++) {
            ask_for(keys, ahead, size);
        }
        for (int64_t d = 0; d < size; d += L::WIDTH) {
            typename L::vec columns[L::WIDTH];
            L::transpose(
                keys.data + cell * keys.stride + d * sizeof(ggml_fp16_t), keys.stride,
                [&](int c, typename L::vec column) { columns[c] = column; });
            for (int c = 0; c < L::WIDTH; c++) {
                for (int i = 0; i < ROWS; i++) {
                    sums[i] = L::multiply_add(columns[c], L::all(queries[i * size + d + c]), sums[i]);
                }
            }
        }
        for (int i = 0; i < ROWS; i++) {
            L::store(scores + i * TILE_CELLS + cell, sums[i]);
        }
    }
}

template <class L, int ROWS>
void few_values(float * sums_of_rows, const float * weights, int64_t size, const tile_cells & values) {
    constexpr int COLUMNS = L::few_columns(ROWS);

    for (int64_t d = 0; d < size; d += COLUMNS * L::WIDTH) {
        typename L::vec sums[ROWS][COLUMNS];
        for (int i = 0; i < ROWS * COLUMNS; i++) {
            sums[i / COLUMNS][i % COLUMNS] = L::load(sums_of_rows + i / COLUMNS * size + d + i % COLUMNS * L::WIDTH);
        }
        for (int cell = 0; cell < values.n; cell++) {
            if (d == 0) {
                ask_for(values, cell, size);
            }
            const ggml_fp16_t * halves = (const ggml_fp16_t *) (values.data + cell * values.stride) + d;
            for (int j = 0; j < COLUMNS; j++) {
                const typename L::vec value = L::load(halves + j * L::WIDTH);
                for (int i = 0; i < ROWS; i++) {
                    sums[i][j] = L::multiply_add(value, L::all(weights[i * TILE_CELLS + cell]), sums[i][j]);
                }
            }
        }
        for (int i = 0; i < ROWS * COLUMNS; i++) {
            L::store(sums_of_rows + i / COLUMNS * size + d + i % COLUMNS * L::WIDTH, sums[i / COLUMNS][i % COLUMNS]);
        }
    }
}

// ---- tiles as floats

void read_floats(float * to, const char * from, bool halves, int64_t n) {
    if (halves) {
        ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) from, to, n);
    } else {
        std::memcpy(to, from, n * sizeof(float));
    }
}

// columns[size x TILE_CELLS]: a cell is a column, 0 behind the last
template <class L>
void read_columns(float * columns, const tile_cells & keys, int64_t size) {
    int cell = 0;
    if (keys.halves && size % L::WIDTH == 0) {
        for (; cell + L::WIDTH <= keys.n; cell += L::WIDTH) {
            for (int ahead = cell; ahead < cell + L::WIDTH; ahead++) {
                ask_for(keys, ahead, size);
            }
            for (int64_t d = 0; d < size; d += L::WIDTH) {
                L::transpose(
                    keys.data + cell * keys.stride + d * sizeof(ggml_fp16_t), keys.stride,
                    [&](int c, typename L::vec column) { L::store(columns + (d + c) * TILE_CELLS + cell, column); });
            }
        }
    }
    for (; cell < keys.n; cell++) {
        constexpr int64_t PART = 64;
        float             part[PART];
        const size_t      value_bytes = keys.halves ? sizeof(ggml_fp16_t) : sizeof(float);
        for (int64_t d = 0; d < size; d += PART) {
            const int64_t n = std::min(PART, size - d);
            read_floats(part, keys.data + cell * keys.stride + d * value_bytes, keys.halves, n);
            for (int64_t i = 0; i < n; i++) {
                columns[(d + i) * TILE_CELLS + cell] = part[i];
            }
        }
    }
    if (keys.n < TILE_CELLS) {
        for (int64_t d = 0; d < size; d++) {
            std::memset(columns + d * TILE_CELLS + keys.n, 0, (TILE_CELLS - keys.n) * sizeof(float));
        }
    }
}

// Whether n values are all numbers, neither infinite nor NaN.
bool are_numbers(const float * x, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof(bits));
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return bad == 0;
}

bool are_numbers(const ggml_fp16_t * x, int64_t n) {
    uint16_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        bad |= (x[i] & 0x7c00) == 0x7c00;
    }
    return bad == 0;
}

bool are_numbers(const tile_cells & values, int64_t size) {
    for (int cell = 0; cell < values.n; cell++) {
        if (!are_numbers((const ggml_fp16_t *) (values.data + cell * values.stride), size)) {
            return false;
        }
    }
    return true;
}

}  // namespace

void tile_scores(
    float * scores, const float * queries, int n_rows, int64_t size, const tile_cells & keys, float * buffer) {
    if (n_rows <= lanes::FEW_ROWS && keys.halves && keys.n == TILE_CELLS && size % lanes::WIDTH == 0) {
        with_rows<lanes::FEW_ROWS>(n_rows, [&](auto rows) {
            few_scores<lanes, decltype(rows)::value>(scores, queries, size, keys);
        });
        return;
    }
    read_columns<lanes>(buffer, keys, size);
    multiply<lanes, false>(scores, queries, buffer, n_rows, size, TILE_CELLS);
}

void tile_values(
    float * sums, const float * weights, int n_rows, int64_t size, const tile_cells & values, const float * mask,
    float * buffer) {
    if (n_rows <= lanes::FEW_ROWS && values.halves && size % (4 * lanes::WIDTH) == 0 &&
        (mask == nullptr || are_numbers(values, size))) {
        with_rows<lanes::FEW_ROWS>(n_rows, [&](auto rows) {
            few_values<lanes, decltype(rows)::value>(sums, weights, size, values);
        });
        return;
    }
    for (int cell = 0; cell < values.n; cell++) {
        float * row = buffer + cell * size;
        ask_for(values, cell, size);
        read_floats(row, values.data + cell * values.stride, values.halves, size);
        if (mask == nullptr || are_numbers(row, size)) {
            continue;
        }
        // A weight of 0 makes no number of a NaN: only the rows that see this cell get its values.
        for (int i = 0; i < n_rows; i++) {
            if (mask[i * TILE_CELLS + cell] != -INFINITY) {
                ggml_vec_mad_f32(size, sums + i * size, row, weights[i * TILE_CELLS + cell]);
            }
        }
        std::memset(row, 0, size * sizeof(float));
    }
    std::memset(buffer + values.n * size, 0, (TILE_CELLS - values.n) * size * sizeof(float));
    multiply<lanes, true>(sums, weights, buffer, n_rows, TILE_CELLS, size);
}

}  // namespace afterword
