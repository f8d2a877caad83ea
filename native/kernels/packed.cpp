// Products of weights with many columns or one, alike in any batch, bit for bit.
//
// Added to ggml's CPU backend by afterword.cmake; docs/decisions/0007-packed-weights.md has the reasons.
// The weights of 16 rows are kept together, a lane for each row: one step of the inner loop multiplies four
// quantised values of 16 rows with four values of a column, or one float of each. A lane is one chain of sums
// over its row, in one order, whoever else is in the batch. The weights are put in another order, not changed.

#include "packed.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#    include <sys/mman.h>
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace {

constexpr int ROWS   = 16;  // of a panel
constexpr int VALUES = 32;  // of a block
constexpr int GROUPS = 8;   // of four values

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int EIGHT_BIT_OFFSET = 128;  // its product wants unsigned weights
#else
constexpr int EIGHT_BIT_OFFSET = 0;
#endif

// ---- the formats of files

// 32 values of a row: scale * (quant - OFFSET), or scale * quant + min.
struct row_block {
    uint8_t   quants[VALUES];
    ggml_half scale;
    ggml_half min;
    int8_t    scales[2];  // in a format of super-blocks what scale is multiplied with: for all, or for each half
    int8_t    mins;       // and min
};

// The low and the high halves of 16 bytes.
inline void read_nibbles(const uint8_t * bytes, row_block & out) {
    for (int i = 0; i < VALUES / 2; i++) {
        out.quants[i]              = bytes[i] & 15;
        out.quants[i + VALUES / 2] = bytes[i] >> 4;
    }
}

// 16 in each of 32 bytes whose bit is set.
inline __m256i fifth_bits(uint32_t bits) {
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t) bits), _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
    const __m256i bit = _mm256_set1_epi64x((int64_t) 0x8040201008040201);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

// The same with a fifth bit for each.
inline void read_five_bits(const uint8_t * bytes, const uint8_t * fifth, row_block & out) {
    uint32_t bits;
    std::memcpy(&bits, fifth, sizeof(bits));
    const __m128i both = _mm_loadu_si128((const __m128i *) bytes);
    const __m256i four = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
    _mm256_storeu_si256((__m256i *) out.quants, _mm256_or_si256(four, fifth_bits(bits)));
}

// Four bits of 32 values in a super-block, and the six bits of their scale and of their min.
template <class B> inline void read_k_nibbles(const B & block, int i, row_block & out) {
    const uint8_t * s = block.scales;
    for (int l = 0; l < VALUES; l++) {
        out.quants[l] = block.qs[VALUES * (i / 2) + l] >> 4 * (i % 2) & 15;
    }
    out.scales[0] = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
    out.mins      = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    out.scale     = block.data.data.d;
    out.min       = block.data.data.dmin ^ 0x8000;  // the file's is taken away
}

// 32 values of a column, eight bits each.
struct column_block {
    int8_t  quants[VALUES];
    float   scale;
    float   sum;       // scale * the sum of the quants: what a row's min is multiplied with
    int32_t start[2];  // -OFFSET * the sum of the quants that share a scale: what unsigned weights add too much
};

// Of each format: bits of a value, offset, whether there is a min, scales of 32 values, blocks of 32 in
// a super-block or 1, and how the i-th block of a super-block is read.
struct quantized {
    using column               = column_block;
    static constexpr int WIDTH = VALUES;  // of a block
};

struct q4_0 : quantized {
    using block = block_q4_0;
    static constexpr int  BITS = 4, OFFSET = 8, SCALES = 1, BLOCKS = 1;
    static constexpr bool MIN = false;

    static void read(const block & from, int, row_block & out) {
        read_nibbles(from.qs, out);
        out.scale = from.d;
    }
};

struct q4_1 : quantized {
    using block = block_q4_1;
    static constexpr int  BITS = 4, OFFSET = 0, SCALES = 1, BLOCKS = 1;
    static constexpr bool MIN = true;

    static void read(const block & from, int, row_block & out) {
        read_nibbles(from.qs, out);
        out.scale = from.data.data.d;
        out.min   = from.data.data.m;
    }
};

struct q5_0 : quantized {
    using block = block_q5_0;
    static constexpr int  BITS = 5, OFFSET = 16, SCALES = 1, BLOCKS = 1;
    static constexpr bool MIN = false;

    static void read(const block & from, int, row_block & out) {
        read_five_bits(from.qs, from.qh, out);
        out.scale = from.d;
    }
};

