// Memory of a thread that answers rows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace afterword {

// Memory for the row at hand, of one thread.
class draw_room {
public:
    // Values that one maximum or one sum stands for.
    static constexpr int BLOCK = 256;
    static constexpr int LANES = 16;
    // Weights by the high bits of their floats, from 1 down to 2^-20: 128 bins for each power of two.
    static constexpr int SHIFT = 16, TOP_BIN = 0x3f800000 >> SHIFT, LEAST_BIN = 0x35800000 >> SHIFT;
    static constexpr int BINS = TOP_BIN - LEAST_BIN + 1;
    // Neighbours often share a bin, and would wait for each other in one table.
    static constexpr int TABLES = 4;
    // Distances from the entropy, for typical_p.
    static constexpr int TYPICAL_BINS_A_NAT = 256, TYPICAL_BINS = 8192;

    static size_t size(int vocabulary);

    // Takes size(vocabulary) bytes from an address that is a multiple of 64.
    draw_room(int vocabulary, char * bytes);

    const int vocabulary, blocks;
    float *   weights;    // blocks x BLOCK; those behind the vocabulary are 0
    float *   scaled;     // logits below the largest one, by temperature
    float *   held;       // weights of some tokens
    float *   sorted;     // the same, and their copy while they are sorted
    float *   sorting;
    float *   maxima;     // of blocks of the logits that are drawn from
    float *   own_maxima; // of blocks of the model's logits
    float *   sums;       // of blocks of weights
    double *  masses;     // of bins
    double *  distances;
    uint64_t * keys;      // logits and ids, as they sort
    int32_t * ids;
    int32_t * others;

private:
    class parts;
    draw_room(int vocabulary, parts && from);

    size_t used;
};

}  // namespace afterword
