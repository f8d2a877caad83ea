// The table of kernels for packed weights: one kernel for each format of a file, one set of them for each kind of
// processor. The set is chosen once, when the first weights are packed.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>

namespace afterword {

constexpr int ROWS = 16;  // of a panel

// How weights of one format are packed and multiplied. `values` is the length of a row in values.
struct packed_kernel {
    ggml_type type;

    size_t (*panel_bytes)(int64_t values);
    size_t (*column_bytes)(int64_t values);  // of a prepared column

    // Pack ROWS rows of a file into one panel.
    void (*pack)(const void * rows, uint8_t * panel, int64_t values);

    // Bring one column of floats into the form that `multiply` reads.
    void (*prepare)(const float * column, void * prepared, int64_t values);

    // out[c * out_stride + row] = the product of a row and column c, for the rows of `n_panels` panels that follow each
    // other, and `count` prepared columns.
    void (*multiply)(
        const uint8_t * panels, int64_t n_panels, int64_t values, const void * columns, int64_t count, float * out,
        size_t out_stride);
};

// The kernels for one kind of processor.
struct packed_kernels {
    const char * name;
    bool (*runs_here)();  // if this processor has the instructions
    const packed_kernel * kernels;
    size_t                count;
};

extern const packed_kernels packed_amx, packed_avx512, packed_avx2, packed_portable;

// Returns the kernels in use: the best that this processor runs, or those that AFTERWORD_KERNELS names.
const packed_kernels & packed_kernels_in_use();

}  // namespace afterword
