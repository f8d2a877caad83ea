// The numbers of a row that are in a range, one behind the other.
#pragma once

#include "draw_numbers.h"

#if defined(__AVX2__)
#    include <immintrin.h>
#endif

namespace afterword {

#if defined(__AVX512F__)

// So many numbers are looked at together, and as many may be written behind the last one.
constexpr int PACK = 16;

inline uint32_t those_between(const float * x, float low, float high) {
    const __m512 values = _mm512_loadu_ps(x);
    return _mm512_mask_cmp_ps_mask(
        _mm512_cmp_ps_mask(values, _mm512_set1_ps(low), _CMP_GE_OQ), values, _mm512_set1_ps(high), _CMP_LT_OQ);
}

inline int count_of(uint32_t those) { return __builtin_popcount(those); }

inline void pack(uint32_t those, const float * x, float * to) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16) those, _mm512_loadu_ps(x)));
}

// The places of those, counted from the first one.
inline void pack_places(uint32_t those, int first, int32_t * to) {
    const __m512i places = _mm512_add_epi32(
        _mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32((__mmask16) those, places));
}

#elif defined(__AVX2__)

constexpr int PACK = 8;

// For each set of eight places, the places in it.
struct places_of_sets {
    uint8_t of[256][8] = {};

    constexpr places_of_sets() {
        for (int set = 0; set < 256; set++) {
            for (int place = 0, found = 0; place < 8; place++) {
                if (set >> place & 1) {
                    of[set][found++] = (uint8_t) place;
                }
            }
        }
    }
};

inline constexpr places_of_sets PLACES;

inline __m256i places_of(uint32_t those) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) PLACES.of[those]));
}

inline uint32_t those_between(const float * x, float low, float high) {
    const __m256 values = _mm256_loadu_ps(x);
    return (uint32_t) _mm256_movemask_ps(_mm256_and_ps(
        _mm256_cmp_ps(values, _mm256_set1_ps(low), _CMP_GE_OQ), _mm256_cmp_ps(values, _mm256_set1_ps(high), _CMP_LT_OQ)));
}

inline int count_of(uint32_t those) { return __builtin_popcount(those); }

inline void pack(uint32_t those, const float * x, float * to) {
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), places_of(those)));
}

inline void pack_places(uint32_t those, int first, int32_t * to) {
    _mm256_storeu_si256((__m256i *) to, _mm256_add_epi32(_mm256_set1_epi32(first), places_of(those)));
}

#else

constexpr int PACK = 1;

inline uint32_t those_between(const float * x, float low, float high) { return (*x >= low) & (*x < high); }

inline int count_of(uint32_t those) { return (int) those; }

inline void pack(uint32_t, const float * x, float * to) { *to = *x; }

inline void pack_places(uint32_t, int first, int32_t * to) { *to = first; }

#endif

}  // namespace afterword