struct q5_1 : quantized {
    using block = block_q5_1;
    static constexpr int  BITS = 5, OFFSET = 0, SCALES = 1, BLOCKS = 1;
    static constexpr bool MIN = true;

    static void read(const block & from, int, row_block & out) {
        read_five_bits(from.qs, from.qh, out);
        out.scale = from.data.data.d;
        out.min   = from.data.data.m;
    }
};

struct q8_0 : quantized {
    using block = block_q8_0;
    static constexpr int  BITS = 8, OFFSET = EIGHT_BIT_OFFSET, SCALES = 1, BLOCKS = 1;
    static constexpr bool MIN = false;

    static void read(const block & from, int, row_block & out) {
        for (int i = 0; i < VALUES; i++) {
            out.quants[i] = (uint8_t) (from.qs[i] + OFFSET);
        }
        out.scale = from.d;
    }
};

struct q4_k : quantized {
    using block = block_q4_K;
    static constexpr int  BITS = 4, OFFSET = 0, SCALES = 1, BLOCKS = 8;
    static constexpr bool MIN = true;

    static void read(const block & from, int i, row_block & out) { read_k_nibbles(from, i, out); }
};

struct q5_k : quantized {
    using block = block_q5_K;
    static constexpr int  BITS = 5, OFFSET = 0, SCALES = 1, BLOCKS = 8;
    static constexpr bool MIN = true;

    static void read(const block & from, int i, row_block & out) {
        read_k_nibbles(from, i, out);
        for (int l = 0; l < VALUES; l++) {
            out.quants[l] |= (from.qh[l] >> i & 1) << 4;
        }
    }
};

struct q6_k : quantized {
    using block = block_q6_K;
    static constexpr int  BITS = 6, OFFSET = 32, SCALES = 2, BLOCKS = 8;
    static constexpr bool MIN = false;

    static void read(const block & from, int i, row_block & out) {
        const int       quarter = i % 4;
        const uint8_t * low     = from.ql + 64 * (i / 4) + VALUES * (quarter % 2);
        const uint8_t * high    = from.qh + VALUES * (i / 4);
        for (int l = 0; l < VALUES; l++) {
            out.quants[l] = (low[l] >> 4 * (quarter / 2) & 15) | (high[l] >> 2 * quarter & 3) << 4;
        }
        out.scales[0] = from.scales[2 * i];
        out.scales[1] = from.scales[2 * i + 1];
        out.scale     = from.d;
    }
};

struct floats_of_file {
    using column               = float;
    static constexpr int WIDTH = 1, BLOCKS = 1;
};

struct f32 : floats_of_file {
    using block = float;
};

struct f16 : floats_of_file {
    using block = ggml_fp16_t;
};

struct bf16 : floats_of_file {
    using block = ggml_bf16_t;
};

// ---- panels of floats: a value of each of 16 rows, then the next of each
// ---- panels of quants: the quants of all blocks of 16 rows, then their scales (and mins), then those of super-blocks

template <class F> constexpr size_t QUANT_BYTES = ROWS * VALUES * F::BITS / 8;
template <class F> constexpr size_t HALF_BYTES = ROWS * sizeof(ggml_half) * (1 + F::MIN);
template <class F> constexpr size_t FACTOR_BYTES = F::BLOCKS == 1 ? 0 : ROWS * (F::SCALES + F::MIN);

template <class F> constexpr size_t panel_bytes(int64_t blocks) {
    if constexpr (F::WIDTH == 1) {
        return ROWS * blocks * sizeof(typename F::block);
    } else {
        return blocks * (QUANT_BYTES<F> + FACTOR_BYTES<F>) + blocks / F::BLOCKS * HALF_BYTES<F>;
    }
}

constexpr size_t VECTOR = ROWS * 4;  // bytes of a group's quants, or of four bits of two groups

// Four groups of a row.
inline void place_groups(__m128i groups, uint8_t * lane) {
    const int four[] = {
        _mm_cvtsi128_si32(groups), _mm_extract_epi32(groups, 1), _mm_extract_epi32(groups, 2),
        _mm_extract_epi32(groups, 3),
    };
    for (int g = 0; g < 4; g++) {
        std::memcpy(lane + g * VECTOR, four + g, 4);
    }
}

