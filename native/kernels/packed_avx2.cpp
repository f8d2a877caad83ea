// Products of packed weights with AVX2 and FMA, 8 lanes at once. CMake gives this file the instructions.
#if defined(__x86_64__)

#include "packed_vectors.h"

#include <cpuid.h>

namespace afterword {
namespace {

// Have a sum in a register now: compilers would add all products in the end, and have no room for them.
inline void keep(__m256i & sum) { __asm__("" : "+x"(sum)); }

struct avx2 {
    static constexpr int LANES            = 8;
    static constexpr int COLUMNS          = 4;
    static constexpr int PANELS           = 1;  // several side by side are slower than one whose next is asked for
    static constexpr int EIGHT_BIT_OFFSET = 0;
    // So many columns pay for unpacking in memory. Weights of eight bits are bytes already.
    static constexpr int MANY             = 32;
    template <class F> static constexpr bool OPENS = F::BITS < 8;

    using ints   = __m256i;
    using floats = __m256;

    static ints load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
    static ints low_nibbles(ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
    static ints high_nibbles(ints v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
    // Bit `from`, moved to bit `to`.
    static ints bit(ints v, int from, int to) {
        const ints moved = from < to ? _mm256_slli_epi16(v, to - from) : _mm256_srli_epi16(v, from - to);
        return _mm256_and_si256(moved, _mm256_set1_epi8((char) (1 << to)));
    }
    // Two bits at twice `shift`.
    static ints two_bits(ints v, int shift) {
        return _mm256_and_si256(_mm256_srli_epi16(v, 2 * shift), _mm256_set1_epi8(3));
    }
    // The same, moved to the fifth and sixth bit.
    static ints high_bits(ints v, int shift) {
        const ints moved = shift < 2 ? _mm256_slli_epi16(v, 4 - 2 * shift) : _mm256_srli_epi16(v, 2 * shift - 4);
        return _mm256_and_si256(moved, _mm256_set1_epi8(0x30));
    }
    // What 16 values and an offset say for bytes of four bits.
    static ints look_up(const int8_t * table, int offset, ints v) {
        const __m128i sums = _mm_add_epi8(_mm_loadu_si128((const __m128i *) table), _mm_set1_epi8((char) offset));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(sums), v);
    }
    static ints   either(ints a, ints b) { return _mm256_or_si256(a, b); }
    static ints   set1(int32_t v) { return _mm256_set1_epi32(v); }
    static floats set1(float v) { return _mm256_set1_ps(v); }
    static floats halves(const void * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
    static floats to_float(ints v) { return _mm256_cvtepi32_ps(v); }
    static floats load_floats(const float * p) { return _mm256_loadu_ps(p); }
    static floats load_floats(const ggml_fp16_t * p) { return halves(p); }
    static floats load_floats(const ggml_bf16_t * p) {
        const ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static floats bytes(const void * p) {
        return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
    }
    static floats nibbles(const void * p, int shift) {
        const ints bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p));
        return to_float(_mm256_and_si256(_mm256_srli_epi32(bytes, shift), _mm256_set1_epi32(15)));
    }
    static floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
    static floats fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
    static void   store(float * p, floats v) { _mm256_storeu_ps(p, v); }

    // Sums of two products, eight bits each or less. Weights of eight bits have a sign.
    template <class F> static ints pairs(ints weights, ints column) {
        return F::LARGEST > 63
            ? _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(column, weights))
            : _mm256_maddubs_epi16(weights, column);
    }

    // A block of a panel.
    template <class F> struct packed_block {
        const uint8_t *        quants;
        const factors<avx2, F> of_rows[PARTS<avx2>];

        packed_block(const panel_parts<F, const uint8_t> & parts, int64_t b)
            : quants(parts.quants_of(b)), of_rows{ { parts, b, 0 }, { parts, b, 1 } } {}

        ints   group(int part, int g) const { return unpack<avx2, F>(quants, part, g); }
        floats scale(int part, int s) const { return of_rows[part].scales[s]; }
        floats min(int part, int s) const { return of_rows[part].mins[s]; }
    };

    // The same with a byte for each value, and with floats.
    template <class F> struct open_block {
        alignas(32) uint8_t groups[GROUPS][VECTOR];
        float scales[F::SCALES][ROWS];
        float mins[F::MIN ? F::SCALES : 1][ROWS];

        ints   group(int part, int g) const { return load(groups[g] + part * VECTOR / PARTS<avx2>); }
        floats scale(int part, int s) const { return load_floats(scales[s] + part * LANES); }
        floats min(int part, int s) const { return load_floats(mins[s] + part * LANES); }

        void open(const packed_block<F> & from) {
            for (int part = 0; part < PARTS<avx2>; part++) {
                for (int g = 0; g < GROUPS; g++) {
                    _mm256_store_si256((ints *) groups[g] + part, from.group(part, g));
                }
                for (int s = 0; s < F::SCALES; s++) {
                    store(scales[s] + part * LANES, from.scale(part, s));
                    if constexpr (F::MIN) {
                        store(mins[s] + part * LANES, from.min(part, s));
                    }
                }
            }
        }
    };

