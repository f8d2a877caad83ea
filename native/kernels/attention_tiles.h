// The two products of attention, for a tile of rows and a tile of cells. See attention_tiles.cpp.
#pragma once

#include "common.h"

#include <cstdint>

namespace afterword {

constexpr int TILE_ROWS  = 3 * ggml_fa_tile_config::Q;
constexpr int TILE_CELLS = ggml_fa_tile_config::KV;

// Keys or values of cells next to each other, as halves or as floats.
struct tile_cells {
    const char * data;
    size_t       stride;  // bytes from cell to cell
    bool         halves;
    int          n;       // up to TILE_CELLS
    const char * next;    // what is read after these, or nullptr: memory is asked for a part of it with each cell
    size_t       next_stride;
};

// scores[n_rows x TILE_CELLS] = queries[n_rows x size] * keys[n x size]^T. What is written behind n cells has no
// meaning. buffer: size * TILE_CELLS floats.
void tile_scores(
    float * scores, const float * queries, int n_rows, int64_t size, const tile_cells & keys, float * buffer);

// sums[n_rows x size] += weights[n_rows x TILE_CELLS] * values[n x size]. The weights behind n cells are 0.
// mask: -INFINITY for a cell that a row does not see, [n_rows x TILE_CELLS], or nullptr where each row sees each cell.
// A value that is infinite or not a number reaches only the rows that see its cell.
// buffer: TILE_CELLS * size floats.
void tile_values(
    float * sums, const float * weights, int n_rows, int64_t size, const tile_cells & values, const float * mask,
    float * buffer);

}  // namespace afterword
