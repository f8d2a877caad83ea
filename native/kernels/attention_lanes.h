// Vectors of floats, as wide as the processor's: the few operations that attention needs.
//
// The algorithms are templates over one of these structs. A lane is one chain of operations whatever the width, so the
// width changes no bit of a sum in which each value has its own lane.
#pragma once

#include "simd-mappings.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace afterword {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
struct lanes_avx512 {
    using vec = __m512;
    static constexpr int WIDTH = 16;

    // A block of a product: its rows and, for each number of rows, its vectors of columns. The sums stay in registers.
    static constexpr int ROWS = 4;
    static constexpr int columns(int) { return 4; }

    // So many rows do not repay a copy of keys or values as floats.
    static constexpr int FEW_ROWS = 4;
    static constexpr int few_columns(int) { return 4; }

    static vec  zero() { return _mm512_setzero_ps(); }
    static vec  all(float x) { return _mm512_set1_ps(x); }
    static vec  load(const float * x) { return _mm512_loadu_ps(x); }
    static vec  load(const float * x, int n) { return _mm512_maskz_loadu_ps(first(n), x); }
    static vec  load(const ggml_fp16_t * x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }
    static void store(float * x, vec a) { _mm512_storeu_ps(x, a); }
    static void store(float * x, vec a, int n) { _mm512_mask_storeu_ps(x, first(n), a); }
    static vec  add(vec a, vec b) { return _mm512_add_ps(a, b); }
    static vec  multiply(vec a, vec b) { return _mm512_mul_ps(a, b); }
    static vec  multiply_add(vec a, vec b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }
    static vec  larger(vec a, vec b) { return _mm512_max_ps(a, b); }
    static float largest(vec a) { return _mm512_reduce_max_ps(a); }
    static float total(vec a) { return _mm512_reduce_add_ps(a); }

    static vec hidden(vec a, vec mask) {
        return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(mask, all(-INFINITY), _CMP_EQ_OQ), mask);
    }

    static vec zero_below(float least, vec x, vec a) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_NLT_UQ), a);
    }

    static vec times_power(vec a, vec n, vec) { return _mm512_scalef_ps(a, n); }

    // gcc would load a vector again for each row.
    static void keep(vec & a) { __asm__("" : "+v"(a)); }

    // 16 rows of 16 halves become 16 columns: put(c, column) takes each.
    template <class F>
    __attribute__((always_inline)) static inline void transpose(const char * rows, size_t stride, F && put) {
        vec r[16];
        vec t[16];
        for (int i = 0; i < 16; i++) {
            r[i] = load((const ggml_fp16_t *) (rows + i * stride));
        }
        for (int i = 0; i < 16; i += 2) {
            t[i]     = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            r[i]     = unpack_low(t[i], t[i + 2]);
            r[i + 1] = unpack_high(t[i], t[i + 2]);
            r[i + 2] = unpack_low(t[i + 1], t[i + 3]);
            r[i + 3] = unpack_high(t[i + 1], t[i + 3]);
        }
        // r[4*g + c] has, in its four quarters l, rows 4*g .. 4*g + 3 of column 4*l + c.
        for (int c = 0; c < 4; c++) {
            const vec a = _mm512_shuffle_f32x4(r[c],     r[4 + c],  0x88);
            const vec b = _mm512_shuffle_f32x4(r[c],     r[4 + c],  0xdd);
            const vec d = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
            const vec e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
            put(c,      _mm512_shuffle_f32x4(a, d, 0x88));
            put(8 + c,  _mm512_shuffle_f32x4(a, d, 0xdd));
            put(4 + c,  _mm512_shuffle_f32x4(b, e, 0x88));
            put(12 + c, _mm512_shuffle_f32x4(b, e, 0xdd));
        }
    }

