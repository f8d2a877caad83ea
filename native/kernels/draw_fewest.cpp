// The fewest weights whose sum reaches a goal, without sorting them all: those that are surely in and surely out are put
// aside, until few are left.

#include "draw_pack.h"

#include <cfloat>
#include <functional>

namespace afterword {
namespace {

// So few weights are sorted.
constexpr int FEW = 128;

// What is tried first: the nucleus of most text is above 2^-10, and little matters below 2^-20.
constexpr int   TRIES = 3;
constexpr float FIRST[TRIES] = { 0x1p-10f, 0x1p-14f, 0x1p-20f };

float float_of(int bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

struct part {
    int    count;
    double mass;
};

// The weights that are at least so large, and about how much they weigh: sums of a block are of floats.
part at_least(const float * weights, int n, float least) {
    const floats zero = {}, bound = zero + least;
    part         found = { 0, 0 };
    for (int at = 0; at < n; at += BLOCK) {
        const int end = std::min(n, at + BLOCK);
        floats    masses[CHAINS] = {};
        ints      counts = {};
        int       i = at;
        for (; i + CHAINS * LANES <= end; i += CHAINS * LANES) {
            for (int j = 0; j < CHAINS; j++) {
                floats values;
                load(values, weights + i + j * LANES);
                const ints holds = values >= bound;
                masses[j] += holds ? values : zero;
                counts -= holds;
            }
        }
        for (; i < end; i++) {
            masses[0][0] += weights[i] >= least ? weights[i] : 0;
            counts[0] += weights[i] >= least;
        }
        const floats sums = (masses[0] + masses[1]) + (masses[2] + masses[3]);
        for (int j = 0; j < LANES; j++) {
            found.mass += (double) sums[j];
            found.count += counts[j];
        }
    }
    return found;
}

// How much the weights that are at least so large weigh.
double mass_of(const float * weights, int n, float least) {
    // Compilers convert vectors of doubles well if they are this wide.
#if defined(__AVX512F__)
    constexpr int WIDE = 8;
#else
    constexpr int WIDE = 4;
#endif
    typedef float  values_of __attribute__((vector_size(WIDE * sizeof(float))));
    typedef double doubles __attribute__((vector_size(WIDE * sizeof(double))));
    constexpr int   STEP = CHAINS * LANES;
    const values_of zero = {}, bound = zero + least;
    doubles         masses[STEP / WIDE] = {};
    int             i = 0;
    for (; i + STEP <= n; i += STEP) {
        for (int j = 0; j < STEP / WIDE; j++) {
            values_of values;
            load(values, weights + i + j * WIDE);
            const values_of those = values >= bound ? values : zero;
#if defined(__AVX512F__)
            masses[j] += (doubles) _mm512_cvtps_pd((__m256) those);
#else
            masses[j] += __builtin_convertvector(those, doubles);
#endif
        }
    }
    double mass = 0;
    for (const doubles & sums : masses) {
        for (int j = 0; j < WIDE; j++) {
            mass += sums[j];
        }
    }
    for (; i < n; i++) {
        mass += weights[i] >= least ? (double) weights[i] : 0;
    }
    return mass;
}

// Copies the weights from low to below high, in their order; `to` may be where they are. Returns how many there are.
int copy_between(const float * weights, int n, float low, float high, float * to) {
    int found = 0, i = 0;
    for (; i + PACK <= n; i += PACK) {
        const uint32_t those = those_between(weights + i, low, high);
        pack(those, weights + i, to + found);
        found += count_of(those);
    }
    for (; i < n; i++) {
        const float weight = weights[i];
        to[found] = weight;
        found += (weight >= low) & (weight < high);
    }
    return found;
}

// A threshold by its bits, and the weights that are at least so large.
struct edge {
    int    bits;
    int    count;
    double mass;
};

// How much the weights below a threshold weigh: the bits of a float, which grow about as logarithms do.
int64_t below(const edge & at, double total) { return bits_of((float) std::max(total - at.mass, (double) FLT_MIN)); }

// A threshold between two others: on the line through both, or in the middle.
int between(const edge & low, const edge & high, double total, double goal, bool middle) {
    if (!middle && low.bits > 0) {
        const int64_t least = below(low, total), most = below(high, total), wanted = below({ 0, 0, goal }, total);
        if (least < wanted && wanted < most) {
            const int bits = low.bits + (int) ((high.bits - low.bits) * (wanted - least) / (most - least));
            return std::min(std::max(bits, low.bits + 1), high.bits - 1);
        }
    }
    return low.bits + (high.bits - low.bits) / 2;
}

// Takes weights behind those above, the largest first, until the sum reaches the goal.
fewest take(float * weights, int n, const edge & above, double goal, double & sum) {
    std::sort(weights, weights + n, std::greater<float>());
    fewest few = { float_of(above.bits), above.count, 0 };
    int    at  = 0;
    while (at < n && sum < goal) {
        few.threshold = weights[at++];
        few.count++;
        sum += (double) few.threshold;
    }
    while (at > 0 && at < n && weights[at++] == few.threshold) {
        few.surplus++;
    }
    return few;
}

// Looks with sums of floats, or of doubles. Returns whether sums of floats were near enough.
bool search(
    const float * weights, int n, double total, double goal, bool in_doubles, const draw_room & room, fewest & found) {
    // Weights sort as their bits do. The sum reaches the goal between low and high. Weights that are not between them are
    // put aside now and then, those above `gone` for good.
    edge          low = { 0, n, total }, high = { bits_of(1.0f) + 1, 0, 0 }, gone = high;
    const float * left   = weights;
    int           count  = n, tried = 0;
    bool          middle = false;
    while (low.count - high.count > FEW && high.bits - low.bits > 1) {
        const int before = low.count - high.count;
        const int probe =
            low.bits == 0 && tried < TRIES ? bits_of(FIRST[tried++]) : between(low, high, total, goal, middle);
        part likely = at_least(left, count, float_of(probe));
        if (in_doubles) {
            likely.mass = mass_of(left, count, float_of(probe));
        }
        const edge here = { probe, gone.count + likely.count, gone.mass + likely.mass };
        if (here.mass >= goal) {
            low = here;
        } else {
            high = here;
        }
        const int inside = low.count - high.count;
        middle           = !middle && inside > before / 2;
        if (inside <= count / 2) {
            count = copy_between(left, count, float_of(low.bits), float_of(high.bits), room.sorted);
            left  = room.sorted;
            gone  = high;
        }
    }
    count      = copy_between(left, count, float_of(low.bits), float_of(high.bits), room.sorted);
    high.mass  = high.count > 0 ? mass_of(weights, n, float_of(high.bits)) : 0;
    double sum = high.mass;
    found      = take(room.sorted, count, high, goal, sum);
    return high.mass < goal && (sum >= goal || low.bits == 0);
}

}  // namespace

fewest find_fewest(const float * weights, int n, double total, double goal, const draw_room & room) {
    // The heaviest weight is found for a goal of 0, too.
    goal = std::max(goal, DBL_MIN);
    fewest found;
    if (!search(weights, n, total, goal, false, room, found)) {
        search(weights, n, total, goal, true, room, found);
    }
    return found;
}

}  // namespace afterword
