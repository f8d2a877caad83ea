// Packed weights and their columns, for tests of products.
#pragma once

#include "tests.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace tests {

constexpr int64_t BLOCK = 32;  // values of a column with one scale

struct format {
    ggml_type type;
    int64_t   width;  // values of a block of the file

    const char * name() const { return ggml_type_name(type); }
    bool         is_floats() const { return width == 1; }
};

inline constexpr format FORMATS[] = {
    { GGML_TYPE_F32, 1 },   { GGML_TYPE_F16, 1 },    { GGML_TYPE_BF16, 1 },   { GGML_TYPE_Q4_0, 32 },
    { GGML_TYPE_Q4_1, 32 }, { GGML_TYPE_Q5_0, 32 },  { GGML_TYPE_Q5_1, 32 },  { GGML_TYPE_Q8_0, 32 },
    { GGML_TYPE_Q4_K, 256 }, { GGML_TYPE_Q5_K, 256 }, { GGML_TYPE_Q6_K, 256 },
    { GGML_TYPE_Q2_K, 256 }, { GGML_TYPE_Q3_K, 256 }, { GGML_TYPE_IQ4_NL, 32 }, { GGML_TYPE_IQ4_XS, 256 },
    { GGML_TYPE_MXFP4, 32 },
};

// Any bits that a file may have, except in halves.
std::vector<uint8_t> some_rows(const format & of, int64_t values, int64_t rows, random_numbers & random);

// Columns of very different sizes, with blocks of zeros among them.
std::vector<float> some_columns(int64_t values, int64_t n, random_numbers & random);

}  // namespace tests