private:
    static __mmask16 first(int n) { return (1u << n) - 1; }

    static vec unpack_low(vec a, vec b) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }

    static vec unpack_high(vec a, vec b) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    }
};
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct lanes_avx2 {
    using vec = __m256;
    static constexpr int WIDTH = 8;
    static constexpr int ROWS  = 6;
    static constexpr int columns(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
    static constexpr int FEW_ROWS = 4;
    static constexpr int few_columns(int rows) { return rows <= 3 ? 4 : 2; }

    static vec  zero() { return _mm256_setzero_ps(); }
    static vec  all(float x) { return _mm256_set1_ps(x); }
    static vec  load(const float * x) { return _mm256_loadu_ps(x); }
    static vec  load(const float * x, int n) { return _mm256_maskload_ps(x, first(n)); }
    static vec  load(const ggml_fp16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
    static void store(float * x, vec a) { _mm256_storeu_ps(x, a); }
    static void store(float * x, vec a, int n) { _mm256_maskstore_ps(x, first(n), a); }
    static vec  add(vec a, vec b) { return _mm256_add_ps(a, b); }
    static vec  multiply(vec a, vec b) { return _mm256_mul_ps(a, b); }
    static vec  multiply_add(vec a, vec b, vec sum) { return _mm256_fmadd_ps(a, b, sum); }
    static vec  larger(vec a, vec b) { return _mm256_max_ps(a, b); }
    static void keep(vec &) {}

    static float largest(vec a) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half        = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }

    static float total(vec a) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        half        = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }

    static vec hidden(vec a, vec mask) {
        return _mm256_blendv_ps(a, mask, _mm256_cmp_ps(mask, all(-INFINITY), _CMP_EQ_OQ));
    }

    static vec zero_below(float least, vec x, vec a) {
        return _mm256_and_ps(a, _mm256_cmp_ps(x, all(least), _CMP_NLT_UQ));
    }

    static vec times_power(vec a, vec, vec shifted) {
        const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
        return multiply(a, _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_castps_si256(all(1.0f)))));
    }

    // 8 rows of 8 halves become 8 columns: put(c, column) takes each.
    template <class F>
    __attribute__((always_inline)) static inline void transpose(const char * rows, size_t stride, F && put) {
        vec r[8];
        vec t[8];
        for (int i = 0; i < 8; i++) {
            r[i] = load((const ggml_fp16_t *) (rows + i * stride));
        }
        for (int i = 0; i < 8; i += 2) {
            t[i]     = _mm256_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            r[i]     = _mm256_shuffle_ps(t[i],     t[i + 2], 0x44);
            r[i + 1] = _mm256_shuffle_ps(t[i],     t[i + 2], 0xee);
            r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
            r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        // r[4*g + c] has, in its two halves l, rows 4*g .. 4*g + 3 of column 4*l + c.
        for (int c = 0; c < 4; c++) {
            put(c,     _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
            put(4 + c, _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
        }
    }

private:
    static __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};
#endif

#if defined(__GNUC__)
// Any other processor: gcc and clang make its own instructions of these.
struct lanes_any {
    typedef float vec __attribute__((vector_size(16)));
    static constexpr int WIDTH = 4;
    static constexpr int ROWS  = 4;
    static constexpr int columns(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
    static constexpr int FEW_ROWS = 0;
    static constexpr int few_columns(int) { return 2; }

    static vec  zero() { return vec{}; }
    static vec  all(float x) { return vec{x, x, x, x}; }
    static vec  load(const float * x) { return load(x, WIDTH); }
    static void store(float * x, vec a) { store(x, a, WIDTH); }
    static void store(float * x, vec a, int n) { std::memcpy(x, &a, n * sizeof(float)); }
    static vec  add(vec a, vec b) { return a + b; }
    static vec  multiply(vec a, vec b) { return a * b; }
    static vec  multiply_add(vec a, vec b, vec sum) { return a * b + sum; }
    static vec  larger(vec a, vec b) { return a > b ? a : b; }
    static float largest(vec a) { return std::max(std::max(a[0], a[1]), std::max(a[2], a[3])); }
    static vec  hidden(vec a, vec mask) { return mask == all(-INFINITY) ? mask : a; }
    static vec  zero_below(float least, vec x, vec a) { return x < all(least) ? zero() : a; }
    static float total(vec a) { return (a[0] + a[1]) + (a[2] + a[3]); }

    static vec times_power(vec a, vec, vec shifted) {
        typedef int32_t bits __attribute__((vector_size(16)));
        return a * (vec) (((bits) shifted << 23) + (bits) all(1.0f));
    }
    static void keep(vec &) {}

    static vec load(const float * x, int n) {
        vec a = zero();
        std::memcpy(&a, x, n * sizeof(float));
        return a;
    }

    static vec load(const ggml_fp16_t * x) {
        return vec{GGML_CPU_FP16_TO_FP32(x[0]), GGML_CPU_FP16_TO_FP32(x[1]), GGML_CPU_FP16_TO_FP32(x[2]),
                   GGML_CPU_FP16_TO_FP32(x[3])};
    }

    template <class F>
    static void transpose(const char * rows, size_t stride, F && put) {
        vec columns[WIDTH] = {};
        for (int i = 0; i < WIDTH; i++) {
            const vec row = load((const ggml_fp16_t *) (rows + i * stride));
            for (int c = 0; c < WIDTH; c++) {
                columns[c][i] = row[c];
            }
        }
        for (int c = 0; c < WIDTH; c++) {
            put(c, columns[c]);
        }
    }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
using lanes = lanes_avx512;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
using lanes = lanes_avx2;
#else
using lanes = lanes_any;
#endif

// a * b + sum, rounded once where the processor can and twice elsewhere. A compiler would choose anew in each place.
inline float multiply_add(float a, float b, float sum) {
#if defined(__FP_FAST_FMAF)
    return std::fma(a, b, sum);
#else
    return a * b + sum;
#endif
}

// a * b + sum, rounded twice: the compiler fuses no product that has been in memory.
inline float multiply_then_add(float a, float b, float sum) {
    const volatile float product = a * b;
    return product + sum;
}

// exp(x) for x that is not above 0, or no number. It is 0 where a float would have fewer digits.
//
// The polynomial is that of ggml_v_expf of llama.cpp (Copyright (c) 2023-2026 The ggml authors, MIT licence), which has a
// branch for what is far below 0.
template <class L>
inline typename L::vec exponential(typename L::vec x) {
    using vec = typename L::vec;
    // The last digit of a float as large as SHIFT is 1, so that adding rounds to a whole number.
    constexpr float SHIFT   = 0x1.8p23f;
    const vec       shifted = L::multiply_add(x, L::all(0x1.715476p+0f), L::all(SHIFT));
    const vec       n       = L::add(shifted, L::all(-SHIFT));
    vec             rest    = L::multiply_add(n, L::all(-0x1.62e4p-1f), x);
    rest                    = L::multiply_add(n, L::all(-0x1.7f7d1cp-20f), rest);
    const vec       square  = L::multiply(rest, rest);
    const vec       low     = L::multiply_add(L::all(0x1.555e66p-3f), rest, L::all(0x1.fffdb6p-2f));
    const vec       high    = L::multiply_add(L::all(0x1.0e4020p-7f), rest, L::all(0x1.573e2ep-5f));
    const vec       first   = L::multiply_add(L::all(0x1.ffffecp-1f), rest, L::all(1.0f));
    const vec       power   = L::multiply_add(L::multiply_add(high, square, low), square, first);
    return L::zero_below(-87.0f, x, L::times_power(power, n, shifted));
}

// The largest of n values, in no particular order.
template <class L>
inline float largest(const float * x, int n) {
    typename L::vec most = L::all(-INFINITY);
    int             i    = 0;
    for (; i + L::WIDTH <= n; i += L::WIDTH) {
        most = L::larger(most, L::load(x + i));
    }
    float max = L::largest(most);
    for (; i < n; i++) {
        max = max > x[i] ? max : x[i];
    }
    return max;
}

}  // namespace afterword
