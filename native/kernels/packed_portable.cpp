// Products of packed weights in plain C++, for any processor. CMake forbids the compiler to join products and sums, so
// the bits are the same on every processor and for any number of columns.

#include "packed_values.h"

#include <cmath>
#include <cstring>
#include <iterator>

namespace afterword {
namespace {

constexpr int COLUMNS = 16;  // that share a block's unpacked weights

using lanes_of_floats = float[ROWS];

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

// Compilers that unroll a short loop early make no vectors of it.
template <class Half> inline void halves_to_floats(const Half * halves, lanes_of_floats & out) {
#pragma GCC unroll 1
    for (int row = 0; row < ROWS; row++) {
        out[row] = to_float(halves[row]);
    }
}

inline void multiply_by_bytes(const uint8_t * factors, lanes_of_floats & out) {
#pragma GCC unroll 1
    for (int row = 0; row < ROWS; row++) {
        out[row] *= ((const int8_t *) factors)[row];
    }
}

template <int SHIFT> inline void multiply_by_nibbles(const uint8_t * factors, lanes_of_floats & out) {
#pragma GCC unroll 1
    for (int row = 0; row < ROWS; row++) {
        out[row] *= factors[row] >> SHIFT & 15;
    }
}

// The factors of a block's products, and of a column's sums.
template <class F> struct factors {
    lanes_of_floats scales[F::SCALES];
    lanes_of_floats mins[F::SCALES];

    factors(const panel_parts<F, const uint8_t> & parts, int64_t b) {
        const auto *    halves = (const typename F::half *) parts.halves_of(b);
        const uint8_t * bytes  = parts.factors_of(b);
        for (int s = 0; s < F::SCALES; s++) {
            halves_to_floats(halves, scales[s]);
            if constexpr (F::MIN) {
                halves_to_floats(halves + ROWS, mins[s]);
            }
            if constexpr (F::NIBBLES) {
                multiply_by_nibbles<0>(bytes + s * ROWS, scales[s]);
                multiply_by_nibbles<4>(bytes + s * ROWS, mins[s]);
            } else if constexpr (F::BLOCKS > 1) {
                multiply_by_bytes(bytes + s * ROWS, scales[s]);
                if constexpr (F::MIN) {
                    multiply_by_bytes(bytes + (F::SCALES + s) * ROWS, mins[s]);
                }
            }
        }
    }
};

// Add a block's products with one scale to the sums of 16 rows. The loop over rows is the outer one: compilers unroll
// the inner ones and make vectors of rows.
template <class F>
inline void add_products(
    const int16_t * weights, const int8_t * quants, int32_t start, const lanes_of_floats & scales, float scale,
    lanes_of_floats & sums) {
    constexpr int COUNT = VALUES / F::SCALES;
    constexpr int FOLD  = fitting<F, COUNT>();
    int16_t values[COUNT];
    for (int v = 0; v < COUNT; v++) {
        values[v] = quants[v];
    }
    for (int row = 0; row < ROWS; row++) {
        int32_t dot = start;
        for (int v = 0; v < COUNT; v += FOLD) {
            int16_t folded = 0;
            for (int i = v; i < v + FOLD; i++) {
                folded = (int16_t) (folded + weights[i * ROWS + row] * values[i]);
            }
            dot += folded;
        }
        sums[row] += (float) dot * (scales[row] * scale);
    }
}

template <class F>
void multiply_quants(
    const uint8_t * panel, int64_t blocks, const column_block * columns, int count, lanes_of_floats * sums) {
    constexpr int                       SHARE = VALUES / F::SCALES;  // values of a scale
    const panel_parts<F, const uint8_t> parts(panel, blocks);
    for (int64_t b = 0; b < blocks; b++) {
        int16_t weights[VALUES * ROWS];
        unpack<F>(parts.quants_of(b), weights);
        const factors<F> of_rows(parts, b);
        for (int c = 0; c < count; c++) {
            const column_block & column = columns[c * blocks + b];
            for (int s = 0; s < F::SCALES; s++) {
                add_products<F>(
                    weights + s * SHARE * ROWS, column.quants + s * SHARE, F::OFFSET ? column.start[s] : 0,
                    of_rows.scales[s], column.scale, sums[c]);
            }
            for (int s = 0; F::MIN && s < F::SCALES; s++) {
#pragma GCC unroll 1
                for (int row = 0; row < ROWS; row++) {
                    sums[c][row] += of_rows.mins[s][row] * column.sums[s];
                }
            }
        }
    }
}

// The same for COUNT values in floats.
template <class F, int COUNT>
inline void add_floats(
    const typename F::block * file, const float * columns, int64_t stride, int count, lanes_of_floats * sums) {
    float weights[COUNT * ROWS];
    for (int i = 0; i < COUNT * ROWS; i++) {
        weights[i] = to_float(file[i]);
    }
    for (int c = 0; c < count; c++, columns += stride) {
        for (int row = 0; row < ROWS; row++) {
            float sum = sums[c][row];
            for (int v = 0; v < COUNT; v++) {
                sum += weights[v * ROWS + row] * columns[v];
            }
            sums[c][row] = sum;
        }
    }
}

template <class F>
void multiply_floats(const uint8_t * panel, int64_t values, const float * columns, int count, lanes_of_floats * sums) {
    constexpr int SOME = 8;
    const auto *  file = (const typename F::block *) panel;
    int64_t       v    = 0;
    for (; v + SOME <= values; v += SOME) {
        add_floats<F, SOME>(file + v * ROWS, columns + v, values, count, sums);
    }
    for (; v < values; v++) {
        add_floats<F, 1>(file + v * ROWS, columns + v, values, count, sums);
    }
}

template <class F>
void multiply(
    const uint8_t * panels, int64_t n_panels, int64_t values, const void * columns, int64_t n, float * out,
    size_t out_stride) {
    const int64_t blocks = values / F::WIDTH;
    const auto *  from   = (const column<F> *) columns;
    for (; n_panels > 0; n_panels--, panels += panel_bytes<F>(values), out += ROWS) {
        for (int64_t first = 0; first < n; first += COLUMNS) {
            const int       count          = n - first < COLUMNS ? (int) (n - first) : COLUMNS;
            lanes_of_floats sums[COLUMNS] = {};
            if constexpr (F::WIDTH > 1) {
                multiply_quants<F>(panels, blocks, from + first * blocks, count, sums);
            } else {
                multiply_floats<F>(panels, values, from + first * blocks, count, sums);
            }
            for (int c = 0; c < count; c++) {
                std::memcpy(out + (first + c) * out_stride, sums[c], sizeof(sums[c]));
            }
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
        sums[0] += F::SCALES == 1 ? sums[1] : 0;
        out->scale = largest / 127.0f + none;
        for (int s = 0; s < F::SCALES; s++) {
            if constexpr (F::MIN) {
                out->sums[s] = out->scale * (float) sums[s];
            } else {
                out->start[s] = -F::OFFSET * sums[s];
            }
        }
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
    kernel_of<q5_1>(), kernel_of<q8_0<0>>(), kernel_of<q2_k>(), kernel_of<q3_k>(), kernel_of<q4_k>(), kernel_of<q5_k>(),
    kernel_of<q6_k>(), kernel_of<iq4_nl<8, 0>>(), kernel_of<iq4_xs<8, 0>>(), kernel_of<mxfp4<5>>(),
};

}  // namespace

const packed_kernels packed_portable = { "portable", runs_here, KERNELS, std::size(KERNELS) };

}  // namespace afterword