    // One block of a panel and N columns, added to sums. AVX2 has half the registers of AVX-512, half as long: the sums
    // of a block stay in them, and weights come group by group.
    template <class F, int N, class Block>
    static inline __attribute__((always_inline)) void add_block(
        const Block & block, int64_t blocks, const column_block * columns, floats (&sums)[N][PARTS<avx2>]) {
        constexpr int N_GROUPS = GROUPS / F::SCALES;
        constexpr int TWO      = PARTS<avx2>;
        constexpr int STEP     = fitting<F, 2 * N_GROUPS>() / 2;  // so many sums of pairs fit 16 bits
#pragma GCC unroll 2
        for (int s = 0; s < F::SCALES; s++) {
            ints dots[N][TWO];
#pragma GCC unroll 8
            for (int i = 0; i < N * TWO; i++) {
                dots[i / TWO][i % TWO] = set1(F::OFFSET ? columns[i / TWO * blocks].start[s] : 0);
            }
            ints folded[N][TWO];
#pragma GCC unroll 8
            for (int g = s * N_GROUPS; g < (s + 1) * N_GROUPS; g++) {
                const ints weights[TWO] = { block.group(0, g), block.group(1, g) };
#pragma GCC unroll 8
                for (int i = 0; i < N * TWO; i++) {
                    ints &     fold   = folded[i / TWO][i % TWO];
                    ints &     sum    = dots[i / TWO][i % TWO];
                    const ints values = four<avx2>(columns[i / TWO * blocks].quants + 4 * g);
                    const ints products = pairs<F>(weights[i % TWO], values);
                    fold = g % STEP ? _mm256_add_epi16(fold, products) : products;
                    keep(fold);
                    if (g % STEP == STEP - 1) {
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(fold, _mm256_set1_epi16(1)));
                        keep(sum);
                    }
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < N * TWO; i++) {
                const int    c = i / TWO, part = i % TWO;
                const floats scale = mul(block.scale(part, s), set1(columns[c * blocks].scale));
                sums[c][part]      = fma(to_float(dots[c][part]), scale, sums[c][part]);
            }
        }
        if constexpr (F::MIN) {
#pragma GCC unroll 8
            for (int i = 0; i < N * TWO; i++) {
                const int c = i / TWO, part = i % TWO;
                for (int s = 0; s < F::SCALES; s++) {
                    sums[c][part] = fma(block.min(part, s), set1(columns[c * blocks].sums[s]), sums[c][part]);
                }
            }
        }
    }

    // out[c * out_stride + row] for the rows of a panel and N columns. `asks`: memory is asked for the next panel.
    template <class F, int N, int P>
    static void multiply_quants(
        const uint8_t * panel, int64_t blocks, const column_block * columns, float * out, size_t out_stride,
        bool asks) {
        static_assert(P == PANELS && PANELS == 1);
        constexpr int                       TWO = PARTS<avx2>;
        const panel_parts<F, const uint8_t> parts(panel, blocks);
        floats                              sums[N][TWO];
        for (int i = 0; i < N * TWO; i++) {
            sums[i / TWO][i % TWO] = set1(0.0f);
        }
        for (int64_t b = 0; b < blocks; b++, columns++) {
            if (N <= MOST_ASKING && asks) {
                ask_ahead(panel, panel_bytes<F>(blocks * VALUES), b, blocks);
            }
            add_block<F, N>(packed_block<F>(parts, b), blocks, columns, sums);
        }
        for (int i = 0; i < N * TWO; i++) {
            store(out + i / TWO * out_stride + i % TWO * LANES, sums[i / TWO][i % TWO]);
        }
    }

    // Some open blocks of a panel and n columns, as many columns as possible at once. Sums begin in `out`, unless the
    // blocks are the first ones.
    template <class F, int N>
    static void multiply_open(
        const open_block<F> * open, int64_t n_open, int64_t blocks, const column_block * columns, int64_t n, float * out,
        size_t out_stride, bool first) {
        constexpr int TWO = PARTS<avx2>;
        for (; n >= N; n -= N, columns += N * blocks, out += N * out_stride) {
            floats sums[N][TWO];
            for (int i = 0; i < N * TWO; i++) {
                const float * before   = out + i / TWO * out_stride + i % TWO * LANES;
                sums[i / TWO][i % TWO] = first ? set1(0.0f) : load_floats(before);
            }
            for (int64_t b = 0; b < n_open; b++) {
                add_block<F, N>(open[b], blocks, columns + b, sums);
            }
            for (int i = 0; i < N * TWO; i++) {
                store(out + i / TWO * out_stride + i % TWO * LANES, sums[i / TWO][i % TWO]);
            }
        }
        if constexpr (N > 1) {
            multiply_open<F, N - 1>(open, n_open, blocks, columns, n, out, out_stride, first);
        }
    }

    // The same as multiply_quants for many columns: they share what unpacking costs. So many blocks are open that the
    // first cache holds them, with their part of some columns.
    template <class F>
    static void multiply_many(
        const uint8_t * panels, int64_t n_panels, int64_t blocks, const column_block * columns, int64_t n, float * out,
        size_t out_stride, bool asks) {
        constexpr int64_t MOST   = 16384 / sizeof(open_block<F>);
        const int64_t     n_runs = (blocks + MOST - 1) / MOST;
        const size_t      bytes  = panel_bytes<F>(blocks * VALUES);
        open_block<F>     open[MOST];
        for (int64_t run = 0; run < n_runs; run++) {
            const int64_t begin = run * blocks / n_runs;
            const int64_t end   = (run + 1) * blocks / n_runs;
            for (int64_t p = 0; p < n_panels; p++) {
                for (int64_t b = begin; b < end; b++) {
                    open[b - begin].open(packed_block<F>({ panels + p * bytes, blocks }, b));
                    if (asks && p + 1 < n_panels) {
                        ask_for(panels + (p + 1) * bytes + b * QUANT_BYTES<F>, QUANT_BYTES<F>);
                    }
                }
                multiply_open<F, COLUMNS>(
                    open, end - begin, blocks, columns + begin, n, out + p * ROWS, out_stride, run == 0);
            }
        }
    }
};

// Not every compiler knows this one by its name.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool runs_here() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           has_f16c();
}

}  // namespace

const packed_kernels packed_avx2 = { "avx2", runs_here, KERNELS<avx2>, std::size(KERNELS<avx2>) };

}  // namespace afterword

#endif
