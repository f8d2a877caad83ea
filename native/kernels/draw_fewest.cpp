// The fewest weights whose sum reaches a goal, without sorting them all.

#include "draw_numbers.h"

#include <functional>

namespace afterword {
namespace {

// Up to this many weights are sorted at once; more are counted into bins first.
constexpr int FEW = 2048;

// Sorts nonnegative floats, the largest first: by their bits, eleven at a time.
void sort_descending(float * values, float * other, int n) {
    if (n <= 128) {
        std::sort(values, values + n, std::greater<float>());
        return;
    }
    constexpr int DIGIT = 11, DIGITS = 1 << DIGIT;
    for (int shift = 0; shift < 32; shift += DIGIT) {
        int counts[DIGITS] = {};
        for (int i = 0; i < n; i++) {
            counts[(~bits_of(values[i]) & 0x7fffffff) >> shift & (DIGITS - 1)]++;
        }
        int at = 0;
        for (int & count : counts) {
            const int own = count;
            count         = at;
            at += own;
        }
        for (int i = 0; i < n; i++) {
            other[counts[(~bits_of(values[i]) & 0x7fffffff) >> shift & (DIGITS - 1)]++] = values[i];
        }
        std::copy(other, other + n, values);
    }
}

// A bin of weights: the sum reaches its goal in it.
struct edge {
    int    bin;
    double before;  // the sum of the bins above

};

// Sums of weights of one bin are exact, in any order. Only the last bin is an exception, and its sum decides nothing.
// Leaves the bin of each weight in room.others.
edge find_edge(const float * weights, int n, double goal, const draw_room & room) {
    constexpr int BINS = draw_room::BINS, TABLES = draw_room::TABLES;
    int * bins  = room.others;
    int   first = BINS, last = 0;
    for (int i = 0; i < n; i++) {
        bins[i] = draw_room::TOP_BIN - std::max(bits_of(weights[i]) >> draw_room::SHIFT, (int) draw_room::LEAST_BIN);
        first   = std::min(first, bins[i]);
        last    = std::max(last, bins[i]);
    }
    double * masses = room.masses;
    std::fill(masses, masses + TABLES * BINS, 0.0);
    int i = 0;
    for (; i + TABLES <= n; i += TABLES) {
        for (int j = 0; j < TABLES; j++) {
            masses[j * BINS + bins[i + j]] += (double) weights[i + j];
        }
    }
    for (; i < n; i++) {
        masses[bins[i]] += (double) weights[i];
    }
    double before = 0;
    for (int bin = first;; bin++) {
        double mass = masses[bin];
        for (int j = 1; j < TABLES; j++) {
            mass += masses[j * BINS + bin];
        }
        if (bin == last || before + mass >= goal) {
            return { bin, before };
        }
        before += mass;
    }
}

}  // namespace

fewest find_fewest(const float * weights, int n, double goal, const draw_room & room) {
    int    count  = 0;
    double before = 0;
    if (n <= FEW) {
        count = n;
        std::copy(weights, weights + n, room.sorted);
    } else {
        const edge at = find_edge(weights, n, goal, room);
        before        = at.before;
        for (int i = 0; i < n; i++) {
            room.sorted[count] = weights[i];
            count += room.others[i] == at.bin;
        }
    }
    sort_descending(room.sorted, room.sorting, count);
    double sum  = 0;
    int    last = 0;
    for (;; last++) {
        sum += (double) room.sorted[last];
        if (before + sum >= goal || last == count - 1) {
            break;
        }
    }
    int end = last + 1;
    while (end < count && room.sorted[end] == room.sorted[last]) {
        end++;
    }
    return { room.sorted[last], end - last - 1 };
}

}  // namespace afterword
