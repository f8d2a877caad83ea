// The order of a block's quants for any processor: a value of each of 16 rows, a byte for each row. Loops over rows
// then have no shuffles, and compilers make vectors of them.
//
//   four bits    vector v (16 bytes) has value v of the rows in its low halves, value v + 16 in its high halves
//   two bits     vector v has bits 2 i and 2 i + 1 of value v + 8 i;  8 vectors
//   one bit      vector v has bit i of value v + 4 i;  4 vectors
//   eight bits   vector v has value v
//
// Values of three bits are two bits and then one, of five bits four and one, of six bits four and two.
//
// All names are local to a file, as in packed_formats.h.
#pragma once

#include "packed_panel.h"

#include <cstring>

namespace afterword {
namespace {

// Where BITS bits of value v of a row are: from `shift(v)` of byte `v % VECTORS * ROWS + row`.
template <int BITS> struct plane {
    static constexpr int VECTORS = VALUES * BITS / 8;
    static constexpr int BYTES   = VECTORS * ROWS;
    static constexpr int MASK    = (1 << BITS) - 1;

    static constexpr int shift(int v) { return v / VECTORS * BITS; }

    // Joins the bits from FROM of the values of 16 rows.
    template <int FROM> static void join(const uint8_t * by_rows, uint8_t * quants) {
        std::memset(quants, 0, BYTES);
        for (int v = 0; v < VALUES; v += VECTORS) {
            for (int i = 0; i < BYTES; i++) {
                quants[i] |= (by_rows[v * ROWS + i] >> FROM & MASK) << shift(v);
            }
        }
    }
};

template <class F> using low_plane = plane<F::BITS == 8 ? 8 : F::BITS < 4 ? 2 : 4>;
// Of values with more bits.
template <class F> using high_plane = plane<F::BITS == 6 ? 2 : 1>;
template <class F> constexpr bool HAS_HIGH = F::BITS == 3 || F::BITS == 5 || F::BITS == 6;
template <class F> constexpr int  LOW_BITS = F::BITS < 4 ? 2 : 4;

struct by_value {
    template <class F> static void place(const row_block * rows, uint8_t * quants) {
        using low  = low_plane<F>;
        using high = high_plane<F>;
        uint8_t by_rows[VALUES * ROWS];
        for (int row = 0; row < ROWS; row++) {
            for (int v = 0; v < VALUES; v++) {
                by_rows[v * ROWS + row] = rows[row].quants[v];
            }
        }
        if constexpr (F::BITS == 8) {
            std::memcpy(quants, by_rows, sizeof(by_rows));
        } else {
            low::template join<0>(by_rows, quants);
        }
        if constexpr (HAS_HIGH<F>) {
            high::template join<LOW_BITS<F>>(by_rows, quants + low::BYTES);
        }
    }
};

// The quants of a block: quant v of a row at v * ROWS + row.
template <class F> inline void unpack(const uint8_t * quants, int16_t * out) {
    using low  = low_plane<F>;
    using high = high_plane<F>;
    if constexpr (F::BITS == 8) {
        for (int i = 0; i < low::BYTES; i++) {
            out[i] = (int8_t) quants[i];
        }
    } else {
        for (int v = 0; v < VALUES; v += low::VECTORS) {
            for (int i = 0; i < low::BYTES; i++) {
                out[v * ROWS + i] = quants[i] >> low::shift(v) & low::MASK;
            }
        }
    }
    if constexpr (HAS_HIGH<F>) {
        for (int v = 0; v < VALUES; v += high::VECTORS) {
            for (int i = 0; i < high::BYTES; i++) {
                out[v * ROWS + i] |= (quants[low::BYTES + i] >> high::shift(v) & high::MASK) << LOW_BITS<F>;
            }
        }
    }
}

}  // namespace
}  // namespace afterword
