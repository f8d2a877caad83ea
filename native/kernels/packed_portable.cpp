// Products of packed weights in plain C++, for any processor. CMake forbids the compiler to join products and sums, so
// the bits are the same on every processor and for any number of columns.
//
// The order of a block's quants: a value of each of 16 rows, a byte for each row. Loops over rows then have no
// shuffles, and compilers make vectors of them.
//
//   four bits    vector v (16 bytes) has value v of the rows in its low halves, value v + 16 in its high halves
//   fifth bits   after them, vector v has bit i of value v + 4 i;  4 vectors
//   bits 5 and 6 after them, vector v has bits 2 i and 2 i + 1 of value v + 8 i;  8 vectors
//   eight bits   vector v has value v

#include "packed_panel.h"

#include <cmath>
#include <cstring>
#include <iterator>

namespace afterword {
namespace {

constexpr int COLUMNS = 16;  // that share a block's unpacked weights

// Where bits of a value are: `BITS` from `SHIFT` of byte `v % VECTORS * ROWS + row`.
template <int BITS> struct plane {
    static constexpr int    VECTORS = VALUES * BITS / 8;
    static constexpr size_t BYTES   = (size_t) VECTORS * ROWS;
    static constexpr int    MASK    = (1 << BITS) - 1;

    static constexpr int at(int v) { return v % VECTORS * ROWS; }
    static constexpr int shift(int v) { return v / VECTORS * BITS; }
};

template <class F> using low_plane = plane<F::BITS == 8 ? 8 : 4>;
template <class F> using high_plane = plane<F::BITS == 8 ? 1 : F::BITS - 4>;

struct by_value {
    template <class F> static void place(const row_block * rows, uint8_t * quants) {
        using low  = low_plane<F>;
        using high = high_plane<F>;
        std::memset(quants, 0, QUANT_BYTES<F>);
        for (int v = 0; v < VALUES; v++) {
            for (int row = 0; row < ROWS; row++) {
                const int quant = rows[row].quants[v];
                quants[low::at(v) + row] |= (quant & low::MASK) << low::shift(v);
                if constexpr (F::BITS == 5 || F::BITS == 6) {
                    quants[low::BYTES + high::at(v) + row] |= (quant >> 4 & high::MASK) << high::shift(v);
                }
            }
        }
    }
};

using lanes_of_ints   = int16_t[ROWS];
using lanes_of_floats = float[ROWS];

// The quants of a block: a lane for each row.
template <class F> void unpack(const uint8_t * quants, lanes_of_ints * out) {
    using low  = low_plane<F>;
    using high = high_plane<F>;
    for (int v = 0; v < VALUES; v++) {
        for (int row = 0; row < ROWS; row++) {
            if constexpr (F::BITS == 8) {
                out[v][row] = (int8_t) quants[low::at(v) + row];
            } else {
                int quant = quants[low::at(v) + row] >> low::shift(v) & low::MASK;
                if constexpr (F::BITS > 4) {
                    quant |= (quants[low::BYTES + high::at(v) + row] >> high::shift(v) & high::MASK) << 4;
                }
                out[v][row] = (int16_t) quant;
            }
        }
    }
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// A float of 16 bits, without a table or a branch: a float of 32 bits with its exponent, times 2^112 for the
// difference of the exponents' offsets.
inline float half_to_float(ggml_half half) {
    uint32_t    bits;
    const float scaled = float_of((uint32_t) (half & 0x7fff) << 13) * 0x1p112f;
    std::memcpy(&bits, &scaled, sizeof(bits));
    const uint32_t no_number = (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinite, or none
    return float_of(bits | no_number | (uint32_t) (half & 0x8000) << 16);
}

inline float to_float(float value) { return value; }
inline float to_float(ggml_fp16_t value) { return half_to_float(value); }
inline float to_float(ggml_bf16_t value) { return float_of((uint32_t) value.bits << 16); }

// The factors of a block's products, and of a column's sum.
template <class F> struct factors {
    lanes_of_floats scales[F::SCALES];
    lanes_of_floats min;

    factors(const panel_parts<F, const uint8_t> & parts, int64_t b) {
        const auto * half   = (const ggml_half *) parts.halves_of(b);
        const auto * factor = (const int8_t *) parts.factors_of(b);
        for (int row = 0; row < ROWS; row++) {
            const float scale = half_to_float(half[row]);
            scales[0][row]    = F::BLOCKS > 1 ? scale * factor[row] : scale;
            if constexpr (F::SCALES == 2) {
                scales[1][row] = scale * factor[ROWS + row];
            }
            if constexpr (F::MIN) {
                min[row] = half_to_float(half[ROWS + row]) * (F::BLOCKS > 1 ? factor[ROWS + row] : 1);
            }
        }
    }
};

// Add the products of COUNT values to the sums of 16 rows.
template <class F, int COUNT>
inline void add_products(const lanes_of_ints * weights, const int8_t * column, int32_t * dots) {
    // So many products fit 16 bits: 15 * 127 each at most, 31 * 127, 63 * 127 or 128 * 127.
    constexpr int FOLD = F::BITS == 4 ? 16 : F::BITS == 5 ? 8 : F::BITS == 6 ? 4 : 2;
    for (int v = 0; v < COUNT; v += FOLD) {
        lanes_of_ints folded = {};
        for (int i = v; i < v + FOLD; i++) {
            for (int row = 0; row < ROWS; row++) {
                folded[row] = (int16_t) (folded[row] + weights[i][row] * column[i]);
            }
        }
        for (int row = 0; row < ROWS; row++) {
            dots[row] += folded[row];
        }
    }
}

template <class F>
void multiply_quants(
    const uint8_t * panel, int64_t blocks, const column_block * columns, int count, lanes_of_floats * sums) {
    constexpr int                       SHARE = VALUES / F::SCALES;  // values of a scale
    const panel_parts<F, const uint8_t> parts(panel, blocks);
    for (int64_t b = 0; b < blocks; b++) {
        lanes_of_ints weights[VALUES];
        unpack<F>(parts.quants_of(b), weights);
        const factors<F> of_rows(parts, b);
        for (int c = 0; c < count; c++) {
            const column_block & column = columns[c * blocks + b];
            for (int s = 0; s < F::SCALES; s++) {
                int32_t dots[ROWS];
                for (int row = 0; row < ROWS; row++) {
                    dots[row] = F::OFFSET ? column.start[s] : 0;
                }
                add_products<F, SHARE>(weights + s * SHARE, column.quants + s * SHARE, dots);
                for (int row = 0; row < ROWS; row++) {
                    sums[c][row] += (float) dots[row] * (of_rows.scales[s][row] * column.scale);
                }
            }
            if constexpr (F::MIN) {
                for (int row = 0; row < ROWS; row++) {
                    sums[c][row] += of_rows.min[row] * column.sum;
                }
            }
        }
    }
}

template <class F>
void multiply_floats(const uint8_t * panel, int64_t values, const float * columns, int count, lanes_of_floats * sums) {
    const auto * file = (const typename F::block *) panel;
    for (int64_t first = 0; first < values; first += VALUES) {
        const int       some = values - first < VALUES ? (int) (values - first) : VALUES;
        lanes_of_floats weights[VALUES];
        for (int v = 0; v < some; v++) {
            for (int row = 0; row < ROWS; row++) {
                weights[v][row] = to_float(file[(first + v) * ROWS + row]);
            }
        }
        for (int c = 0; c < count; c++) {
            lanes_of_floats sum;
            std::memcpy(sum, sums[c], sizeof(sum));
            for (int v = 0; v < some; v++) {
                const float value = columns[c * values + first + v];
                for (int row = 0; row < ROWS; row++) {
                    sum[row] += weights[v][row] * value;
                }
            }
            std::memcpy(sums[c], sum, sizeof(sum));
        }
    }
}

template <class F>
void multiply(const uint8_t * panel, int64_t values, const void * columns, int64_t n, float * out, size_t out_stride) {
    const int64_t blocks = values / F::WIDTH;
    const auto *  from   = (const column<F> *) columns;
    for (int64_t first = 0; first < n; first += COLUMNS) {
        const int       count          = n - first < COLUMNS ? (int) (n - first) : COLUMNS;
        lanes_of_floats sums[COLUMNS] = {};
        if constexpr (F::WIDTH > 1) {
            multiply_quants<F>(panel, blocks, from + first * blocks, count, sums);
        } else {
            multiply_floats<F>(panel, values, from + first * blocks, count, sums);
        }
        for (int c = 0; c < count; c++) {
            std::memcpy(out + (first + c) * out_stride, sums[c], sizeof(sums[c]));
        }
    }
}

// Eight bits a value, a scale for each block.
template <class F> void quantize(const float * values, column_block * out, int64_t blocks) {
    constexpr float TO_EVEN = 0x1.8p23f;  // a sum with it is rounded to a whole number
    for (int64_t b = 0; b < blocks; b++, values += VALUES, out++) {
        float largest = 0.0f, none = 0.0f;
        for (int v = 0; v < VALUES; v++) {
            largest = std::fabs(values[v]) > largest ? std::fabs(values[v]) : largest;
            none += values[v] * 0.0f;  // no number if a value is none or infinite
        }
        const float inverse = largest > 1e-35f ? 127.0f / largest : 0.0f;  // finite
        int         sums[2] = {};
        for (int v = 0; v < VALUES; v++) {
            const float scaled = none == 0.0f ? values[v] * inverse : 0.0f;
            out->quants[v]     = (int8_t) (scaled + TO_EVEN - TO_EVEN);
            sums[v / (VALUES / 2)] += out->quants[v];
        }
        out->scale    = largest / 127.0f + none;
        out->sum      = out->scale * (float) (sums[0] + sums[1]);
        out->start[0] = -F::OFFSET * (F::SCALES == 1 ? sums[0] + sums[1] : sums[0]);
        out->start[1] = -F::OFFSET * sums[1];
    }
}

template <class F> void prepare(const float * values, void * out, int64_t n) {
    if constexpr (F::WIDTH > 1) {
        quantize<F>(values, (column_block *) out, n / F::WIDTH);
    } else {
        std::memcpy(out, values, n * sizeof(float));
    }
}

bool runs_here() { return true; }

template <class F> constexpr packed_kernel kernel_of() {
    return { F::TYPE, panel_bytes<F>, column_bytes<F>, pack_panel<F, by_value>, prepare<F>, multiply<F> };
}

constexpr packed_kernel KERNELS[] = {
    kernel_of<f32>(),  kernel_of<f16>(),  kernel_of<bf16>(),    kernel_of<q4_0>(), kernel_of<q4_1>(), kernel_of<q5_0>(),
    kernel_of<q5_1>(), kernel_of<q8_0<0>>(), kernel_of<q4_k>(), kernel_of<q5_k>(), kernel_of<q6_k>(),
};

}  // namespace

const packed_kernels packed_portable = { "portable", runs_here, KERNELS, std::size(KERNELS) };

}  // namespace afterword
