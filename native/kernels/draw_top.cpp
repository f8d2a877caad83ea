// The highest logits of a row.

#include "draw_numbers.h"

#include <functional>

namespace afterword {

float find_maxima(const float * x, int n, float * maxima) {
    float largest = -INFINITY;
    ints  broken  = {};
    for (int at = 0; at < n; at += BLOCK, maxima++) {
        // Behind the row's end is what rules nothing out.
        float         copy[BLOCK];
        const float * block = x + at;
        if (n - at < BLOCK) {
            std::fill(std::copy(block, x + n, copy), copy + BLOCK, -INFINITY);
            block = copy;
        }
        floats most[CHAINS];
        for (int j = 0; j < CHAINS; j++) {
            load(most[j], block + j * LANES);
            broken |= most[j] != most[j];
        }
        for (int i = CHAINS * LANES; i < BLOCK; i += CHAINS * LANES) {
            for (int j = 0; j < CHAINS; j++) {
                floats values;
                load(values, block + i + j * LANES);
                most[j] = values > most[j] ? values : most[j];
                broken |= values != values;
            }
        }
        for (int j = 1; j < CHAINS; j++) {
            most[0] = most[j] > most[0] ? most[j] : most[0];
        }
        *maxima = most[0][0];
        for (int j = 1; j < LANES; j++) {
            *maxima = std::max(*maxima, most[0][j]);
        }
        largest = std::max(largest, *maxima);
    }
    for (int j = 0; j < LANES; j++) {
        if (broken[j]) {
            return NAN;
        }
    }
    return largest;
}

namespace {

// Larger logits have smaller keys, and of equal ones the lower id.
uint64_t key_of(float logit, int id) {
    const uint32_t bits      = (uint32_t) bits_of(logit + 0.0f);  // minus zero equals zero
    const uint32_t ascending = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return (uint64_t) ~ascending << 32 | (uint32_t) id;
}

}  // namespace

int find_top(const blocks_of & all, int k, const draw_room & room) {
    k                = std::min(k, all.n);
    uint64_t * keys  = room.keys;
    int        found = 0;
    if (k <= 0) {
        return 0;
    }
    if (k == 1) {
        const int id = all.first_of_largest();
        keys[0]      = key_of(all.row[id], id);
        return 1;
    }
    // Each of the k highest logits reaches the k-th highest maximum of a block.
    float threshold = -INFINITY;
    if (k < all.blocks) {
        std::copy(all.maxima, all.maxima + all.blocks, room.sums);
        std::nth_element(room.sums, room.sums + k - 1, room.sums + all.blocks, std::greater<float>());
        threshold = room.sums[k - 1];
    }
    for (int block = 0; block < all.blocks; block++) {
        if (all.maxima[block] >= threshold) {
            for (int i = all.begin(block); i < all.end(block); i++) {
                if (all.row[i] >= threshold) {
                    keys[found++] = key_of(all.row[i], i);
                }
            }
        }
    }
    if (k < found) {
        std::nth_element(keys, keys + k - 1, keys + found);
    }
    std::sort(keys, keys + k);
    return k;
}

}  // namespace afterword