// Put a row's block in its lane, all but its fifth bits.
template <class F> void place(const row_block & from, int row, uint8_t * quants, ggml_half * halves, int8_t * factors) {
    const __m128i half[2] = {
        _mm_loadu_si128((const __m128i *) from.quants), _mm_loadu_si128((const __m128i *) (from.quants + VALUES / 2)),
    };
    if constexpr (F::BITS == 8) {
        place_groups(half[0], quants + row * 4);
        place_groups(half[1], quants + GROUPS / 2 * VECTOR + row * 4);
    } else {
        const __m128i four = _mm_set1_epi8(15);
        place_groups(
            _mm_or_si128(_mm_and_si128(half[0], four), _mm_slli_epi16(_mm_and_si128(half[1], four), 4)),
            quants + row * 4);
    }
    if constexpr (F::BITS == 6) {
        // Two bits of four groups in a byte.
        for (int i = 0; i < 2; i++) {
            const __m128i high  = _mm_and_si128(_mm_srli_epi16(half[i], 4), _mm_set1_epi8(3));
            const __m128i apart = _mm_sllv_epi32(high, _mm_setr_epi32(0, 2, 4, 6));
            const __m128i pairs = _mm_or_si128(apart, _mm_unpackhi_epi64(apart, apart));
            const int     bits  = _mm_cvtsi128_si32(_mm_or_si128(pairs, _mm_srli_epi64(pairs, 32)));
            std::memcpy(quants + (GROUPS / 2 + i) * VECTOR + row * 4, &bits, 4);
        }
    }
    halves[row] = from.scale;
    if constexpr (F::MIN) {
        halves[ROWS + row] = from.min;
    }
    if constexpr (F::BLOCKS > 1) {
        factors[row]        = from.scales[0];
        factors[ROWS + row] = F::MIN ? from.mins : from.scales[1];
    }
}

// The fifth bits of 16 rows, 32 a row: 64 bits a group, four of them a row.
inline void place_fifth_bits(const uint32_t * rows, uint8_t * high) {
    __m128i quarter[4];  // of four rows each: their first bytes, their second, ...
    for (int i = 0; i < 4; i++) {
        quarter[i] = _mm_shuffle_epi8(
            _mm_loadu_si128((const __m128i *) rows + i),
            _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    }
    const __m128i low[2]  = { _mm_unpacklo_epi32(quarter[0], quarter[1]), _mm_unpacklo_epi32(quarter[2], quarter[3]) };
    const __m128i rest[2] = { _mm_unpackhi_epi32(quarter[0], quarter[1]), _mm_unpackhi_epi32(quarter[2], quarter[3]) };
    const __m128i bytes[GROUPS / 2] = {  // of all rows, each with two groups
        _mm_unpacklo_epi64(low[0], low[1]), _mm_unpackhi_epi64(low[0], low[1]),
        _mm_unpacklo_epi64(rest[0], rest[1]), _mm_unpackhi_epi64(rest[0], rest[1]),
    };
    const __m128i nibble = _mm_set1_epi8(15), neighbours = _mm_set1_epi16(0x1001);
    for (int i = 0; i < GROUPS / 2; i++) {
        const __m128i first  = _mm_and_si128(bytes[i], nibble);
        const __m128i second = _mm_and_si128(_mm_srli_epi16(bytes[i], 4), nibble);
        const __m128i both   = _mm_packus_epi16(
            _mm_maddubs_epi16(first, neighbours), _mm_maddubs_epi16(second, neighbours));
        _mm_storeu_si128((__m128i *) high + i, both);
    }
}

constexpr size_t PREFETCH_BYTES = 512;  // processors do not follow 16 rows by themselves

// One panel of 16 rows.
template <class F> void pack_panel(const typename F::block * file, uint8_t * packed, int64_t blocks) {
    if constexpr (F::WIDTH == 1) {
        auto * out = (typename F::block *) packed;
        for (int64_t i = 0; i < blocks; i++) {
            for (int row = 0; row < ROWS; row++) {
                *out++ = file[row * blocks + i];
            }
        }
    } else {
        const int64_t stride  = blocks / F::BLOCKS;
        uint8_t *     halves  = packed + blocks * QUANT_BYTES<F>;
        uint8_t *     factors = halves + stride * HALF_BYTES<F>;
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t * quants = packed + b * QUANT_BYTES<F>;
            uint32_t  fifth[ROWS];
            for (int row = 0; row < ROWS; row++) {
                const auto & block = file[row * stride + b / F::BLOCKS];
                __builtin_prefetch((const char *) &block + PREFETCH_BYTES);
                row_block values;
                F::read(block, b % F::BLOCKS, values);
                place<F>(
                    values, row, quants, (ggml_half *) (halves + b / F::BLOCKS * HALF_BYTES<F>),
                    (int8_t *) (factors + b * FACTOR_BYTES<F>));
                if constexpr (F::BITS == 5) {
                    const __m256i all = _mm256_loadu_si256((const __m256i *) values.quants);
                    fifth[row]        = (uint32_t) _mm256_movemask_epi8(_mm256_slli_epi16(all, 3));
                }
            }
            if constexpr (F::BITS == 5) {
                place_fifth_bits(fifth, quants + GROUPS / 2 * VECTOR);
            }
        }
    }
}

