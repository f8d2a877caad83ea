// Products with packed weights, which threads compute together: columns are prepared, and then multiplied.
#pragma once

#include "packed_kernels.h"

#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace afterword {

constexpr size_t  CACHE_LINE = 64;
constexpr int64_t FEW = 4;  // columns

constexpr size_t whole_lines(size_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

// Few columns are prepared by each thread for itself, more by all threads before they multiply.
inline bool few_columns(const ggml_tensor * op) { return ggml_nrows(op->src[1]) <= FEW; }

// A portion is a thread's share of the panels that are left. So there are few, as the first panels of each come slowly:
// nobody asked for them. The last ones are short, so that threads end together. Few columns may read several panels
// side by side.
inline int64_t panels_of_portion(int64_t left, int64_t columns, int64_t threads) {
    const int64_t together = columns <= FEW ? 4 : 1;
    return std::max<int64_t>(1, left / threads / together) * together;
}

// MUL_MAT: planes of weights, and planes of columns for each of them.
class matrix_product {
public:
    matrix_product(const packed_kernel & kernel, ggml_tensor * op) : kernel(kernel), op(op) {}

    // Bytes for columns that are prepared in so many parts.
    size_t work_bytes(int64_t parts) const;

    // Prepares part `ith` of `nth` of the columns. Like all that graphs call, it allocates nothing: an exception of a
    // thread of the pool would end the process.
    void prepare(char * work, int64_t ith, int64_t nth) const;

    // Takes portions of panels until there are no more: a thread that is late takes fewer.
    void multiply(const ggml_compute_params & params, const char * work) const;

private:
    const packed_kernel & kernel;
    ggml_tensor *         op;
};

// MUL_MAT_ID: each token has some experts, and each expert is a plane of weights. The columns of an expert are gathered,
// so that it is read once for all of them. A column's bits do not depend on them.
class expert_product {
public:
    expert_product(const packed_kernel & kernel, ggml_tensor * op) : kernel(kernel), op(op) {}

    size_t work_bytes(int64_t parts) const;
    void   prepare(char * work, int64_t ith, int64_t nth) const;
    void   multiply(const ggml_compute_params & params, const char * work) const;

private:
    struct use {  // of an expert: where its product goes
        int32_t number;  // of the token's experts
        int32_t token;
    };

    // Where the parts of the work memory begin.
    template <class Byte> struct parts {
        Byte * columns;  // by experts
        Byte * uses;     // a `use` for each column
        Byte * begins;   // the first column of each expert, and how many columns there are
        Byte * next;     // for each part, as many numbers: where the next column of each expert goes
    };

    template <class Byte> parts<Byte> parts_of(Byte * work) const;

    size_t bytes_of_columns() const { return whole_lines(n_uses() * kernel.column_bytes(op->src[1]->ne[0])); }
    size_t bytes_of_uses() const { return whole_lines(n_uses() * sizeof(use)); }
    size_t bytes_of_begins() const { return whole_lines((n_experts() + 1) * sizeof(int32_t)); }

    int64_t n_experts() const { return op->src[0]->ne[2]; }
    int64_t n_uses() const { return ggml_nelements(op->src[2]); }
    int32_t expert_of(int64_t number, int64_t token) const;

    void multiply_panels(
        int64_t expert, int64_t first, int64_t panels, const char * columns, const use * uses, int64_t count) const;

    const packed_kernel & kernel;
    ggml_tensor *         op;
};

}  // namespace afterword
