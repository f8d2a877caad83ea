// The quantizations of files: how 32 values of a row are read.
//
// Files that are compiled for different processors include this header. All names are local to a file: a linker that
// kept one copy of a function could keep one with instructions that the processor does not have.
#pragma once

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "ggml.h"

#include <cstdint>
#include <cstring>

namespace afterword {
namespace {

constexpr int VALUES = 32;  // of a block

// 32 values of a row: scale * (quant - OFFSET), or scale * quant + min.
struct row_block {
    uint8_t  quants[VALUES];
    uint16_t scale;  // a float of 16 bits, of the type F::half
    uint16_t min;
    int8_t   scales[2];  // factors of `scale` in a format of super-blocks: one for all values, or one for each half
    int8_t   mins[2];    // the factors of `min`
};

// The low and the high halves of 16 bytes.
inline void read_nibbles(const uint8_t * bytes, row_block & out) {
    for (int i = 0; i < VALUES / 2; i++) {
        out.quants[i]              = bytes[i] & 15;
        out.quants[i + VALUES / 2] = bytes[i] >> 4;
    }
}

// The same with a fifth bit for each value, eight values at once.
inline void read_five_bits(const uint8_t * bytes, const uint8_t * fifth, row_block & out) {
    constexpr uint8_t  BITS[] = { 1, 2, 4, 8, 16, 32, 64, 128 };
    constexpr uint64_t EACH   = 0x0101010101010101;
    uint64_t           bit_of_byte, eight;
    std::memcpy(&bit_of_byte, BITS, 8);
    for (int i = 0; i < VALUES / 8; i++) {
        std::memcpy(&eight, bytes + i % 2 * 8, 8);
        const uint64_t four = eight >> i / 2 * 4 & EACH * 15;
        const uint64_t set  = fifth[i] * EACH & bit_of_byte;  // not zero where the bit is set
        const uint64_t high = (set + EACH * 127) >> 3 & EACH * 16;
        eight               = four | high;
        std::memcpy(out.quants + i * 8, &eight, 8);
    }
}

// Four bits of 32 values in a super-block, and the six bits of their scale and of their min.
template <class B> inline void read_k_nibbles(const B & block, int i, row_block & out) {
    const uint8_t * s = block.scales;
    for (int l = 0; l < VALUES; l++) {
        out.quants[l] = block.qs[VALUES * (i / 2) + l] >> 4 * (i % 2) & 15;
    }
    out.scales[0] = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
    out.mins[0]   = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    out.scale     = block.data.data.d;
    out.min       = block.data.data.dmin ^ 0x8000;  // a file's min is subtracted
}

// The two bits at `shift` of 32 values.
inline void read_two_bits(const uint8_t * bytes, int shift, row_block & out) {
    for (int l = 0; l < VALUES; l++) {
        out.quants[l] = bytes[l] >> shift & 3;
    }
}

// What four bits stand for in the formats that have a table.
constexpr int8_t IQ4_VALUES[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
constexpr int8_t FP4_VALUES[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

// A format: bits of a value in a panel, its offset, if there is a min, scales (and mins) of 32 values, blocks of 32 in a
// super-block (or 1). read(block, i, out) reads the i-th 32 values of a block of the file.
template <ggml_type T, class B, int BITS_, int OFFSET_, bool MIN_, int SCALES_ = 1, int BLOCKS_ = 1>
struct quantized {
    using block = B;
    static constexpr ggml_type TYPE = T;
    static constexpr int  WIDTH = VALUES, BITS = BITS_, OFFSET = OFFSET_, SCALES = SCALES_, BLOCKS = BLOCKS_;
    static constexpr bool MIN = MIN_;
    static constexpr int  LARGEST = BITS_ == 8 ? 128 : (1 << BITS_) - 1;  // quant that is multiplied
    static constexpr bool NIBBLES   = false;  // if factors of scales and mins have four bits, and share bytes
    static constexpr bool LOOKED_UP = false;  // if a quant is TABLE[bits of the panel] + OFFSET
    using half = ggml_half;                           // the type of scales and mins
};

struct q4_0 : quantized<GGML_TYPE_Q4_0, block_q4_0, 4, 8, false> {
    static void read(const block & from, int, row_block & out) {
        read_nibbles(from.qs, out);
        out.scale = from.d;
    }
};

struct q4_1 : quantized<GGML_TYPE_Q4_1, block_q4_1, 4, 0, true> {
    static void read(const block & from, int, row_block & out) {
        read_nibbles(from.qs, out);
        out.scale = from.data.data.d;
        out.min   = from.data.data.m;
    }
};

struct q5_0 : quantized<GGML_TYPE_Q5_0, block_q5_0, 5, 16, false> {
    static void read(const block & from, int, row_block & out) {
        read_five_bits(from.qs, from.qh, out);
        out.scale = from.d;
    }
};

struct q5_1 : quantized<GGML_TYPE_Q5_1, block_q5_1, 5, 0, true> {
    static void read(const block & from, int, row_block & out) {
        read_five_bits(from.qs, from.qh, out);
        out.scale = from.data.data.d;
        out.min   = from.data.data.m;
    }
};

// With an offset of 0 its quants are signed; with 128 they are not.
template <int OFFSET_> struct q8_0 : quantized<GGML_TYPE_Q8_0, block_q8_0, 8, OFFSET_, false> {
    static void read(const block_q8_0 & from, int, row_block & out) {
        for (int i = 0; i < VALUES; i++) {
            out.quants[i] = (uint8_t) (from.qs[i] + OFFSET_);
        }
        out.scale = from.d;
    }
};

struct q4_k : quantized<GGML_TYPE_Q4_K, block_q4_K, 4, 0, true, 1, 8> {
    static void read(const block & from, int i, row_block & out) { read_k_nibbles(from, i, out); }
};

struct q5_k : quantized<GGML_TYPE_Q5_K, block_q5_K, 5, 0, true, 1, 8> {
    static void read(const block & from, int i, row_block & out) {
        read_k_nibbles(from, i, out);
        for (int l = 0; l < VALUES; l++) {
            out.quants[l] |= (from.qh[l] >> i & 1) << 4;
        }
    }
};

struct q6_k : quantized<GGML_TYPE_Q6_K, block_q6_K, 6, 32, false, 2, 8> {
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

struct q2_k : quantized<GGML_TYPE_Q2_K, block_q2_K, 2, 0, true, 2, 8> {
    static constexpr bool NIBBLES = true;

    static void read(const block & from, int i, row_block & out) {
        read_two_bits(from.qs + VALUES * (i / 4), 2 * (i % 4), out);
        for (int s = 0; s < 2; s++) {
            out.scales[s] = from.scales[2 * i + s] & 15;
            out.mins[s]   = from.scales[2 * i + s] >> 4;
        }
        out.scale = from.data.data.d;
        out.min   = from.data.data.dmin ^ 0x8000;  // a file's min is subtracted
    }
};

struct q3_k : quantized<GGML_TYPE_Q3_K, block_q3_K, 3, 4, false, 2, 8> {
    static void read(const block & from, int i, row_block & out) {
        read_two_bits(from.qs + VALUES * (i / 4), 2 * (i % 4), out);
        for (int l = 0; l < VALUES; l++) {
            out.quants[l] |= (from.hmask[l] >> i & 1) << 2;
        }
        for (int s = 0; s < 2; s++) {  // four bits in the first 8 bytes, two in the others; the offset is 32
            const int k   = 2 * i + s;
            const int low = from.scales[k % 8] >> 4 * (k / 8) & 15;
            out.scales[s] = (int8_t) ((low | (from.scales[8 + k % 4] >> 2 * (k / 4) & 3) << 4) - 32);
        }
        out.scale = from.d;
    }
};

// A format with a table of 16 values. A panel has four bits of each where vectors look them up, else quants.
template <ggml_type T, class B, int BITS_, int OFFSET_, int LARGEST_, int BLOCKS_ = 1>
struct of_table : quantized<T, B, BITS_, OFFSET_, false, 1, BLOCKS_> {
    static constexpr int  LARGEST   = LARGEST_;
    static constexpr bool LOOKED_UP = BITS_ == 4;

    static void read_quants(const uint8_t * bytes, const int8_t (&table)[16], row_block & out) {
        read_nibbles(bytes, out);
        for (int l = 0; !LOOKED_UP && l < VALUES; l++) {
            out.quants[l] = (uint8_t) (table[out.quants[l]] + OFFSET_);
        }
    }
};

template <int BITS_, int OFFSET_> struct iq4_nl : of_table<GGML_TYPE_IQ4_NL, block_iq4_nl, BITS_, OFFSET_, 128> {
    static constexpr const int8_t (&TABLE)[16] = IQ4_VALUES;

    static void read(const block_iq4_nl & from, int, row_block & out) {
        iq4_nl::read_quants(from.qs, TABLE, out);
        out.scale = from.d;
    }
};

template <int BITS_, int OFFSET_> struct iq4_xs : of_table<GGML_TYPE_IQ4_XS, block_iq4_xs, BITS_, OFFSET_, 128, 8> {
    static constexpr const int8_t (&TABLE)[16] = IQ4_VALUES;

    static void read(const block_iq4_xs & from, int i, row_block & out) {
        iq4_xs::read_quants(from.qs + VALUES / 2 * i, TABLE, out);
        const int low = from.scales_l[i / 2] >> 4 * (i % 2) & 15;
        out.scales[0] = (int8_t) ((low | (from.scales_h >> 2 * i & 3) << 4) - 32);
        out.scale     = from.d;
    }
};

template <int BITS_> struct mxfp4 : of_table<GGML_TYPE_MXFP4, block_mxfp4, BITS_, 12, 24> {
    static constexpr const int8_t (&TABLE)[16] = FP4_VALUES;
    using half = ggml_bf16_t;  // has every power of two of the file

    static void read(const block_mxfp4 & from, int, row_block & out) {
        mxfp4::read_quants(from.qs, TABLE, out);
        out.scale = from.e < 2 ? 0x20 << from.e : (from.e - 1) << 7;  // 2^(e - 128), as a float of values in halves
    }
};

// Floats are kept as the file has them. A block is one value.
template <ggml_type T, class B> struct floats_of_file {
    using block = B;
    static constexpr ggml_type TYPE = T;
    static constexpr int WIDTH = 1, BLOCKS = 1;
};

struct f32 : floats_of_file<GGML_TYPE_F32, float> {};
struct f16 : floats_of_file<GGML_TYPE_F16, ggml_fp16_t> {};
struct bf16 : floats_of_file<GGML_TYPE_BF16, ggml_bf16_t> {};

}  // namespace
}  // namespace afterword