// Calls work(i) for every i below count, on as many processors as pay: packing is most of a large file's load.
template <class Work> void share_out(int64_t count, int64_t bytes, const Work & work) {
    constexpr int64_t BYTES_OF_A_THREAD = 512 * 1024, MOST_THREADS = 8;
    const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
    const int64_t threads    = std::min({ processors, MOST_THREADS, bytes / BYTES_OF_A_THREAD, count });
    std::atomic<int64_t> next{ 0 };
    const auto take = [&] {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            work(i);
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t t = 1; t < threads; t++) {
            helpers.emplace_back(take);
        }
    } catch (const std::system_error & error) {
        GGML_LOG_DEBUG("weights are packed by %zu threads: %s\n", helpers.size() + 1, error.what());
    }
    take();
    for (std::thread & helper : helpers) {
        helper.join();
    }
}

// ---- 16 lanes of AVX-512, or twice 8 of AVX2

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

constexpr int LANES   = 16;
constexpr int COLUMNS = 12;  // that share a panel's unpacked weights
using ints   = __m512i;
using floats = __m512;

inline ints   load(const void * p) { return _mm512_loadu_si512(p); }
inline ints   low_nibbles(ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline ints   high_nibbles(ints v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline ints   set_bit_4(ints v, uint64_t bits) { return _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(16)); }
inline ints   high_bits(ints v, int shift) {
    // Two bits at twice `shift` to the fifth and sixth.
    const ints moved = shift < 2 ? _mm512_slli_epi16(v, 4 - 2 * shift) : _mm512_srli_epi16(v, 2 * shift - 4);
    return _mm512_and_si512(moved, _mm512_set1_epi8(0x30));
}
inline ints   either(ints a, ints b) { return _mm512_or_si512(a, b); }
inline ints   set1(int32_t v) { return _mm512_set1_epi32(v); }
inline floats set1(float v) { return _mm512_set1_ps(v); }
inline floats halves(const void * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
inline floats to_float(ints v) { return _mm512_cvtepi32_ps(v); }
inline floats load_floats(const float * p) { return _mm512_loadu_ps(p); }
inline floats load_floats(const ggml_fp16_t * p) { return halves(p); }
inline floats load_floats(const ggml_bf16_t * p) {
    const ints wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline floats bytes(const void * p) { return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p))); }
inline floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
inline floats fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
inline void   store(float * p, floats v) { _mm512_storeu_ps(p, v); }

#else

constexpr int LANES   = 8;
constexpr int COLUMNS = 4;
using ints   = __m256i;
using floats = __m256;

