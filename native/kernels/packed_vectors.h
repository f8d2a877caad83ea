// What the kernels for AVX2, AVX-512 and AMX share. V is one of these: the types of its registers, the operations, and
// V::multiply_quants, the product of a panel of quants.
//
// All names are local to a file, as in packed_formats.h.
#pragma once

#include "packed_groups.h"

namespace afterword {
namespace {

template <class V> constexpr int PARTS = ROWS / V::LANES;  // of a panel

// Four values of a column, for every row.
template <class V> inline typename V::ints four(const int8_t * values) {
    int32_t bytes;
    std::memcpy(&bytes, values, sizeof(bytes));
    return V::set1(bytes);
}

// The factors of a part's products, and of a column's sums.
template <class V, class F> struct factors {
    typename V::floats scales[F::SCALES];
    typename V::floats mins[F::SCALES];

    factors(const panel_parts<F, const uint8_t> & parts, int64_t b, int part) {
        const auto *    half   = (const typename F::half *) parts.halves_of(b) + part * V::LANES;
        const uint8_t * factor = parts.factors_of(b) + part * V::LANES;
        for (int s = 0; s < F::SCALES; s++) {
            scales[s] = V::load_floats(half);
            if constexpr (F::MIN) {
                mins[s] = V::load_floats(half + ROWS);
            }
            if constexpr (F::NIBBLES) {
                scales[s] = V::mul(scales[s], V::nibbles(factor + s * ROWS, 0));
                mins[s]   = V::mul(mins[s], V::nibbles(factor + s * ROWS, 4));
            } else if constexpr (F::BLOCKS > 1) {
                scales[s] = V::mul(scales[s], V::bytes(factor + s * ROWS));
                if constexpr (F::MIN) {
                    mins[s] = V::mul(mins[s], V::bytes(factor + (F::SCALES + s) * ROWS));
                }
            }
        }
    }
};

// Not a part of its caller, which would take registers from its loop. All parts of a panel take turns: four columns alone
// are too few sums for a processor that begins two a cycle and ends them four cycles later.
template <class V, class F, int N>
__attribute__((noinline)) void multiply_floats(
    const uint8_t * panel, int64_t values, const float * columns, float * out, size_t out_stride) {
    const typename F::block * weights = (const typename F::block *) panel;
    typename V::floats        sums[PARTS<V>][N];
    for (int i = 0; i < PARTS<V> * N; i++) {
        sums[i / N][i % N] = V::set1(0.0f);
    }
    for (int64_t i = 0; i < values; i++, weights += ROWS) {
        typename V::floats of_rows[PARTS<V>];
        for (int part = 0; part < PARTS<V>; part++) {
            of_rows[part] = V::load_floats(weights + part * V::LANES);
        }
#pragma GCC unroll 16
        for (int c = 0; c < N; c++) {
            const typename V::floats value = V::set1(columns[c * values + i]);
            for (int part = 0; part < PARTS<V>; part++) {
                sums[part][c] = V::fma(of_rows[part], value, sums[part][c]);
            }
        }
    }
    for (int i = 0; i < PARTS<V> * N; i++) {
        V::store(out + i % N * out_stride + i / N * V::LANES, sums[i / N][i % N]);
    }
}

// Asks for memory. It is for the second cache, as the first is small.
inline void ask_for(const uint8_t * memory, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) {
        __builtin_prefetch(memory + at, 0, 2);
    }
}

// Asks for what lies behind some panels, in the order of memory: a part with each of their blocks.
inline void ask_ahead(const uint8_t * panels, size_t bytes, int64_t b, int64_t blocks) {
    constexpr size_t LINE = 64;

    const size_t part = (bytes / blocks + LINE - 1) / LINE * LINE;
    ask_for(panels + bytes + b * part, part);
}

// A product of more columns has no register left to ask with.
constexpr int MOST_ASKING = 8;

// Any number of columns of P panels: as many columns as possible at once. With `asks`, one of these products asks for the
// next panels.
template <class V, class F, int N, int P>
void multiply_all(
    const uint8_t * panels, int64_t blocks, const column<F> * columns, int64_t n, float * out, size_t out_stride,
    bool asks) {
    for (; n >= N; n -= N, columns += N * blocks, out += N * out_stride, asks = asks && N > MOST_ASKING) {
        if constexpr (F::WIDTH > 1) {
            V::template multiply_quants<F, N, P>(panels, blocks, columns, out, out_stride, asks);
        } else {
            multiply_floats<V, F, N>(panels, blocks, columns, out, out_stride);
        }
    }
    if constexpr (N > 1) {
        multiply_all<V, F, N == 12 ? 8 : N == 8 ? 4 : N - 1, P>(panels, blocks, columns, n, out, out_stride, asks);
    }
}

// So few columns leave registers for several panels of quants. With AVX-512 these are read side by side.
constexpr int FEW_COLUMNS = 2;

// With more columns a panel is computed for so long that its memory does not matter.
constexpr int MOST_WAITING = 96;

// Whether many columns share what unpacking costs.
template <class V, class F> constexpr bool opens() {
    if constexpr (F::WIDTH > 1) {
        return V::template OPENS<F>;
    }
    return false;
}

template <class V, class F>
void multiply_some(
    const uint8_t * panels, int64_t n_panels, int64_t blocks, const column<F> * columns, int64_t n, float * out,
    size_t out_stride) {
    constexpr int TOGETHER = F::WIDTH > 1 ? V::PANELS : 1;
    const size_t  bytes    = panel_bytes<F>(blocks * F::WIDTH);
    int64_t       at       = 0;
    // What is behind the last panel is another thread's.
    const auto    asks     = [&](int64_t end) { return n <= MOST_WAITING && end < n_panels; };
    if constexpr (opens<V, F>()) {
        if (n >= V::MANY) {
            V::template multiply_many<F>(panels, n_panels, blocks, columns, n, out, out_stride, n <= MOST_WAITING);
            return;
        }
    }
    if constexpr (TOGETHER > 1) {
        for (; n <= FEW_COLUMNS && at + TOGETHER <= n_panels; at += TOGETHER) {
            multiply_all<V, F, FEW_COLUMNS, TOGETHER>(
                panels + at * bytes, blocks, columns, n, out + at * ROWS, out_stride, asks(at + TOGETHER));
        }
    }
    for (; at < n_panels; at++) {
        multiply_all<V, F, V::COLUMNS, 1>(
            panels + at * bytes, blocks, columns, n, out + at * ROWS, out_stride, asks(at + 1));
    }
}

// Each panel reads all columns. So there are as many at once as the second cache holds beside the panels, but enough to
// share what a panel costs.
template <class V, class F>
void multiply(
    const uint8_t * panels, int64_t n_panels, int64_t values, const void * prepared, int64_t n, float * out,
    size_t out_stride) {
    constexpr int64_t CACHE = 512 * 1024, LEAST = 144, STEP = 48;  // as many as all kernels take at once

    const auto *  columns = (const column<F> *) prepared;
    const int64_t blocks  = values / F::WIDTH;
    const int64_t fitting = CACHE / (int64_t) column_bytes<F>(values) / STEP * STEP;
    const int64_t most    = fitting < LEAST ? LEAST : fitting;
    while (n > 0) {
        const int64_t some = n < most + LEAST ? n : most;
        multiply_some<V, F>(panels, n_panels, blocks, columns, some, out, out_stride);
        columns += some * blocks;
        out     += some * out_stride;
        n       -= some;
    }
}

// Without a sign: sums of a column that is infinite somewhere wrap.
inline uint32_t sum_of(__m256i v) {
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sums         = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    return (uint32_t) _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
}

// Eight bits a value, a scale for each block.
template <class F> void quantize(const float * values, column_block * out, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++, values += VALUES, out++) {
        // The bits of floats without a sign are in their order, and NaN is above infinity. A maximum of floats loses NaN.
        __m256  v[4];
        __m256i most = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(values + 8 * i);
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff)));
        }
        __m128i half = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        half         = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        half         = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
        const float largest = _mm_cvtss_f32(_mm_castsi128_ps(half));
        const float inverse = largest > 1e-35f ? 127.0f / largest : 0.0f;  // finite
        __m256i q[4];
        for (int i = 0; i < 4; i++) {
            q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
        }
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_storeu_si256((__m256i *) out->quants, _mm256_permutevar8x32_epi32(bytes, order));
        constexpr uint32_t NEGATIVE = -F::OFFSET;
        const uint32_t     first    = sum_of(_mm256_add_epi32(q[0], q[1]));
        const uint32_t     second   = sum_of(_mm256_add_epi32(q[2], q[3]));
        const uint32_t     sums[]   = { F::SCALES == 1 ? first + second : first, second };
        // The quants of a column that is infinite somewhere mean nothing: its products are no numbers.
        out->scale                  = largest / 127.0f + largest * 0.0f;
        for (int s = 0; s < F::SCALES; s++) {
            if constexpr (F::MIN) {
                out->sums[s] = out->scale * (float) (int32_t) sums[s];
            } else {
                out->start[s] = (int32_t) (NEGATIVE * sums[s]);
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

template <class V, class F> constexpr packed_kernel kernel_of() {
    return { F::TYPE, panel_bytes<F>, column_bytes<F>, pack_panel<F, groups>, prepare<F>, multiply<V, F> };
}

template <class V> constexpr packed_kernel KERNELS[] = {
    kernel_of<V, f32>(),  kernel_of<V, f16>(),  kernel_of<V, bf16>(), kernel_of<V, q4_0>(),
    kernel_of<V, q4_1>(), kernel_of<V, q5_0>(), kernel_of<V, q5_1>(), kernel_of<V, q8_0<V::EIGHT_BIT_OFFSET>>(),
    kernel_of<V, q2_k>(), kernel_of<V, q3_k>(), kernel_of<V, q4_k>(), kernel_of<V, q5_k>(), kernel_of<V, q6_k>(),
    kernel_of<V, iq4_nl<4, V::EIGHT_BIT_OFFSET>>(), kernel_of<V, iq4_xs<4, V::EIGHT_BIT_OFFSET>>(),
    kernel_of<V, mxfp4<4>>(),
};

}  // namespace
}  // namespace afterword
