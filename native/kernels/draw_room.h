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
    // Distances from the entropy, for typical_p.
    static constexpr int TYPICAL_BINS_A_NAT = 256, TYPICAL_BINS = 8192;

    static size_t size(int vocabulary);

    // Takes size(vocabulary) bytes from an address that is a multiple of 64.
    draw_room(int vocabulary, char * bytes);

    const int vocabulary, blocks;
    float *   weights;    // blocks x BLOCK; those behind the vocabulary are 0
    float *   scaled;     // logits below the largest one, by temperature
    float *   held;       // weights of some tokens
    float *   sorted;     // weights that are compared with each other
    float *   some;       // logits of some tokens
    float *   maxima;     // of blocks of the logits that are drawn from
    float *   own_maxima; // of blocks of the model's logits
    float *   sums;       // of blocks of weights
    double *  masses;     // of bins of distances
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