inline ints   load(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
inline ints   low_nibbles(ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline ints   high_nibbles(ints v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
inline ints   set_bit_4(ints v, uint64_t bits) { return _mm256_or_si256(v, fifth_bits((uint32_t) bits)); }
inline ints   high_bits(ints v, int shift) {
    const ints moved = shift < 2 ? _mm256_slli_epi16(v, 4 - 2 * shift) : _mm256_srli_epi16(v, 2 * shift - 4);
    return _mm256_and_si256(moved, _mm256_set1_epi8(0x30));
}
inline ints   either(ints a, ints b) { return _mm256_or_si256(a, b); }
inline ints   set1(int32_t v) { return _mm256_set1_epi32(v); }
inline floats set1(float v) { return _mm256_set1_ps(v); }
inline floats halves(const void * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
inline floats to_float(ints v) { return _mm256_cvtepi32_ps(v); }
inline floats load_floats(const float * p) { return _mm256_loadu_ps(p); }
inline floats load_floats(const ggml_fp16_t * p) { return halves(p); }
inline floats load_floats(const ggml_bf16_t * p) {
    const ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline floats bytes(const void * p) { return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p))); }
inline floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
inline floats fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
inline void   store(float * p, floats v) { _mm256_storeu_ps(p, v); }

// Have a sum in a register now: compilers would add all products in the end, and have no room for them.
inline void keep(ints & sum) { __asm__("" : "+x"(sum)); }

// Sums of two products, eight bits each or less.
template <class F> inline ints pairs(ints weights, ints column) {
    return F::BITS == 8
        ? _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(column, weights))
        : _mm256_maddubs_epi16(weights, column);
}

#endif

constexpr int PARTS = ROWS / LANES;  // of a panel

// Four values of a column, for every row.
inline ints four(const int8_t * values) {
    int32_t bytes;
    std::memcpy(&bytes, values, sizeof(bytes));
    return set1(bytes);
}

// ---- the kernel

// Four values of each row of a part, of a block's quants.
template <class F> inline ints unpack(const uint8_t * quants, int part, int group) {
    const uint8_t * high = quants + GROUPS / 2 * VECTOR;
    quants += part * LANES * 4;
    if constexpr (F::BITS == 8) {
        return load(quants + group * VECTOR);
    }
    const ints both    = load(quants + group % (GROUPS / 2) * VECTOR);
    ints       weights = group < GROUPS / 2 ? low_nibbles(both) : high_nibbles(both);
    if constexpr (F::BITS == 5) {
        uint64_t bits = 0;
        std::memcpy(&bits, high + group * ROWS / 2 + part * LANES / 2, LANES / 2);
        weights = set_bit_4(weights, bits);
    }
    if constexpr (F::BITS == 6) {
        weights = either(weights, high_bits(load(high + group / 4 * VECTOR + part * LANES * 4), group % 4));
    }
    return weights;
}

// What the sums of a part's products are multiplied with, and what is added for a column's sum.
template <class F> struct factors {
    floats scales[F::SCALES];
    floats min = set1(0.0f);

    // Of block `b`; `halves_of` and `bytes_of` are those of all blocks.
    factors(const uint8_t * halves_of, const uint8_t * bytes_of, int64_t b, int part) {
        const uint8_t * half   = halves_of + b / F::BLOCKS * HALF_BYTES<F> + part * LANES * 2;
        const uint8_t * factor = bytes_of + b * FACTOR_BYTES<F> + part * LANES;
        scales[0]              = halves(half);
        if constexpr (F::MIN) {
            min = halves(half + ROWS * 2);
        }
        if constexpr (F::BLOCKS > 1) {
            if constexpr (F::MIN) {
                min = mul(min, bytes(factor + ROWS));
            }
            if constexpr (F::SCALES == 2) {
                scales[1] = mul(scales[0], bytes(factor + ROWS));
            }
            scales[0] = mul(scales[0], bytes(factor));
        }
    }
};

// out[c * out_stride + row] for the rows of a panel and N columns.
template <class F, int N>
void multiply_quants(
    const uint8_t * panel, int64_t blocks, const column_block * columns, float * out, size_t out_stride) {
    constexpr int   N_GROUPS  = GROUPS / F::SCALES;
    const uint8_t * halves_of = panel + blocks * QUANT_BYTES<F>;
    const uint8_t * bytes_of  = halves_of + blocks / F::BLOCKS * HALF_BYTES<F>;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    // A block's weights stay in registers while column after column is multiplied.
    floats sums[N];
#pragma GCC unroll 16
    for (int c = 0; c < N; c++) {
        sums[c] = set1(0.0f);
    }
    for (int64_t b = 0; b < blocks; b++) {
        ints weights[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            weights[g] = unpack<F>(panel + b * QUANT_BYTES<F>, 0, g);
        }
        const factors<F> of_rows(halves_of, bytes_of, b, 0);
#pragma GCC unroll 16
        for (int c = 0; c < N; c++) {
            const column_block & column = columns[c * blocks + b];
            for (int s = 0; s < F::SCALES; s++) {
                ints dots = set1(F::OFFSET ? column.start[s] : 0);
                for (int g = s * N_GROUPS; g < (s + 1) * N_GROUPS; g++) {
                    dots = _mm512_dpbusd_epi32(dots, weights[g], four(column.quants + 4 * g));
                }
                sums[c] = fma(to_float(dots), mul(of_rows.scales[s], set1(column.scale)), sums[c]);
            }
            if constexpr (F::MIN) {
                sums[c] = fma(of_rows.min, set1(column.sum), sums[c]);
            }
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < N; c++) {
        store(out + c * out_stride, sums[c]);
    }
#else
    // With half the registers, half as long: the sums of a block stay in them, and weights come group by group.
    // So many pairs fit 16 bits: 2 * 15 * 127 each at most, 2 * 31 * 127, 2 * 63 * 127 or 2 * 128 * 127.
    constexpr int FOLD = F::BITS == 4 ? 8 : F::BITS == 5 ? 4 : F::BITS == 6 ? 2 : 1;
    constexpr int STEP = FOLD < N_GROUPS ? FOLD : N_GROUPS;
    floats sums[N][PARTS];
    for (int i = 0; i < N * PARTS; i++) {
        sums[i / PARTS][i % PARTS] = set1(0.0f);
    }
    for (int64_t b = 0; b < blocks; b++, columns++) {
        const uint8_t *  quants = panel + b * QUANT_BYTES<F>;
        const factors<F> of_rows[PARTS] = {{halves_of, bytes_of, b, 0}, {halves_of, bytes_of, b, 1}};
        for (int s = 0; s < F::SCALES; s++) {
            ints dots[N][PARTS];
#pragma GCC unroll 8
            for (int i = 0; i < N * PARTS; i++) {
                dots[i / PARTS][i % PARTS] = set1(F::OFFSET ? columns[i / PARTS * blocks].start[s] : 0);
            }
            ints folded[N][PARTS];
#pragma GCC unroll 8
            for (int g = s * N_GROUPS; g < (s + 1) * N_GROUPS; g++) {
                const ints weights[PARTS] = {unpack<F>(quants, 0, g), unpack<F>(quants, 1, g)};
#pragma GCC unroll 8
                for (int i = 0; i < N * PARTS; i++) {
                    ints &     fold     = folded[i / PARTS][i % PARTS];
                    ints &     sum      = dots[i / PARTS][i % PARTS];
                    const ints products = pairs<F>(weights[i % PARTS], four(columns[i / PARTS * blocks].quants + 4 * g));
                    fold                = g % STEP ? _mm256_add_epi16(fold, products) : products;
                    keep(fold);
                    if (g % STEP == STEP - 1) {
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(fold, _mm256_set1_epi16(1)));
                        keep(sum);
                    }
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < N * PARTS; i++) {
                const int    c = i / PARTS, part = i % PARTS;
                const floats scale = mul(of_rows[part].scales[s], set1(columns[c * blocks].scale));
                sums[c][part]      = fma(to_float(dots[c][part]), scale, sums[c][part]);
            }
        }
        if constexpr (F::MIN) {
#pragma GCC unroll 8
            for (int i = 0; i < N * PARTS; i++) {
                const int c = i / PARTS, part = i % PARTS;
                sums[c][part] = fma(of_rows[part].min, set1(columns[c * blocks].sum), sums[c][part]);
            }
        }
    }
    for (int i = 0; i < N * PARTS; i++) {
        store(out + i / PARTS * out_stride + i % PARTS * LANES, sums[i / PARTS][i % PARTS]);
    }
#endif
}

template <class F, int N>
void multiply_floats(const uint8_t * panel, int64_t values, const float * columns, float * out, size_t out_stride) {
    for (int part = 0; part < PARTS; part++) {
        const typename F::block * weights = (const typename F::block *) panel + part * LANES;
        floats                    sums[N];
        for (int c = 0; c < N; c++) {
            sums[c] = set1(0.0f);
        }
        for (int64_t i = 0; i < values; i++, weights += ROWS) {
            const floats of_rows = load_floats(weights);
#pragma GCC unroll 16
            for (int c = 0; c < N; c++) {
                sums[c] = fma(of_rows, set1(columns[c * values + i]), sums[c]);
            }
        }
        for (int c = 0; c < N; c++) {
            store(out + c * out_stride + part * LANES, sums[c]);
        }
    }
}

// Any number of columns: as many as possible at once.
template <class F, int N>
void multiply_all(
    const uint8_t * panel, int64_t blocks, const typename F::column * columns, int64_t n, float * out,
    size_t out_stride) {
    for (; n >= N; n -= N, columns += N * blocks, out += N * out_stride) {
        if constexpr (F::WIDTH > 1) {
            multiply_quants<F, N>(panel, blocks, columns, out, out_stride);
        } else {
            multiply_floats<F, N>(panel, blocks, columns, out, out_stride);
        }
    }
    if constexpr (N > 1) {
        multiply_all<F, N == 12 ? 8 : N == 8 ? 4 : N - 1>(panel, blocks, columns, n, out, out_stride);
    }
}

inline int sum_of(__m256i v) {
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sums         = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
}

// Eight bits a value, a scale for each block.
template <class F> void quantize(const float * values, column_block * out, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++, values += VALUES, out++) {
        __m256 v[4];
        __m256 most = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(values + 8 * i);
            most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]));
        }
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        half        = _mm_max_ps(half, _mm_movehl_ps(half, half));
        half        = _mm_max_ss(half, _mm_movehdup_ps(half));
        const float largest = _mm_cvtss_f32(half);
        const float inverse = largest > 1e-35f ? 127.0f / largest : 0.0f;  // finite
        __m256i q[4];
        for (int i = 0; i < 4; i++) {
            q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
        }
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_storeu_si256((__m256i *) out->quants, _mm256_permutevar8x32_epi32(bytes, order));
        const int first  = sum_of(_mm256_add_epi32(q[0], q[1]));
        const int second = sum_of(_mm256_add_epi32(q[2], q[3]));
        out->scale       = largest / 127.0f;
        out->sum         = out->scale * (float) (first + second);
        out->start[0]    = -F::OFFSET * (F::SCALES == 1 ? first + second : first);
        out->start[1]    = -F::OFFSET * second;
    }
}

