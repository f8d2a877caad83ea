// The order of a block's quants for processors with AVX2: four values of a row stand together, since an instruction
// multiplies four bytes of each lane and adds them. A group is four values of 16 rows:
//
//   four bits    vector g (64 bytes) for groups g and g + 4:  | row 0: 4 bytes | row 1: 4 bytes | ... | row 15 |
//                the low half of byte j has value 4 g + j, the high half value 4 (g + 4) + j;  4 vectors
//   two bits     vector i for groups 4 i to 4 i + 3: bits 2 g and 2 g + 1 of byte j have value j of group 4 i + g;
//                2 vectors
//   one bit      a vector: bit g of byte j has value j of group g
//   eight bits   vector g for group g: byte j of a row has value 4 g + j;  8 vectors
//
// Values of three bits are two bits and then one, of five bits four and one, of six bits four and two.
//
// All names are local to a file, as in packed_formats.h.
#pragma once

#include "packed_panel.h"

#include <immintrin.h>

#include <cstring>
#include <iterator>

namespace afterword {
namespace {

constexpr int    GROUPS = VALUES / 4;
constexpr size_t VECTOR = ROWS * 4;  // bytes

// The bits that come first, and where the others begin.
template <class F> constexpr int    LOW_BITS = F::BITS == 8 ? 8 : F::BITS < 4 ? 2 : 4;
template <class F> constexpr size_t HIGH = GROUPS * LOW_BITS<F> / 8 * VECTOR;

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

// Two bits from SHIFT of four groups in a byte.
template <int SHIFT> inline int join_two_bits(__m128i values) {
    const __m128i two   = _mm_and_si128(_mm_srli_epi16(values, SHIFT), _mm_set1_epi8(3));
    const __m128i apart = _mm_sllv_epi32(two, _mm_setr_epi32(0, 2, 4, 6));
    const __m128i pairs = _mm_or_si128(apart, _mm_unpackhi_epi64(apart, apart));
    return _mm_cvtsi128_si32(_mm_or_si128(pairs, _mm_srli_epi64(pairs, 32)));
}

// Put two bits from SHIFT of a row's values in its lane.
template <int SHIFT> inline void place_two_bits(const __m128i (&half)[2], uint8_t * lane) {
    for (int i = 0; i < 2; i++) {
        const int bits = join_two_bits<SHIFT>(half[i]);
        std::memcpy(lane + i * VECTOR, &bits, 4);
    }
}

// The bits at SHIFT of eight groups in a byte.
template <int SHIFT> inline int join_bits(const __m128i (&half)[2]) {
    const __m128i one   = _mm_set1_epi8(1);
    const __m128i low   = _mm_and_si128(_mm_srli_epi16(half[0], SHIFT), one);
    const __m128i high  = _mm_and_si128(_mm_srli_epi16(half[1], SHIFT), one);
    const __m128i apart = _mm_or_si128(
        _mm_sllv_epi32(low, _mm_setr_epi32(0, 1, 2, 3)), _mm_sllv_epi32(high, _mm_setr_epi32(4, 5, 6, 7)));
    const __m128i pairs = _mm_or_si128(apart, _mm_unpackhi_epi64(apart, apart));
    return _mm_cvtsi128_si32(_mm_or_si128(pairs, _mm_srli_epi64(pairs, 32)));
}

// Put a row's block in its lane.
template <class F> void place_row(const row_block & from, int row, uint8_t * quants) {
    const __m128i half[2] = {
        _mm_loadu_si128((const __m128i *) from.quants), _mm_loadu_si128((const __m128i *) (from.quants + VALUES / 2)),
    };
    quants += row * 4;
    if constexpr (LOW_BITS<F> == 8) {
        place_groups(half[0], quants);
        place_groups(half[1], quants + GROUPS / 2 * VECTOR);
    } else if constexpr (LOW_BITS<F> == 4) {
        const __m128i four = _mm_set1_epi8(15);
        place_groups(
            _mm_or_si128(_mm_and_si128(half[0], four), _mm_slli_epi16(_mm_and_si128(half[1], four), 4)), quants);
    } else {
        place_two_bits<0>(half, quants);
    }
    if constexpr (F::BITS == 6) {
        place_two_bits<4>(half, quants + HIGH<F>);
    }
    if constexpr (F::BITS == 3 || F::BITS == 5) {
        const int bits = join_bits<F::BITS - 1>(half);
        std::memcpy(quants + HIGH<F>, &bits, 4);
    }
}

struct groups {
    template <class F> static void place(const row_block * rows, uint8_t * quants) {
        for (int row = 0; row < ROWS; row++) {
            place_row<F>(rows[row], row, quants);
        }
    }
};

// Four values of each row of a part of V::LANES rows.
template <class V, class F> inline typename V::ints unpack(const uint8_t * quants, int part, int group) {
    const uint8_t *  high = quants + HIGH<F>;
    typename V::ints weights;
    quants += part * V::LANES * 4;
    if constexpr (LOW_BITS<F> == 8) {
        weights = V::load(quants + group * VECTOR);
    } else if constexpr (LOW_BITS<F> == 4) {
        const typename V::ints both = V::load(quants + group % (GROUPS / 2) * VECTOR);
        weights                     = group < GROUPS / 2 ? V::low_nibbles(both) : V::high_nibbles(both);
    } else {
        weights = V::two_bits(V::load(quants + group / 4 * VECTOR), group % 4);
    }
    if constexpr (F::BITS == 3 || F::BITS == 5) {
        weights = V::either(weights, V::bit(V::load(high + part * V::LANES * 4), group, F::BITS - 1));
    }
    if constexpr (F::BITS == 6) {
        const typename V::ints two = V::load(high + group / 4 * VECTOR + part * V::LANES * 4);
        weights                    = V::either(weights, V::high_bits(two, group % 4));
    }
    if constexpr (F::LOOKED_UP) {
        weights = V::look_up(F::TABLE, F::OFFSET, weights);
    }
    return weights;
}

}  // namespace
}  // namespace afterword
