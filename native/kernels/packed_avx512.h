// Products of packed weights with AVX-512 and its VNNI, 16 lanes at once.
//
// All names are local to a file, as in packed_formats.h.
#pragma once

#include "packed_vectors.h"

namespace afterword {
namespace {

struct avx512 {
    static constexpr int LANES            = 16;
    static constexpr int COLUMNS          = 12;   // that share a panel's unpacked weights
    static constexpr int PANELS           = 4;    // that are read side by side for few columns
    static constexpr int EIGHT_BIT_OFFSET = 128;  // its product wants unsigned weights
    // As many columns as share unpacked weights in registers are enough.
    template <class F> static constexpr bool OPENS = false;

    using ints   = __m512i;
    using floats = __m512;

    static ints load(const void * p) { return _mm512_loadu_si512(p); }
    static ints low_nibbles(ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static ints high_nibbles(ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
    // Bit `from`, moved to bit `to`.
    static ints bit(ints v, int from, int to) {
        const ints moved = from < to ? _mm512_slli_epi16(v, to - from) : _mm512_srli_epi16(v, from - to);
        return _mm512_and_si512(moved, _mm512_set1_epi8((char) (1 << to)));
    }
    // Two bits at twice `shift`.
    static ints two_bits(ints v, int shift) {
        return _mm512_and_si512(_mm512_srli_epi16(v, 2 * shift), _mm512_set1_epi8(3));
    }
    // The same, moved to the fifth and sixth bit.
    static ints high_bits(ints v, int shift) {
        const ints moved = shift < 2 ? _mm512_slli_epi16(v, 4 - 2 * shift) : _mm512_srli_epi16(v, 2 * shift - 4);
        return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
    }
    // What 16 values and an offset say for bytes of four bits.
    static ints look_up(const int8_t * table, int offset, ints v) {
        const __m128i sums = _mm_add_epi8(_mm_loadu_si128((const __m128i *) table), _mm_set1_epi8((char) offset));
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(sums), v);
    }
    static ints   either(ints a, ints b) { return _mm512_or_si512(a, b); }
    static ints   set1(int32_t v) { return _mm512_set1_epi32(v); }
    static floats set1(float v) { return _mm512_set1_ps(v); }
    static floats halves(const void * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
    static floats to_float(ints v) { return _mm512_cvtepi32_ps(v); }
    static floats load_floats(const float * p) { return _mm512_loadu_ps(p); }
    static floats load_floats(const ggml_fp16_t * p) { return halves(p); }
    static floats load_floats(const ggml_bf16_t * p) {
        const ints wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static floats bytes(const void * p) {
        return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
    }
    static floats nibbles(const void * p, int shift) {
        const ints bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p));
        return to_float(_mm512_and_si512(_mm512_srli_epi32(bytes, shift), _mm512_set1_epi32(15)));
    }
    static floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
    static floats fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
    static void   store(float * p, floats v) { _mm512_storeu_ps(p, v); }

    // One block of a panel and N columns, added to sums. The block's weights stay in registers while column after column
    // is multiplied.
    template <class F, int N>
    static inline __attribute__((always_inline)) void add_block(
        const panel_parts<F, const uint8_t> & parts, int64_t b, int64_t blocks, const column_block * columns,
        floats (&sums)[N]) {
        constexpr int N_GROUPS = GROUPS / F::SCALES;
        ints          weights[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            weights[g] = unpack<avx512, F>(parts.quants_of(b), 0, g);
        }
        const factors<avx512, F> of_rows(parts, b, 0);
#pragma GCC unroll 16
        for (int c = 0; c < N; c++) {
            const column_block & column = columns[c * blocks + b];
            for (int s = 0; s < F::SCALES; s++) {
                ints dots = set1(F::OFFSET ? column.start[s] : 0);
                for (int g = s * N_GROUPS; g < (s + 1) * N_GROUPS; g++) {
                    dots = _mm512_dpbusd_epi32(dots, weights[g], four<avx512>(column.quants + 4 * g));
                }
                sums[c] = fma(to_float(dots), mul(of_rows.scales[s], set1(column.scale)), sums[c]);
            }
            if constexpr (F::MIN) {
                for (int s = 0; s < F::SCALES; s++) {
                    sums[c] = fma(of_rows.mins[s], set1(column.sums[s]), sums[c]);
                }
            }
        }
    }

    // out[c * out_stride + row] for the rows of P panels and N columns. `asks`: memory is asked for the next panels.
    template <class F, int N, int P>
    static void multiply_quants(
        const uint8_t * panels, int64_t blocks, const column_block * columns, float * out, size_t out_stride,
        bool asks) {
        const size_t stride = panel_bytes<F>(blocks * VALUES);
        floats       sums[P][N];
#pragma GCC unroll 16
        for (int i = 0; i < P * N; i++) {
            sums[i / N][i % N] = set1(0.0f);
        }
        for (int64_t b = 0; b < blocks; b++) {
            if (N <= MOST_ASKING && asks) {
                ask_ahead(panels, P * stride, b, blocks);
            }
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                add_block<F, N>({ panels + p * stride, blocks }, b, blocks, columns, sums[p]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < P * N; i++) {
            store(out + i % N * out_stride + i / N * ROWS, sums[i / N][i % N]);
        }
    }
};

inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace
}  // namespace afterword