template <class F> void prepare(const float * values, typename F::column * out, int64_t blocks) {
    if constexpr (F::WIDTH > 1) {
        quantize<F>(values, out, blocks);
    } else {
        std::memcpy(out, values, blocks * sizeof(float));
    }
}

// ---- the operation

class traits : public ggml::cpu::tensor_traits {
  public:
    virtual void   pack(const void * file, ggml_tensor * tensor) const = 0;
    virtual size_t bytes(const ggml_tensor * tensor) const = 0;
};

template <class F> class traits_of : public traits {
    void pack(const void * file, ggml_tensor * tensor) const override {
        const int64_t blocks = tensor->ne[0] / F::WIDTH;
        const auto *  rows   = (const typename F::block *) file;
        share_out(tensor->ne[1] / ROWS, bytes(tensor), [&](int64_t panel) {
            pack_panel<F>(
                rows + panel * ROWS * (blocks / F::BLOCKS), (uint8_t *) tensor->data + panel * panel_bytes<F>(blocks),
                blocks);
        });
    }

    size_t bytes(const ggml_tensor * tensor) const override {
        return tensor->ne[1] / ROWS * panel_bytes<F>(tensor->ne[0] / F::WIDTH);
    }

    bool work_size(int /* threads */, const ggml_tensor * op, size_t & size) override {
        size = ggml_nelements(op->src[1]) / F::WIDTH * sizeof(typename F::column);
        return op->op == GGML_OP_MUL_MAT;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT) {
            return false;
        }
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * input   = op->src[1];
        GGML_ASSERT(input->nb[0] == sizeof(float) && op->nb[0] == sizeof(float));

        const int64_t blocks  = weights->ne[0] / F::WIDTH;
        const int64_t panels  = weights->ne[1] / ROWS;
        const int64_t columns = ggml_nrows(input);
        auto *        work    = (typename F::column *) params->wdata;
        for (int64_t c = params->ith; c < columns; c += params->nth) {
            prepare<F>((const float *) ((const char *) input->data + offset(input, c)), work + c * blocks, blocks);
        }

        // Panels in a few portions for each thread: one that is late takes fewer.
        const int64_t portion = std::max<int64_t>(1, panels / (4 * params->nth));
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
        for (int64_t at = params->ith; at * portion < panels; at = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t end = std::min(panels, (at + 1) * portion);
            for (int64_t panel = at * portion; panel < end; panel++) {
                const uint8_t * data = (const uint8_t *) weights->data + panel * panel_bytes<F>(blocks);
                for (int64_t c = 0; c < columns; c += op->ne[1]) {
                    float * out = (float *) ((char *) op->data + offset(op, c)) + panel * ROWS;
                    multiply_all<F, COLUMNS>(
                        data, blocks, work + c * blocks, op->ne[1], out, op->nb[1] / sizeof(float));
                }
            }
        }
        return true;
    }

    // Of a row, counted through all dimensions, in bytes.
    static size_t offset(const ggml_tensor * t, int64_t row) {
        const int64_t plane = row / t->ne[1];
        return row % t->ne[1] * t->nb[1] + plane % t->ne[2] * t->nb[2] + plane / t->ne[2] * t->nb[3];
    }
};

