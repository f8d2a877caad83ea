// Numbers in rows, for the files draw_*.cpp: sums in the order of numpy, the largest logits, the fewest weights of a sum.
#pragma once

#include "draw_room.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace afterword {

constexpr int BLOCK = draw_room::BLOCK;

// Numbers side by side. numpy adds as many, so no sum depends on the processor.
constexpr int LANES = 8;
typedef float   floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

// Vectors that need not wait for each other.
constexpr int CHAINS = 4;

// Values that numpy converts, and adds, at a time.
constexpr int CHUNK = 8192;

inline int bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

// Not by value: compilers warn of that where registers are narrower.
template <class Vector, class T> inline void load(Vector & to, const T * from) {
    std::memcpy(&to, from, sizeof(to));
}

// The sum of n numbers as numpy adds them: eight sums side by side, of halves of what is longer than 128.
template <class Sum, class T> Sum sum_of(const T * x, int n) {
    if (n < LANES) {
        Sum sum = -(Sum) 0;
        for (int i = 0; i < n; i++) {
            sum += (Sum) x[i];
        }
        return sum;
    }
    if (n > 128) {
        const int half = n / 2 - n / 2 % LANES;
        return sum_of<Sum>(x, half) + sum_of<Sum>(x + half, n - half);
    }
    typedef T   values __attribute__((vector_size(LANES * sizeof(T))));
    typedef Sum vector __attribute__((vector_size(LANES * sizeof(Sum))));
    values next;
    load(next, x);
    vector sums = __builtin_convertvector(next, vector);
    int i = LANES;
    for (; i < n - n % LANES; i += LANES) {
        load(next, x + i);
        sums += __builtin_convertvector(next, vector);
    }
    Sum sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    for (; i < n; i++) {
        sum += (Sum) x[i];
    }
    return sum;
}

// The sum of floats in doubles.
inline double sum_in_double(const float * x, int n) {
    double sum = 0;
    for (int at = 0; at < n; at += CHUNK) {
        sum += sum_of<double>(x + at, std::min(CHUNK, n - at));
    }
    return sum;
}

// Finds the largest number of each block. Returns the largest of all; NaN if there is NaN.
float find_maxima(const float * x, int n, float * maxima);

// A row with the largest number of each block.
struct blocks_of {
    const float * row;
    const float * maxima;
    int           n, blocks;
    float         largest;

    // The numbers of a block.
    int begin(int block) const { return block * BLOCK; }
    int end(int block) const { return std::min(n, (block + 1) * BLOCK); }

    int first_of_largest() const {
        int block = 0;
        while (maxima[block] != largest) {
            block++;
        }
        int at = begin(block);
        while (row[at] != largest) {
            at++;
        }
        return at;
    }
};

// Leaves the k highest logits in room.keys, highest first, on a tie the lowest id first. Returns how many there are.
int find_top(const blocks_of & all, int k, const draw_room & room);

// The id of an entry of room.keys.
inline int id_of(uint64_t key) { return (int) (key & 0xffffffff); }

// The fewest highest weights whose sum reaches a goal: those that reach the threshold, without the last `surplus` ones that
// equal it.
struct fewest {
    float threshold;
    int   count;
    int   surplus;
};

// The weights are from 0 to 1, and their sum is about `total`. At least one is found.
fewest find_fewest(const float * weights, int n, double total, double goal, const draw_room & room);

}  // namespace afterword
