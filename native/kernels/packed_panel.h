// A panel: the weights of 16 rows, and the columns that are multiplied with it.
//
// Floats: value 0 of rows 0 to 15, value 1 of rows 0 to 15, and so on.
//
// Quants, in blocks of 32 values of each row. What is read in one stream lies together:
//
//   | quants 0 | quants 1 | ... | halves 0 | halves 1 | ... | factors 0 | factors 1 | ...
//
//   quants i   16 * 32 * BITS / 8 bytes of block i, in the order that the kernel reads: packed_groups.h for vector
//              instructions, packed_values.h for any processor
//   halves i   of block i, or of super-block i:
//              | scale of row 0 | ... | scale of row 15 |  and if the format has a min
//              | min of row 0   | ... | min of row 15   |  each a float of 16 bits
//   factors i  of block i in a format of super-blocks, else nothing:
//              | scale of row 0 | ... | scale of row 15 |  for each scale, and if the format has a min
//              | min of row 0   | ... | min of row 15   |  for each scale; each a byte with a sign. Factors of four
//              bits share bytes: scales are the low halves, mins the high ones
//
// All names are local to a file, as in packed_formats.h.
#pragma once

#include "packed_formats.h"
#include "packed_kernels.h"

#include <cstddef>
#include <cstdint>

namespace afterword {
namespace {

template <class F> constexpr size_t QUANT_BYTES = ROWS * VALUES * F::BITS / 8;
template <class F> constexpr size_t HALF_BYTES = ROWS * sizeof(uint16_t) * (1 + F::MIN);
template <class F> constexpr size_t FACTOR_BYTES = F::BLOCKS == 1 ? 0 : ROWS * F::SCALES * (1 + (F::MIN && !F::NIBBLES));

template <class F> size_t panel_bytes(int64_t values) {
    const int64_t blocks = values / F::WIDTH;
    if constexpr (F::WIDTH == 1) {
        return ROWS * blocks * sizeof(typename F::block);
    } else {
        return blocks * (QUANT_BYTES<F> + FACTOR_BYTES<F>) + blocks / F::BLOCKS * HALF_BYTES<F>;
    }
}

// Where the parts of a panel of quants begin.
template <class F, class Byte> struct panel_parts {
    Byte * quants;
    Byte * halves;
    Byte * factors;

    panel_parts(Byte * panel, int64_t blocks) :
        quants(panel),
        halves(panel + blocks * QUANT_BYTES<F>),
        factors(halves + blocks / F::BLOCKS * HALF_BYTES<F>) {}

    Byte * quants_of(int64_t b) const { return quants + b * QUANT_BYTES<F>; }
    Byte * halves_of(int64_t b) const { return halves + b / F::BLOCKS * HALF_BYTES<F>; }
    Byte * factors_of(int64_t b) const { return factors + b * FACTOR_BYTES<F>; }
};

// 32 values of a column, eight bits each.
struct column_block {
    int8_t quants[VALUES];
    float  scale;
    union {                // of the quants that share a scale
        float   sums[2];   // scale * their sum: the factor of a row's min
        int32_t start[2];  // -OFFSET * their sum: what weights with an offset add too much
    };
};

template <class F> struct column_of { using type = column_block; };
template <> struct column_of<f32> { using type = float; };
template <> struct column_of<f16> { using type = float; };
template <> struct column_of<bf16> { using type = float; };
template <class F> using column = typename column_of<F>::type;

template <class F> size_t column_bytes(int64_t values) { return values / F::WIDTH * sizeof(column<F>); }

// The greatest power of two up to COUNT for which so many products with LARGEST fit 16 bits.
template <class F, int COUNT> constexpr int fitting() {
    int n = 1;
    while (2 * n <= COUNT && 2 * n * F::LARGEST * 127 <= INT16_MAX) {
        n *= 2;
    }
    return n;
}

// Pack 16 rows of a file. Order::place puts the quants of one block of 16 rows in the kernel's order.
template <class F, class Order> void pack_panel(const void * rows, uint8_t * panel, int64_t values) {
    const auto *  file   = (const typename F::block *) rows;
    const int64_t blocks = values / F::WIDTH;
    if constexpr (F::WIDTH == 1) {
        auto * out = (typename F::block *) panel;
        for (int64_t i = 0; i < blocks; i++) {
            for (int row = 0; row < ROWS; row++) {
                *out++ = file[row * blocks + i];
            }
        }
    } else {
        const panel_parts<F, uint8_t> parts(panel, blocks);
        for (int64_t b = 0; b < blocks; b++) {
            auto *    halves  = (uint16_t *) parts.halves_of(b);
            auto *    factors = (int8_t *) parts.factors_of(b);
            row_block of_rows[ROWS];
            for (int row = 0; row < ROWS; row++) {
                row_block & from = of_rows[row];
                F::read(file[row * (blocks / F::BLOCKS) + b / F::BLOCKS], b % F::BLOCKS, from);
                halves[row] = from.scale;
                if constexpr (F::MIN) {
                    halves[ROWS + row] = from.min;
                }
                if constexpr (F::BLOCKS > 1) {
                    for (int s = 0; s < F::SCALES; s++) {
                        factors[s * ROWS + row] = from.scales[s];
                        if constexpr (F::NIBBLES) {
                            factors[s * ROWS + row] |= from.mins[s] << 4;
                        } else if constexpr (F::MIN) {
                            factors[(F::SCALES + s) * ROWS + row] = from.mins[s];
                        }
                    }
                }
            }
            Order::template place<F>(of_rows, parts.quants_of(b));
        }
    }
}

}  // namespace
}  // namespace afterword