traits * traits_for(const ggml_tensor * tensor) {
    static traits_of<f32> as_f32;
    static traits_of<f16> as_f16;
    static traits_of<bf16> as_bf16;
    static traits_of<q4_0> as_q4_0;
    static traits_of<q4_1> as_q4_1;
    static traits_of<q5_0> as_q5_0;
    static traits_of<q5_1> as_q5_1;
    static traits_of<q8_0> as_q8_0;
    static traits_of<q4_k> as_q4_k;
    static traits_of<q5_k> as_q5_k;
    static traits_of<q6_k> as_q6_k;
    if (ggml_n_dims(tensor) != 2 || tensor->ne[1] % ROWS) {
        return nullptr;
    }
    switch (tensor->type) {
        case GGML_TYPE_F32: return &as_f32;
        case GGML_TYPE_F16: return &as_f16;
        case GGML_TYPE_BF16: return &as_bf16;
        case GGML_TYPE_Q4_0: return &as_q4_0;
        case GGML_TYPE_Q4_1: return &as_q4_1;
        case GGML_TYPE_Q5_0: return &as_q5_0;
        case GGML_TYPE_Q5_1: return &as_q5_1;
        case GGML_TYPE_Q8_0: return &as_q8_0;
        case GGML_TYPE_Q4_K: return &as_q4_k;
        case GGML_TYPE_Q5_K: return &as_q5_k;
        case GGML_TYPE_Q6_K: return &as_q6_k;
        default: return nullptr;
    }
}

// ---- the kind of memory that holds packed weights

const char * buffer_name(ggml_backend_buffer_type_t) { return "CPU_PACKED"; }

size_t buffer_alignment(ggml_backend_buffer_type_t) { return 64; }

size_t buffer_tensor_bytes(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const traits * found = traits_for(tensor);
    return found ? found->bytes(tensor) : ggml_nbytes(tensor);
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = static_cast<ggml::cpu::tensor_traits *>(traits_for(tensor));
    return GGML_STATUS_SUCCESS;
}

// Weights are read from end to end in every step: 512 pages as one spare the processor their translation. Up to a size
// they are large from the first write, which spares faults too. Beyond it they become large after it, bit by bit:
// virtual machines that give free memory back take seconds to get so much of it again.
constexpr size_t LARGE_AT_ONCE = 256 * 1024 * 1024;

void take_large_pages(void * data, size_t size) {
#    ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 2 * 1024 * 1024;
    const uintptr_t first = ((uintptr_t) data + PAGE - 1) & ~(PAGE - 1), end = ((uintptr_t) data + size) & ~(PAGE - 1);
    if (first < end) {
        madvise((void *) first, end - first, MADV_HUGEPAGE);  // where it is refused, pages are small
    }
#    else
    GGML_UNUSED(data);
    GGML_UNUSED(size);
#    endif
}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));
    auto * found = static_cast<traits *>((ggml::cpu::tensor_traits *) tensor->extra);
    found->pack(data, tensor);
    if (ggml_backend_buffer_get_size(buffer) > LARGE_AT_ONCE) {
        take_large_pages(tensor->data, found->bytes(tensor));
    }
}

ggml_backend_buffer_t buffer_alloc(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        if (size <= LARGE_AT_ONCE) {
            take_large_pages(ggml_backend_buffer_get_base(buffer), size);
        }
        buffer->buft              = type;
        buffer->iface.init_tensor = buffer_init_tensor;
        buffer->iface.set_tensor  = buffer_set_tensor;
        buffer->iface.get_tensor  = nullptr;
        buffer->iface.cpy_tensor  = nullptr;
    }
    return buffer;
}

class buffer_type : public ggml::cpu::extra_buffer_type {
    static bool holds(const ggml_tensor * op) {
        return op->op == GGML_OP_MUL_MAT && op->src[0]->buffer &&
               op->src[0]->buffer->buft == ggml_afterword_packed_buffer_type();
    }

    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * input = op->src[1];
        return holds(op) && traits_for(op->src[0]) && input->type == GGML_TYPE_F32 &&
               (!input->buffer || ggml_backend_buft_is_host(input->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return holds(op) ? (ggml::cpu::tensor_traits *) op->src[0]->extra : nullptr;
    }
};

}  // namespace

ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void) {
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { buffer_name, buffer_alloc, buffer_alignment, nullptr, buffer_tensor_bytes, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ new buffer_type(),
    };
    return &type;
}

#else

// Another processor: llama.cpp's own ways.
ggml_backend_buffer_type_t ggml_afterword_packed_buffer_type(void) { return nullptr; }

#endif

#ifndef AFTERWORD_CHANGES
#    define AFTERWORD_CHANGES "unnamed"
#endif

const char * ggml_afterword_changes(void) { return AFTERWORD_CHANGES; }
